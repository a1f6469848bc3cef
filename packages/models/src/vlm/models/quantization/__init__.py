"""Weights in few bits by torch's own kernels."""
