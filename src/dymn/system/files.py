"""Atomic files, at any time either the old file or the complete new one, and reading in bounded time and memory."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` (its name is `file.name`), which replaces `path` if the block succeeds.

    Missing folders are created. The old file remains until the new content is complete and on the disk; a link is kept,
    and its target is replaced.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full. Its file name is `path`, not that of the
            temporary file.
        KeyboardInterrupt: if one arrives, even if the block converts it to another error.
    """
    target = Path(os.path.realpath(path))
    outside = sys.exc_info()[1]  # the exception that the caller is handling
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        os.close(handle)
        with open(name, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        set_usual_mode(name)
        os.replace(name, target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if (interruption := _interruption_behind(error, outside)) is not None:
            raise interruption from None
        if isinstance(error, OSError) and error.filename is None:
            if error.errno in _NO_ROOM:
                error.filename = str(path)
            elif error.errno is None:  # numpy's, for an incomplete write
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def check_writable(path: str | Path) -> None:
    """Raise an OSError, whose file name is `path`, if a file cannot be created there, or within a folder that is there.

    Missing folders are not created; then the folder in which they would be is checked.
    """
    place = Path(os.path.realpath(path))
    place = place if place.is_dir() else place.parent
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_folder(path: str | Path) -> None:
    """Delete a folder with all its content. What cannot be deleted remains; a missing folder is no error.

    Raises:
        KeyboardInterrupt: if one arrives. `shutil.rmtree` before Python 3.12 may close a descriptor twice then, and
            raise an `OSError`.
    """
    outside = sys.exc_info()[1]
    try:
        shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        if (interruption := _interruption_behind(error, outside)) is not None:
            raise interruption from None
        raise


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder for temporary files, which is deleted at the end.

    Unlike `tempfile.TemporaryDirectory`, it raises an interruption during the deletion (see `remove_folder`).
    """
    folder = Path(tempfile.mkdtemp(prefix="dymn-"))
    try:
        yield folder
    finally:
        remove_folder(folder)


def _interruption_behind(error: BaseException, outside: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interruption that another error hides, such as that of an incomplete zip file, but not `outside`."""
    behind = error.__context__
    while behind is not outside and behind is not None and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__context__
    return behind if behind is not outside and isinstance(behind, KeyboardInterrupt) else None


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. A device, a pipe or a socket, which may block or never end, is refused.

    Raises:
        OSError: if the file cannot be opened, or is not a regular one.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)  # without O_NONBLOCK, opening a pipe would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    # Nothing is closed here if an interruption arrives: the file may have closed the descriptor already, whose number
    # may then be that of another file.
    return os.fdopen(descriptor, "rb")


def read_bounded(path: str | Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: if the file cannot be read, is not a regular one, or is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) if size <= most else b""  # a read reserves the requested memory
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def read_lines(path: str | Path, most: int = 2**24) -> list[str]:
    """Return the lines of a UTF-8 file of at most `most` bytes, without blank lines and surrounding spaces.

    Raises:
        OSError, UnicodeDecodeError: if the file cannot be read as text, is not a regular one, or is larger.
    """
    text = read_bounded(path, most).decode("utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


def digest_of(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of an open file, in hexadecimal digits, and restore its position."""
    start, digest = file.tell(), hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    file.seek(start)
    return digest.hexdigest()


@contextmanager
def text_in(file: BinaryIO) -> Iterator[TextIO]:
    """Write text to a binary file as UTF-8; the file stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    yield text
    text.flush()
    text.detach()


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV, each with a line feed at its end; a value with a line feed or a carriage return is quoted."""
    lines: list[str] = []
    # The writer quotes the letters of its line terminator and no others, and calls `write` once a row.
    csv.writer(_Lines(lines), lineterminator="\r\n").writerows(rows)
    return "".join(f"{line[:-2]}\n" for line in lines)


def write_csv(path: str | Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as a CSV file, atomically."""
    with atomic_write(path) as file, text_in(file) as text:
        text.write(csv_text(rows))


def json_values(value: Any) -> Any:
    """Return values as JSON types; numbers that are not finite (d' of a perfect ranking) become null."""
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Lines:
    """A file for the CSV writer that appends each row to a list."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock that ends with the process, and hold it; on platforms without such locks, do nothing."""
    with path.open("wb") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(file: BinaryIO) -> bool:
    """Lock an open file until it is closed, and return whether no other process has; without locks, always true."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def set_usual_mode(path: str | Path) -> None:
    """Replace the private mode of a temporary file by that of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
