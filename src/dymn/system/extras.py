"""Optional dependencies: whether they are installed, and the message if they are not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dymn.errors import MissingExtraError


@contextmanager
def needing(purpose: str, extra: str) -> Iterator[None]:
    """Import optional dependencies within a `with`.

    Raises:
        MissingExtraError: naming the purpose and the extra, if one is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(purpose, extra) from error


def has_torch() -> bool:
    """Return whether PyTorch can be imported, without importing it."""
    if "torch" in sys.modules:
        return sys.modules["torch"] is not None  # None where somebody has blocked it
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str) -> None:
    """Reject what needs PyTorch where it is not installed.

    Raises:
        MissingExtraError: naming the purpose and the extra.
    """
    if not has_torch():
        raise MissingExtraError(purpose, "torch")
