"""Sources of recordings: paths, standard input, FIFOs, file objects.

Sources that do not support seeking (pipes, sockets, FIFOs, Python objects) are copied to a temporary file first.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from dymn.audio.content import SPOOL_MEMORY, Content, spool
from dymn.errors import AudioError, visible

FileLike: TypeAlias = "str | os.PathLike[str] | BinaryIO"
"""A path, "-" for standard input, or a binary file object (read from its position)."""

SPOOL_LIMIT = 8 * 2**30
"""The most bytes taken from a stream: a little more than twelve hours of 16-bit stereo at 44.1 kHz."""
IDLE_SECONDS = 30.0
"""How long a pipe or FIFO may stay silent before reading gives up."""

_CHUNK = 2**20
_ADDRESS = re.compile(r"[a-z]{2,}:/", re.IGNORECASE)  # paths lose one of the slashes


def display(source: object) -> str:
    """Return a name for messages: printable whatever bytes the path is made of."""
    if isinstance(source, (str, bytes, os.PathLike)):
        name = os.fsdecode(source) or "'' (an empty path)"
        if name == "-":
            return "standard input"
    else:
        inner = getattr(source, "name", None)
        name = inner if isinstance(inner, str) else f"the {type(source).__name__} object"
    return visible(name)


def is_stdin(source: object) -> bool:
    """Whether `source` is "-", the name of standard input."""
    return isinstance(source, (str, bytes, os.PathLike)) and os.fsdecode(source) == "-"


@contextlib.contextmanager
def opened(source: FileLike) -> Iterator[Content]:
    """Open `source` and return its bytes; a file object of the caller is read from its position.

    What this function opens is closed at the end of the block. A file object of the caller stays open, and its position
    does not change if it is a regular file at its start. A pipe or FIFO that sends nothing for `IDLE_SECONDS` is an
    error.

    Raises:
        AudioError: if there is nothing to read, or reading is not possible; the message names the source and the
            remedy.
    """
    name = display(source)
    with contextlib.ExitStack() as stack:
        if is_stdin(source):
            content = _from_stdin(stack)
        elif isinstance(source, (str, bytes, os.PathLike)):
            content = _from_path(name, os.fspath(source), stack)
        elif hasattr(source, "read"):
            content = _from_object(name, source, stack)
        else:
            raise AudioError(
                f"A recording cannot be read from {type(source).__name__}. Give a path, '-' or a binary file object; "
                "for samples in memory use dymn.audio.reading.from_array(array, sample_rate)."
            )
        yield content


def _from_path(name: str, path: str | bytes, stack: contextlib.ExitStack) -> Content:
    if os.path.isdir(path):
        raise AudioError(f"{name} is a folder. Give one of the files in it.")
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its writer for ever. Regular files ignore the flag.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        hint = " URLs are not supported: download the file first." if _ADDRESS.match(name) else ""
        here = display(Path.cwd())
        raise AudioError(
            f"The file {name} does not exist. Check the path; relative ones start at {here}.{hint}"
        ) from error
    except PermissionError as error:
        raise AudioError(
            f"The file {name} cannot be read: permission denied. Allow access with chmod, or give another file."
        ) from error
    except (OSError, ValueError) as error:
        raise AudioError(f"The file {name} cannot be opened: {reason(error)}. Check the path.") from error
    stack.callback(os.close, descriptor)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return _not_empty(name, descriptor)
    if stat.S_ISFIFO(mode):
        return _spooled(name, lambda: _when_ready(name, descriptor, lambda: os.read(descriptor, _CHUNK)), stack)
    raise AudioError(f"{name} is a device or a socket. Give a regular file, a named pipe, or '-' for standard input.")


def _from_stdin(stack: contextlib.ExitStack) -> Content:
    name = display("-")
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or getattr(stream, "closed", False):
        raise AudioError("Standard input is closed. Pipe a recording into it, or give a path instead of '-'.")
    if sys.stdin.isatty():
        raise AudioError(
            "Nothing is piped into standard input. Use: dymn tag - < recording.wav, or give a path instead of '-'."
        )
    return _from_object(name, stream, stack)


def _from_object(name: str, stream: Any, stack: contextlib.ExitStack) -> Content:
    # GzipFile and others have the fileno of another file
    on_disk = isinstance(getattr(stream, "raw", stream), io.FileIO)
    try:
        if not stream.readable():
            raise AudioError(f"{name} is not open for reading. Open it in binary mode ('rb').")
        if on_disk and stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.tell() == 0:
            return _shared(name, stream.fileno(), stack)
    except AttributeError:
        pass  # a minimal file object: reading it raises the error
    except (OSError, ValueError) as error:
        raise AudioError(
            f"{name} cannot be read: {reason(error)}. Give an open, readable binary file object."
        ) from error
    if on_disk and os.name == "posix":
        read = stream.read1 if hasattr(stream, "read1") else stream.read
        return _spooled(name, lambda: _when_ready(name, stream.fileno(), lambda: read(_CHUNK)), stack)
    return _spooled(name, lambda: stream.read(_CHUNK), stack)


def _shared(name: str, descriptor: int, stack: contextlib.ExitStack) -> Content:
    """Read a file of the caller, who may close it, through a descriptor of our own, and restore its position."""
    place = os.lseek(descriptor, 0, os.SEEK_CUR)  # the position is common to both
    own = os.dup(descriptor)
    stack.callback(os.close, own)
    stack.callback(os.lseek, own, place, os.SEEK_SET)
    return _not_empty(name, own)


def _not_empty(name: str, descriptor: int) -> Content:
    content = Content(descriptor)
    if content.size == 0:
        raise AudioError(f"The file {name} is empty (0 bytes). Copy or record it again.")
    return content


def _when_ready(name: str, descriptor: int, read: Callable[[], Any]) -> Any:
    """Read once, when there is something to read; give up after `IDLE_SECONDS` of silence."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    if not poll.poll(IDLE_SECONDS * 1000):
        raise AudioError(
            f"{name} sent nothing for {IDLE_SECONDS:g} s. Start the program that writes to it first, or record to a "
            "file."
        )
    return read()


