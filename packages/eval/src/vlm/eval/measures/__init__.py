"""What scorers are built from: text clean-ups, BLEU, ROUGE, tokens, intervals."""
