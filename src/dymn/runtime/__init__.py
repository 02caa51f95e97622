"""A network computed fast: one folded form and the backends that run it."""
