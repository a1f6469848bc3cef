"""Adapters for other evaluation harnesses."""
