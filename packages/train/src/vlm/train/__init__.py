"""Training: recipes, plans, runs, launchers, and the comparison with published scripts."""