def _spooled(name: str, read: Callable[[], Any], stack: contextlib.ExitStack) -> Content:
    """Copy all that `read` returns to a temporary file, until it returns nothing."""
    copy = stack.enter_context(spool())
    limit = min(SPOOL_LIMIT, shutil.disk_usage(tempfile.gettempdir()).free // 2 + SPOOL_MEMORY)
    while True:
        try:
            chunk = read()
        except AudioError:
            raise
        except Exception as error:
            raise AudioError(
                f"{name} cannot be read: {reason(error)}. Give an open, readable binary stream."
            ) from error
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            kind = "text" if isinstance(chunk, str) else type(chunk).__name__
            raise AudioError(f"{name} returned {kind} instead of bytes. Open it in binary ('rb') and blocking mode.")
        if not chunk:
            break
        if copy.size + len(chunk) > limit:
            raise AudioError(f"{name} sent more than {limit / 2**30:.1f} GiB. Record it to a file, and give its path.")
        try:
            copy.write(chunk)
        except OSError as error:
            where = tempfile.gettempdir()
            raise AudioError(
                f"{name} cannot be buffered in {where}: {reason(error)}. Free space or set TMPDIR."
            ) from error
    if copy.size == 0:
        raise AudioError(f"{name} ended before it sent anything. Check the program that writes to it.")
    return copy.content()


@contextlib.contextmanager
def reading_errors(name: str) -> Iterator[None]:
    """Turn an error of the system while a recording is read into an AudioError."""
    try:
        yield
    except OSError as error:
        raise AudioError(f"{name} cannot be read: {reason(error)}. Check the disk or the connection.") from error


def reason(error: BaseException) -> str:
    """Return the message of an error of the system or a library, without the final full stop."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
