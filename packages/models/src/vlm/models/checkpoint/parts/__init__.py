"""Parts of a checkpoint, each as a folder of its own."""
