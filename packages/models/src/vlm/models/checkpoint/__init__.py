"""Checkpoints on disk: formats, reading, writing, conversion, assembling from parts, placement on devices."""
