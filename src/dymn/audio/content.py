"""Random access to the bytes of a recording, for the parsers of containers and the decoders.

A recording is a file descriptor. Decoders written in C read from it directly, without calling Python code, so that a
signal such as Ctrl-C cannot raise an exception inside them, which they would treat as damage.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

SPOOL_MEMORY = 64 * 2**20
"""The most bytes of a copy that are kept in memory; a larger one goes to disk."""

_CHUNK = 2**20


class Content:
    """The bytes behind a file descriptor, which must support seeking.

    Attributes:
        descriptor: of the file; its position is moved by whoever decodes from it.
        size: of the file in bytes, when it was opened.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer at the end. The position of the descriptor does not matter."""
        size = min(size, self.size - offset)
        if size <= 0 or offset < 0:
            return b""
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, size, offset)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        return os.read(self.descriptor, size)

    def rewind(self) -> None:
        """Move the position of the descriptor to the start."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    @contextlib.contextmanager
    def part(self, start: int, end: int) -> Iterator[Content]:
        """Open a copy of the bytes from `start` to `end`, for decoders that have no start and end positions."""
        with spool() as copy:
            while start < end and (chunk := self.at(start, min(_CHUNK, end - start))):
                copy.write(chunk)
                start += len(chunk)
            yield copy.content()


class ContentFile(io.RawIOBase):
    """A content as a binary file, for decoders that take no descriptor.

    C code would drop an error of `read`, or a signal: it is stored, and the file looks as if it had ended.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._place = 0
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the error of an earlier `read`."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        try:
            view = memoryview(buffer).cast("B")
            data = self._content.at(self._place, len(view))
            view[: len(data)] = data
        except BaseException as error:
            self._error = error
            return 0
        self._place += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:  # noqa: D102
        data = bytearray(max(0, self._content.size - self._place) if size < 0 else size)
        return bytes(data[: self.readinto(data)])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._content.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:  # noqa: D102
        return self._place


class Spool:
    """A temporary file: in memory where the system has files in memory, and on disk beyond `SPOOL_MEMORY` bytes."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._in_memory = False
        self._file = self._open()
        self.size = 0

    def _open(self) -> IO[bytes]:
        if hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):
                descriptor = os.memfd_create("dymn")
                self._in_memory = True
                return self._stack.enter_context(os.fdopen(descriptor, "w+b", buffering=0))
        return self._on_disk()

    def _on_disk(self) -> IO[bytes]:
        self._in_memory = False
        return self._stack.enter_context(tempfile.TemporaryFile(buffering=0))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        if self._in_memory and self.size + len(data) > SPOOL_MEMORY:
            before, self._file = self._file, self._on_disk()
            before.seek(0)
            while chunk := before.read(_CHUNK):
                self._append(chunk)
            before.close()
        self._append(data)
        self.size += len(data)

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while len(view):  # a file without buffer may take a part
            view = view[self._file.write(view) :]

    @property
    def descriptor(self) -> int:
        """The descriptor of the file, for encoders that write to it themselves."""
        return self._file.fileno()

    def content(self) -> Content:
        """Return what was written."""
        return Content(self._file.fileno())


@contextlib.contextmanager
def spool() -> Iterator[Spool]:
    """Open a temporary file that disappears at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield Spool(stack)
