"""Sequence parallelism: one row of tokens held by several processes."""
