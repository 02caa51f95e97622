"""Reading of weights files, once and with their digest, so that the verified bytes are used; and writing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dymn.errors import UnknownModelError, WeightsError
from dymn.system.files import atomic_write, digest_of, open_regular

MAX_FILE = 2**31
"""The most bytes of a file of weights."""

DownloadProgress = Callable[[int, "int | None"], None]
"""Called during a download with the number of bytes received, and the total or None if the server does not give it."""


class WeightsFile(NamedTuple):
    """A file of weights: its path, the number of its bytes, their SHA-256 in hexadecimal digits, and the bytes."""

    path: Path
    size: int
    digest: str
    content: bytes


def read_file(path: Path, most: int = MAX_FILE) -> WeightsFile:
    """Read a file of weights, of at most `most` bytes.

    Raises:
        WeightsError: if the file is missing, cannot be read, is not a regular one, or is larger.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size + 1) if size <= most else b""
    except FileNotFoundError as error:
        raise UnknownModelError(f"There is no file {path}. Give the path of a checkpoint.") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    if max(size, len(content)) > most:
        raise WeightsError(f"{path} has {size:,} bytes; a file of weights has at most {most:,}.")
    return WeightsFile(path, len(content), hashlib.sha256(content).hexdigest(), content)


def hash_file(path: Path) -> WeightsFile:
    """Return path, size and digest of a regular file of any size without its content, or raise a `WeightsError`."""
    try:
        with open_regular(path) as file:
            return WeightsFile(path, os.fstat(file.fileno()).st_size, digest_of(file), b"")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file, all or nothing; a `WeightsError` if it cannot be written."""
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}. Use another location.") from error
