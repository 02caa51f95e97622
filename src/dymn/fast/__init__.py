"""Networks for inference alone: the same numbers in less time."""
