"""The way of a sample, in its order: record, media, tiles, chat template, tokens, positions, packs."""
