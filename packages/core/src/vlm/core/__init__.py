"""Data and files without any neural network: samples, downloads, data sets, checks."""
