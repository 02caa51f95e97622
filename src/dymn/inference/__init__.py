"""Tags, events and embeddings of recordings."""
