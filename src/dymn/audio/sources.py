"""From what a user names as a recording to a seekable binary handle: paths, standard input, FIFOs, file objects.

What cannot be sought in (a pipe, a socket, a FIFO) is copied to a temporary file first, in memory up to `SPOOL_MEMORY` bytes and
on disk beyond, so that a stream of any length is held in bounded memory.
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
from typing import IO, Any, BinaryIO, TypeAlias, cast

from dymn.errors import AudioError, visible

Source: TypeAlias = "str | os.PathLike[str] | BinaryIO"
"""A path, "-" for standard input, or a binary file object (read from where it stands)."""

SPOOL_MEMORY = 64 * 2**20
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
def opened(source: Source) -> Iterator[BinaryIO]:
    """Open `source` as a seekable binary handle that stands at its start.

    A handle that this function opened is closed at the end; a file object of the caller stays open. A pipe or FIFO that sends
    nothing for `IDLE_SECONDS` is given up.

    Raises:
        AudioError: if there is nothing to read, or reading is not possible; the message names the source and the remedy.
    """
    name = display(source)
    with contextlib.ExitStack() as stack:
        if is_stdin(source):
            handle = _from_stdin(stack)
        elif isinstance(source, (str, bytes, os.PathLike)):
            handle = _from_path(name, os.fspath(source), stack)
        elif hasattr(source, "read"):
            handle = _from_object(name, source, stack)
        else:
            raise AudioError(
                f"A recording cannot be read from {type(source).__name__}. Give a path, '-' or a binary file object; for samples in "
                "memory use dymn.audio.reading.from_array(array, sample_rate)."
            )
        yield handle


def _from_path(name: str, path: str | bytes, stack: contextlib.ExitStack) -> BinaryIO:
    if os.path.isdir(path):
        raise AudioError(f"{name} is a directory. Give a file; dymn.audio.reading.find lists the recordings of a directory.")
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its writer for ever. Regular files ignore the flag.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        handle = stack.enter_context(os.fdopen(os.open(path, flags), "rb"))
    except FileNotFoundError as error:
        hint = " Addresses are not read: download the file first." if _ADDRESS.match(name) else ""
        raise AudioError(f"The file {name} does not exist. Check the path; relative ones start at {display(Path.cwd())}.{hint}") from error
    except PermissionError as error:
        raise AudioError(f"The file {name} may not be read: permission denied. Allow it with chmod or choose another file.") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"The file {name} cannot be opened: {reason(error)}. Check the path.") from error
    mode = os.fstat(handle.fileno()).st_mode
    if stat.S_ISREG(mode):
        return _not_empty(name, handle)
    if stat.S_ISFIFO(mode):
        return _spool(name, lambda: _when_ready(name, handle.fileno(), lambda: os.read(handle.fileno(), _CHUNK)), stack)
    raise AudioError(f"{name} is a device or a socket. Give a regular file, a FIFO, or '-' for standard input.")


def _from_stdin(stack: contextlib.ExitStack) -> BinaryIO:
    name = display("-")
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or getattr(stream, "closed", False):
        raise AudioError("Standard input is closed. Pipe a recording into it, or give a path instead of '-'.")
    if sys.stdin.isatty():
        raise AudioError("Nothing is piped into standard input. Use: dymn tag - < recording.wav, or give a path instead of '-'.")
    return _from_object(name, stream, stack)


def _from_object(name: str, stream: Any, stack: contextlib.ExitStack) -> BinaryIO:
    on_disk = isinstance(getattr(stream, "raw", stream), io.FileIO)  # not GzipFile and the like: their fileno is another file's
    try:
        if not stream.readable():
            raise AudioError(f"{name} is not open for reading. Open it in binary mode ('rb').")
        if on_disk and stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.tell() == 0:
            return _not_empty(name, stream)  # from its start: no copy
    except AttributeError:
        pass  # a minimal file object: reading tells
    except (OSError, ValueError) as error:
        raise AudioError(f"{name} cannot be read: {reason(error)}. Give an open, readable binary file object.") from error
    if on_disk and os.name == "posix":
        read = stream.read1 if hasattr(stream, "read1") else stream.read
        return _spool(name, lambda: _when_ready(name, stream.fileno(), lambda: read(_CHUNK)), stack)
    return _spool(name, lambda: stream.read(_CHUNK), stack)


def _not_empty(name: str, handle: Any) -> BinaryIO:
    if os.fstat(handle.fileno()).st_size == 0:
        raise AudioError(f"The file {name} is empty (0 bytes). Copy or record it again.")
    return cast(BinaryIO, handle)


def _when_ready(name: str, descriptor: int, read: Callable[[], Any]) -> Any:
    """Read once, when there is something to read; give up after `IDLE_SECONDS` of silence."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    if not poll.poll(IDLE_SECONDS * 1000):
        raise AudioError(f"{name} sent nothing for {IDLE_SECONDS:g} s. Start what writes to it first, or record to a file.")
    return read()


def _spool(name: str, read: Callable[[], Any], stack: contextlib.ExitStack) -> BinaryIO:
    """Copy all that `read` returns to a temporary file, until it returns nothing."""
    spool: IO[bytes] = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY))  # noqa: SIM115
    limit = min(SPOOL_LIMIT, shutil.disk_usage(tempfile.gettempdir()).free // 2 + SPOOL_MEMORY)
    size = 0
    while True:
        try:
            chunk = read()
        except AudioError:
            raise
        except Exception as error:
            raise AudioError(f"{name} cannot be read: {reason(error)}. Give an open, readable binary stream.") from error
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            kind = "text" if isinstance(chunk, str) else type(chunk).__name__
            raise AudioError(f"{name} gave {kind} instead of bytes. Open it in binary mode ('rb') and blocking.")
        if not chunk:
            break
        size += len(chunk)
        if size > limit:
            raise AudioError(f"{name} sent more than {limit / 2**30:.1f} GiB. Record it to a file and give that.")
        try:
            spool.write(chunk)
        except OSError as error:
            raise AudioError(f"{name} cannot be buffered in {tempfile.gettempdir()}: {reason(error)}. Free space or set TMPDIR.") from error
    if size == 0:
        raise AudioError(f"{name} ended before it sent anything. Check what writes to it.")
    spool.seek(0)
    return cast(BinaryIO, spool)


def reason(error: BaseException) -> str:
    """Return what went wrong, in the words of the system or library, without its final full stop."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
