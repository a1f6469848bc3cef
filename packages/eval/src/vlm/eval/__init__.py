"""Evaluation: benchmarks, loaders, scorers, backends, runs, reports."""
