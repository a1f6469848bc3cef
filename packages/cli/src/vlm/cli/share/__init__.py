"""Sharing a model: which files belong to it, where it comes from, and the card that says so."""
