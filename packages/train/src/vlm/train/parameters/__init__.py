"""Which parameters are trained, and how: adapters, parameter groups, learning rates."""
