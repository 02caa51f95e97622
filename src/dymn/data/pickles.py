"""Reading the few pickles of datasets that this field publishes without executing them.

These readers accept plain containers, text and numbers, and for numpy's arrays of objects a stand-in that only keeps the list of
elements.
"""

from __future__ import annotations

import io
import pickle
import tokenize
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dymn.errors import DataError
from dymn.system.unpickling import ARCHIVE_FAILURES, FAILURES, Plain

MAX_BYTES = 512 * 2**20
MAX_TEXT = 4096
"""The longest text in an array: each of its elements takes as much memory as the longest."""
NPY_FAILURES = (*FAILURES, SyntaxError, tokenize.TokenError)
"""What a damaged or hostile .npy file makes numpy raise, whose header is in the notation of Python."""


class _Elements:
    """Stands in for an array of objects: takes numpy's state tuple and keeps the elements."""

    elements: list[Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[4], list):
            raise pickle.UnpicklingError("it holds something else than a list of elements")
        self.elements = state[4]


class _Type:
    """Stands in for the array's data type, of which nothing is used."""

    def __setstate__(self, state: Any) -> None:
        pass


def _new_elements(*_: Any) -> _Elements:
    return _Elements()


def _new_type(*_: Any) -> _Type:
    return _Type()


class _ObjectArray(Plain):
    """Additionally builds the stand-ins for numpy's array of objects."""

    ALLOWED = {
        ("multiarray", "_reconstruct"): _new_elements,
        ("numpy", "ndarray"): _Elements,
        ("numpy", "dtype"): _new_type,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = "multiarray"
        if (module, name) in self.ALLOWED:
            return self.ALLOWED[module, name]
        return super().find_class(module, name)


def read_index(path: Path) -> dict[str, int]:
    """Return the mapping name → row of a published `fname_to_index.pkl`.

    Raises:
        DataError: if the file is missing or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES} bytes; it is no index of clips.")
        index = Plain(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except FAILURES as error:
        raise DataError(f"{path} was not executed: it must be a pickled dict of names to row numbers, but {error}.") from error
    if not isinstance(index, dict) or not all(isinstance(k, str) and type(v) is int for k, v in index.items()):
        raise DataError(f"{path} must hold a dict of names to row numbers.")
    return index


def read_npz(path: Path, names: tuple[str, ...], file: BinaryIO | None = None) -> dict[str, npt.NDArray[Any]]:
    """Return some arrays of an .npz file; arrays of objects come as arrays of text, without executing their pickles.

    `file` is the opened file, if it is open already.

    Raises:
        DataError: if the file cannot be read, an array is missing or too large, or is not what it should be.
    """
    try:
        with zipfile.ZipFile(file or path) as archive:
            return {name: _read_member(archive, path, name) for name in names}
    except (OSError, ValueError, *ARCHIVE_FAILURES) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}.") from error


def _read_member(archive: zipfile.ZipFile, path: Path, name: str) -> npt.NDArray[Any]:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        raise DataError(f"{path} has no array {name!r}; it holds {', '.join(archive.namelist())}.") from error
    if info.file_size > MAX_BYTES:
        raise DataError(f"{path}: {name} has {info.file_size} bytes; at most {MAX_BYTES} are allowed.")
    content = io.BytesIO(archive.read(info))
    try:
        version = np.lib.format.read_magic(content)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(content)
        if kind != np.dtype(object):
            content.seek(0)
            return np.asarray(np.lib.format.read_array(content, allow_pickle=False))
        stored = _ObjectArray(content).load()
    except NPY_FAILURES as error:
        raise DataError(f"{path}: {name} was not executed: it must be an array of text or numbers, but {error}.") from error
    elements = getattr(stored, "elements", None)
    if elements is None or len(elements) != int(np.prod(shape)) or not all(map(_is_short_text, elements)):
        raise DataError(f"{path}: {name} must be an array of text of at most {MAX_TEXT} letters each.")
    return np.array([item.decode() if isinstance(item, bytes) else item for item in elements], str).reshape(shape)


def _is_short_text(item: object) -> bool:
    return isinstance(item, (str, bytes)) and len(item) <= MAX_TEXT
