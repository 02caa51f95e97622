"""Classifiers of one's own on a network's embeddings: labelled clips in, a checkpoint out. No PyTorch."""
