"""The `vlm` command."""
