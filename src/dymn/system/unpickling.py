"""Pickles of strangers, read without executing them.

A pickle can call any function while it is loaded. `Plain` refuses every call that a subclass has not replaced by one of its own.
"""

from __future__ import annotations

import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, ClassVar

FAILURES = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError),
    *(AssertionError, NameError, RecursionError, struct.error),
)
"""What a damaged or hostile pickle makes `Plain.load` raise."""
ARCHIVE_FAILURES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What a damaged or hostile archive makes zipfile raise; a RuntimeError where it needs a password or a packing that zipfile lacks."""


class Plain(pickle._Unpickler):
    """Builds dict, list, tuple, str, bytes, int, float, bool and None, and nothing else.

    Python's own implementation, not the one in C: a damaged file cannot make it reserve memory for a table of its choosing. Keys
    of a dict are text or numbers, and there are no sets, for a tuple that holds the same tuple twice, and so on, is small to
    store and takes for ever to hash.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        """Refuse to look up anything."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def load_setitem(self) -> None:
        """Put an item into a dict."""
        _check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        """Put items into a dict."""
        _check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        """Make a dict of items."""
        _check_keys(self.stack[::2])
        super().load_dict()  # type: ignore[misc]

    def load_set(self) -> None:
        """Refuse a set."""
        raise pickle.UnpicklingError("it holds a set")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        **dict.fromkeys((pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), load_set),
    }


def _check_keys(keys: Iterable[object]) -> None:
    for key in keys:
        if not isinstance(key, (str, bytes, int, float)):
            raise pickle.UnpicklingError(f"it holds a dict with a {type(key).__name__} as a key")
