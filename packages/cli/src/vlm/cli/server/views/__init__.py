"""Pages of runs and samples, read from files alone: `vlm view` shows them without a model, `vlm serve` beside one."""
