"""What run folders hold besides evaluations, and the published tables."""
