"""A recipe compared with a published script, table or data list."""
