"""The way in which dymn was installed, and the command that adds an optional dependency to it."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata


def install_command(extra: str) -> str:
    """Return the command of pip, uv or pipx that adds an extra to this installation.

    An installation from a folder, an archive or a repository is named by its address, since an index may not have it;
    pip uses the installed package.
    """
    wanted = f"dymn[{extra}]"
    try:
        url = json.loads(metadata.distribution("dymn").read_text("direct_url.json") or "{}").get("url")
    except (metadata.PackageNotFoundError, ValueError, OSError):
        url = None
    address = f"{wanted} @ {url}" if url else wanted
    if os.path.exists(os.path.join(sys.prefix, "pipx_metadata.json")):
        return f"pipx install --force '{address}'"
    if os.path.exists(os.path.join(sys.prefix, "uv-receipt.toml")):
        return f"uv tool install --force '{address}'"
    try:
        with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as file:
            by_uv = any(line.startswith("uv =") for line in file)
    except (OSError, UnicodeDecodeError):
        by_uv = False
    return f"uv pip install '{address}'" if by_uv else f"pip install '{wanted}'"
