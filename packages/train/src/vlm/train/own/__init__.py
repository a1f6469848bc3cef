"""Fine-tuning on one's own data without a recipe: the data as an entry, the recipe from the family's."""
