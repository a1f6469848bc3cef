"""A training run: data stream, engine, loop, checkpoints, metrics."""
