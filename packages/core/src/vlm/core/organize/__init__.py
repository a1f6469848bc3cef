"""From a download to the published folder tree and the training records."""
