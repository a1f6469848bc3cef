"""Checkpoints on disk: formats, reading, writing, conversion, comparison, placement."""
