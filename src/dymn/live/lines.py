"""Lines of JSON that are appended to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def json_line(message: dict[str, Any]) -> str:
    """Return a message as a line of JSON without its line feed."""
    return json.dumps(message, ensure_ascii=False)


class LineFile:
    """Appends lines of JSON to a file, each with one write, so that several programs may append to it.

    The file is opened for each line: if it is moved, for example by log rotation, it is created again. If a program was
    killed within a line, or the disk was full, the next line begins on a line of its own.
    """

    def __init__(self, path: str | Path, note: Callable[[str], None] | None = None) -> None:
        """Prepare to append; the folder is created if it does not exist.

        Args:
            path: the file.
            note: called with the number of lines that could not be written; without it, the first one is an error.

        Raises:
            OSError: if the file cannot be written.
        """
        self._path, self._note, self._lost, self._failed = Path(path), note, 0, False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._end_line()

    def _end_line(self) -> None:
        with self._path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END) if file.seekable() else 0
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def write(self, message: dict[str, Any]) -> None:
        """Append a message.

        Raises:
            OSError: if the file cannot be written, and there is no `note`.
        """
        data = f"{json_line(message)}\n".encode(errors="backslashreplace")
        try:
            if self._failed:
                self._end_line()
            with self._path.open("ab", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError(28, os.strerror(28))
        except OSError as error:
            self._failed = True
            if self._note is None:
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            self._lost += 1
            if self._lost & (self._lost - 1) == 0:  # the first, second, fourth, eighth … one
                lines = "1 line was" if self._lost == 1 else f"{self._lost} lines were"
                self._note(f"{lines} not written to {self._path} ({error.strerror}).")
        else:
            self._failed = False
