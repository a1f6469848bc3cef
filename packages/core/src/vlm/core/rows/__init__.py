"""Tables that other programs wrote: their rows, the form of their records, and their pictures."""
