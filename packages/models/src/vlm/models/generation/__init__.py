"""From prompts to new tokens: decoding and shared prefixes."""
