"""What commands write: tags, events and embeddings as text, tables and files."""
