"""From recordings to tags, events and embeddings."""
