"""What a recipe costs and whether it fits, before any weight is loaded."""
