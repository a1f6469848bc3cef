"""One resolved run: its faults, what is missing, what it costs and whether it fits, before any weight is loaded."""
