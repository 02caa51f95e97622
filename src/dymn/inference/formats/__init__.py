"""Output formats: tags, events and embeddings as text, tables and files."""
