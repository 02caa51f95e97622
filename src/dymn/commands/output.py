"""The output of a command: standard output, or a file that appears when it is complete."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import typer

from dymn.errors import ConfigError, visible
from dymn.system.files import atomic_write, check_writable, text_in

logger = logging.getLogger(__name__)

STDOUT_ERRORS = (errno.EBADF, errno.ENOSPC, errno.EIO)
"""The errors of a standard output that is closed, full or broken; errors of files have a file name."""


def open_closed_streams() -> None:
    """Open those of standard input, output and error that the caller closed, so that no other file gets their numbers.

    Standard input is then empty, writing to standard output is an error, and messages are dropped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)  # takes the lowest free number
            if name != "stdin":
                setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def silence_stdout() -> None:
    """Drop the rest of standard output."""
    with suppress(OSError):  # a stream without a descriptor, as in tests, has nothing to drop
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note_new_folder(path: Path) -> None:
    """Log that the folder of an output does not exist and will be made; its name may be mistyped."""
    folder = path.absolute().parent
    if not folder.exists():
        logger.warning("Creating the folder %s for %s.", folder, path.name)


def say(text: str) -> None:
    """Write a line about a complete output to standard output; if that fails, the command still succeeds."""
    try:
        typer.echo(text)
        sys.stdout.flush()
    except OSError:
        silence_stdout()


def check_file(path: Path) -> None:
    """Raise an error, before any work is done, if a file cannot be written.

    Raises:
        ConfigError: if `path` is a folder.
        OSError: if its folder cannot be written to.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give the path of a file.")
    check_writable(path)


@contextmanager
def binary_output(path: Path | None) -> Iterator[BinaryIO]:
    """Open standard output (None), a file that is replaced when the block ends, or a device or pipe directly.

    Raises:
        ConfigError: if `path` is a folder.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give the path of a file.")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        try:
            with path.open("wb") as stream:
                yield stream
        except OSError as error:
            if error.errno == errno.ENOSPC and error.filename is None:
                error.filename = str(path)
            raise
        return
    note_new_folder(path)
    with atomic_write(path) as file:
        yield file


@contextmanager
def text_output(path: Path | None) -> Iterator[TextIO]:
    """Open the same for text: files in UTF-8, standard output in its encoding, terminals with escaped controls."""
    if path is None:
        yield cast(TextIO, _Terminal(sys.stdout)) if sys.stdout.isatty() else sys.stdout
        sys.stdout.flush()
        return
    with binary_output(path) as file, text_in(file) as text:
        yield text


class _Terminal:
    """A terminal as a stream of text that escapes control characters in names of files and labels."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        return self._stream.write(visible(text, keep="\n\t"))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def aligned(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Return the lines of a table with aligned columns, those with an index in `right` to the right."""
    widths, right = [max(map(len, column)) for column in zip(*rows, strict=True)], set(right)
    return [
        "  ".join(cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]


def free_name(name: str, used: set[str]) -> str:
    """Return a file name, with a number if it is in `used` already, and add it there."""
    path = Path(name)
    number = 1
    while name.casefold() in used:
        number += 1
        name = str(path.with_stem(f"{path.stem}-{number}"))
    used.add(name.casefold())
    return name
