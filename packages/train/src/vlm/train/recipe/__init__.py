"""A recipe: one training stage as validated data."""
