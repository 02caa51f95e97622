"""Reading recordings: sources, containers, decoding, windows."""
