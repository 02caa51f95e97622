"""Fast inference: the folded form of a network and the backends that run it."""
