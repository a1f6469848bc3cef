"""From the network to a folder: catalogue, transfers, archives, manifests."""
