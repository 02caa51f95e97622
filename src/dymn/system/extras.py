"""Optional dependencies: whether they are installed, and what to say where they are not."""

from __future__ import annotations

import importlib.util
import sys

from dymn.errors import MissingExtraError


def has_torch() -> bool:
    """Return whether PyTorch can be imported, without importing it."""
    if "torch" in sys.modules:
        return sys.modules["torch"] is not None  # None where somebody has blocked it
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str) -> None:
    """Refuse what needs PyTorch where it is not installed.

    Raises:
        MissingExtraError: naming the purpose and the extra.
    """
    if not has_torch():
        raise MissingExtraError(purpose, "torch")
