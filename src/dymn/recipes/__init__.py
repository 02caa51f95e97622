"""Every training run of the paper, and dymn's own, as TOML files."""
