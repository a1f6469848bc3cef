"""From prompts to new tokens: decoding, batches, shared prefixes."""
