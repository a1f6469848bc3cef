"""What answers a prompt: a checkpoint, a server, teacher forcing; and the judge."""
