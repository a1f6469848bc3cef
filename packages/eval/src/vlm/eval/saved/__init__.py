"""Predictions saved by others: read, matched to items, scored, compared."""
