"""Readers for the few pickles in which datasets of this field are published; nothing in them is executed.

They accept plain containers, text and numbers, and NumPy object arrays that contain text.
"""

from __future__ import annotations

import io
import math
import sys
import tokenize
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dymn.errors import DataError
from dymn.system.files import open_regular, read_bounded
from dymn.system.unpickling import ARCHIVE_FAILURES, FAILURES, Call, Stateful, load

MAX_BYTES = 512 * 2**20
MAX_TEXT = 4096
"""The longest text in an array: each of its elements takes as much memory as the longest."""
MAX_HEADER = 2**12  # bytes of the header of an .npy file
MAX_NESTING = 64
_NESTING = (b"(", b"[", b"{", b"-", b"+", b"~", b"not")  # what an expression of Python can be nested by
MAX_SPREAD = 64
"""How many times the letters of an array of text may be those in its file."""
NPY_FAILURES = (*FAILURES, SyntaxError, tokenize.TokenError)
"""The exceptions that a damaged or hostile .npy file, whose header is in the notation of Python, makes NumPy raise."""


class _Elements(Stateful):
    """Stands for an array of objects: takes NumPy's state tuple and keeps the elements."""

    elements: list[Any] | None = None

    def set_state(self, state: Any) -> None:
        """Keep the last entry of (version, shape, type, order, elements)."""
        if type(state) is not tuple or len(state) != 5 or type(state[4]) is not list:
            raise ValueError("it contains something other than a list of elements")
        self.elements = state[4]


_GLOBALS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Call(lambda *_: _Elements()) for core in ("core", "_core")},
    ("numpy", "ndarray"): None,  # the type of the array, and its data type, of which nothing is used
    ("numpy", "dtype"): Call(lambda *_: Stateful()),
}


class _NumpyType(Stateful):
    """Stands for a data type of NumPy: whole numbers of 1 to 8 bytes, in the byte order of its state."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise ValueError(f"it contains numbers of type {code!r:.20}")
        self.is_signed, self.order = code[0] == "i", "little"

    def set_state(self, state: Any) -> None:
        """Take the order of the bytes."""
        if type(state) is tuple and len(state) > 1 and state[1] == ">":
            self.order = "big"


def _scalar(kind: Any, content: Any = None) -> int:
    if not isinstance(kind, _NumpyType) or not isinstance(content, bytes):
        raise ValueError("it contains a scalar that is not a whole number")
    return int.from_bytes(content, "big" if kind.order == "big" else "little", signed=kind.is_signed)


_INDEX_GLOBALS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "scalar"): Call(_scalar) for core in ("core", "_core")},
    ("numpy", "dtype"): Call(_NumpyType),
    ("_codecs", "encode"): Call(lambda text, *_: text.encode("latin-1")),  # how protocol 2 writes bytes
}
MAX_INDEX = 2**24  # containers of an index: two million NumPy numbers take four


def read_index(path: Path) -> dict[str, int]:
    """Return the mapping name → row of a published `fname_to_index.pkl`; rows may be NumPy's whole numbers.

    Raises:
        DataError: if the file is missing or holds anything else.
    """
    try:
        index = load(read_bounded(path, MAX_BYTES), _INDEX_GLOBALS, max_containers=MAX_INDEX)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except FAILURES as error:
        raise DataError(
            f"{path} was not executed: it must be a pickled dict of names to row numbers, but {error}."
        ) from error
    if not isinstance(index, dict) or not all(isinstance(k, str) and type(v) is int for k, v in index.items()):
        raise DataError(f"{path} must contain a dict of names to row numbers.")
    return index


def read_npz(path: Path, names: tuple[str, ...], file: BinaryIO | None = None) -> dict[str, npt.NDArray[Any]]:
    """Return some arrays of an .npz file; arrays of objects come as arrays of text, without executing their pickles.

    `file` is the opened file, if it is open already.

    Raises:
        DataError: if the file cannot be read, an array is missing or too large, or is not what it should be.
    """
    try:
        with (
            nullcontext(file) if file is not None else open_regular(path) as content,
            zipfile.ZipFile(content) as archive,
        ):
            return {name: _read_member(archive, path, name) for name in names}
    except (OSError, ValueError, *ARCHIVE_FAILURES) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}.") from error


def read_header(content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order (True for Fortran's) and type of an .npy file, and seek to its values.

    Raises:
        one of `NPY_FAILURES`: if it is none.
    """
    major, _ = np.lib.format.read_magic(content)
    width = 2 if major == 1 else 4
    length = content.read(width)
    size = int.from_bytes(length, "little")
    text = content.read(min(size, MAX_HEADER))
    if len(length) < width or len(text) < size:
        raise ValueError(f"its header has {size:,} bytes, or ends too early")
    if sum(text.count(sign) for sign in _NESTING) > MAX_NESTING:  # Python's parser is not made for untrusted text
        raise ValueError("its header is nested more deeply than any type is")
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return read(io.BytesIO(length + text))


def _read_member(archive: zipfile.ZipFile, path: Path, name: str) -> npt.NDArray[Any]:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        raise DataError(f"{path} has no array {name!r}; it contains {', '.join(archive.namelist())}.") from error
    if info.file_size > MAX_BYTES:
        raise DataError(f"{path}: {name} has {info.file_size} bytes; at most {MAX_BYTES} are allowed.")
    try:
        with archive.open(info) as content:
            shape, _, kind = read_header(content)
            if kind != np.dtype(object):
                stored_bytes = info.file_size - content.tell()
                if kind.itemsize == 0 or kind.hasobject or math.prod(shape) * kind.itemsize != stored_bytes:
                    raise ValueError(f"its {stored_bytes:,} bytes do not match the {shape} of {kind} in its header")
                content.seek(0)
                array = np.asarray(np.lib.format.read_array(content, allow_pickle=False))
                content.read(1)  # at the end, zipfile compares the checksum
                if kind.kind == "U" and (array.astype(kind.newbyteorder("=")).view(np.uint32) > sys.maxunicode).any():
                    raise ValueError("its text contains numbers that are not characters")
                return array
            stored = load(content.read(), _GLOBALS)
        elements = getattr(stored, "elements", None)
    except NPY_FAILURES as error:
        raise DataError(
            f"{path}: {name} was not executed: it must be an array of text or numbers, but {error}."
        ) from error
    if elements is None or len(elements) != math.prod(shape) or not all(map(_is_short_text, elements)):
        raise DataError(f"{path}: {name} must be an array of text of at most {MAX_TEXT} letters each.")
    if len(elements) * max(map(len, elements), default=0) > MAX_SPREAD * info.file_size:
        raise DataError(
            f"{path}: {name} contains texts of such different lengths that its array would be many times larger than "
            "its file."
        )
    return np.array([item.decode() if isinstance(item, bytes) else item for item in elements], str).reshape(shape)


def _is_short_text(item: object) -> bool:
    return isinstance(item, (str, bytes)) and len(item) <= MAX_TEXT
