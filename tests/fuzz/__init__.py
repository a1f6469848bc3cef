"""Fuzzers of what comes from outside: records, recipes, predictions, checkpoints, archives."""
