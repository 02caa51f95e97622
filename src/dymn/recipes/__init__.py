"""The paper's training runs, and dymn's own, as TOML files."""
