"""A recording in: sources, containers, decoding, windows."""
