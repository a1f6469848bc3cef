"""Text measures and statistics that scorers share: normalization, ROUGE-L, BLEU-4, intervals, metrics."""
