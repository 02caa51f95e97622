"""Custom classifiers on a network's embeddings: labelled clips in, a checkpoint out, without PyTorch."""
