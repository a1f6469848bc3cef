"""Linear layers for inference on a CPU, whose weights lie as torch's kernels read them."""
