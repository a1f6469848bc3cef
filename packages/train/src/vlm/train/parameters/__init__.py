"""Which parameters are trained, and how: adapters, groups, rates."""
