"""Costs and faults of a data set, found without decoding any media."""
