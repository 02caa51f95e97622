"""Where a command writes: standard output, or a file that appears only when it is complete."""

from __future__ import annotations

import errno
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from dymn.errors import ConfigError, visible
from dymn.system.files import atomic_write, text_in


@contextmanager
def binary_output(path: Path | None) -> Iterator[BinaryIO]:
    """Open standard output (None), a file that is replaced at once at the end, or a device or pipe, which is written to directly.

    Raises:
        ConfigError: if `path` is a folder.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give the name of a file to write to.")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        try:
            with path.open("wb") as stream:
                yield stream
        except OSError as error:
            if error.errno == errno.ENOSPC and error.filename is None:
                error.filename = str(path)
            raise
        return
    with atomic_write(path) as file:
        yield file


@contextmanager
def text_output(path: Path | None) -> Iterator[TextIO]:
    """Open the same for text: UTF-8, or standard output as it is; what a terminal could take for a command goes there as an escape."""
    if path is None:
        yield cast(TextIO, _Terminal(sys.stdout)) if sys.stdout.isatty() else sys.stdout
        sys.stdout.flush()
        return
    with binary_output(path) as file, text_in(file) as text:
        yield text


class _Terminal:
    """A terminal as a stream of text, in which names of files and labels cannot be taken for commands."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        return self._stream.write(visible(text, keep="\n\t"))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def free_name(name: str, used: set[str]) -> str:
    """Return a file name, with a number in it if it is in `used` already, and add it there."""
    path = Path(name)
    number = 1
    while name.casefold() in used:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    used.add(name.casefold())
    return name
