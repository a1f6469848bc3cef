"""Models that answer prompts: a checkpoint, a server, teacher forcing; and the judge of replies."""
