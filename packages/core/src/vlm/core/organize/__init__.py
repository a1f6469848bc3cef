"""From a download to its folder tree and the training records."""
