"""What run folders hold: evaluations, stages, samples, and the published tables."""
