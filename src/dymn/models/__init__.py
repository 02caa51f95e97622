"""The paper: layers, blocks, Table I, the front end."""
