"""Evaluations and predictions on disk: read, matched to items, scored, compared."""
