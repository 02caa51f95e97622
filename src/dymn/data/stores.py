"""Stores of encoded clips: single files, members of tar shards, rows of HDF5 files.

A store opens its files on first use in each process, so that it can be sent to worker processes and survives a fork.
Names from a manifest or an archive never refer to files outside the dataset, and sizes are bounded.
"""

from __future__ import annotations

import bisect
import itertools
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dymn.data.tar import Member
from dymn.errors import DataError, DymnError
from dymn.system.extras import needing
from dymn.system.files import open_regular, read_bounded

MAX_BYTES = 512 * 2**20
MAX_OPEN = 128
MAX_GAP, MAX_PIECE = 64 * 2**10, 8 * 2**20
"""Clips of a tar file are read at once if the gap between them is at most MAX_GAP, up to MAX_PIECE bytes."""


class Closable(Protocol):
    """Anything that is open."""

    def close(self) -> None:
        """Close it."""
        ...


Handle = TypeVar("Handle", bound=Closable)


class Store(ABC):
    """Encoded clips by position.

    Attributes:
        parts: number of the file of each clip, if files must be read sequentially; otherwise None.
        fingerprints: fingerprint of the original of each clip, if it differs from that of its bytes; otherwise None.
    """

    parts: npt.NDArray[np.int64] | None = None
    fingerprints: npt.NDArray[np.int64] | None = None

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the encoded bytes of clip `i`.

        Raises:
            OSError, DataError: if they cannot be read, or are more than `MAX_BYTES`.
        """

    def read_many(self, indices: Sequence[int]) -> Iterator[tuple[int, bytes | Exception]]:
        """Yield positions and contents of some clips, or the reasons why there are none, in the fastest order."""
        for i in indices:
            try:
                yield i, self.read(i)
            except (OSError, DataError) as error:
                yield i, error

    @abstractmethod
    def sizes(self) -> list[int]:
        """Return the size of every clip in bytes, or -1 where it is missing or unknown without reading."""

    @abstractmethod
    def stamps(self) -> list[str]:
        """Return names, sizes and times of the store's files, which change when a file is rewritten."""


class FilePool(Generic[Handle]):
    """The last `MAX_OPEN` open files, by path; a forked process and a pickled copy open their own."""

    def __init__(self, opener: Callable[[Path], Handle]) -> None:
        self._opener = opener
        self._process = -1
        self._handles: dict[Path, Handle] = {}

    def __getitem__(self, path: Path) -> Handle:
        if self._process != os.getpid():
            self._process, self._handles = os.getpid(), {}
        handle = self._handles.pop(path) if path in self._handles else self._opener(path)
        self._handles[path] = handle
        if len(self._handles) > MAX_OPEN:
            self._handles.pop(next(iter(self._handles))).close()
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {"_opener": self._opener, "_process": -1, "_handles": {}}


def inside(root: Path, name: str) -> Path:
    """Return the path of `name` below `root`.

    Raises:
        DataError: if `name` is empty or absolute, or refers to a file outside `root` (through ".." or a link).
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts or Path(name).is_absolute():
        raise DataError(
            f"{name!r} is not a path inside {root}. Write paths relative to that folder, or specify another one for "
            "`dymn train` with --set data.options.root=FOLDER."
        )
    path = root / relative
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise DataError(
            f"{name!r} resolves to {resolved}, outside {root}. Give its absolute path, or specify a folder that "
            "contains all files for `dymn train` with --set data.options.root=FOLDER."
        )
    return path


class FileStore(Store):
    """A store with one file per clip."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._sizes: list[int] | None = None

    def read(self, i: int) -> bytes:
        """Return the file's content."""
        return read_bounded(self.paths[i], MAX_BYTES)

    def sizes(self) -> list[int]:
        """Return file sizes, -1 for missing files. The file system is queried once."""
        if self._sizes is None:
            self._sizes = [_size(path) for path in self.paths]
        return self._sizes

    def stamps(self) -> list[str]:
        """Return path, size and time of every file."""
        return [_stamp(path) for path in self.paths]


class TarStore(Store):
    """Members of tar files, read in place: the archives are never unpacked.

    With `streams`, clips are in reading order, and `read_many` reads adjacent clips at once.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        places: npt.NDArray[np.int64],
        *,
        fingerprints: npt.NDArray[np.int64] | None = None,
        streams: bool = False,
    ) -> None:
        """Take the archives, and each clip's archive number, and the offset and size of its bytes, as [N, 3]."""
        self.paths, self.places, self.fingerprints = list(paths), places, fingerprints
        self.parts = places[:, 0] if streams else None
        self._files = FilePool(open_regular)

    def read(self, i: int) -> bytes:
        """Return the member's content."""
        part, offset, size = self.places[i].tolist()
        return read_member(Member(self.paths[part], offset, size), self._files)

    def read_many(self, indices: Sequence[int]) -> Iterator[tuple[int, bytes | Exception]]:
        """Yield the contents of the clips in file order, or why there are none; adjacent clips are read at once."""
        for run in self._runs(sorted(set(indices))):
            part, start, _ = self.places[run[0]].tolist()
            end = int(self.places[run[-1], 1:].sum())
            try:
                piece = memoryview(read_member(Member(self.paths[part], start, end - start), self._files))
            except (OSError, DataError):
                yield from super().read_many(run)
                continue
            for i in run:
                offset, size = self.places[i, 1:].tolist()
                yield i, bytes(piece[offset - start : offset - start + size])

    def _runs(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices in runs that are worth reading at once."""
        run: list[int] = []
        for i in indices:
            part, offset, size = self.places[i].tolist()
            if run:
                first, last = self.places[run[0]].tolist(), self.places[run[-1]].tolist()
                if (
                    part != last[0]
                    or not 0 <= offset - last[1] - last[2] <= MAX_GAP
                    or offset + size - first[1] > MAX_PIECE
                ):
                    yield run
                    run = []
            run.append(i)
        if run:
            yield run

    def sizes(self) -> list[int]:
        """Return member sizes."""
        return [int(size) for size in self.places[:, 2]]

    def stamps(self) -> list[str]:
        """Return path, size and time of every archive."""
        return [_stamp(path) for path in sorted({self.paths[part] for part in set(self.places[:, 0].tolist())})]


def tar_store(members: Sequence[Member]) -> TarStore:
    """Return the store of some members of tar files."""
    paths = sorted({member.path for member in members})
    number = {path: part for part, path in enumerate(paths)}
    places = np.array([(number[member.path], member.offset, member.size) for member in members], dtype=np.int64)
    return TarStore(paths, places.reshape(-1, 3))


def read_member(member: Member, files: FilePool[BinaryIO]) -> bytes:
    """Return the content of a tar member."""
    if member.size > MAX_BYTES:
        raise DataError(f"A member of {member.path} has {member.size} bytes; at most {MAX_BYTES} are allowed.")
    file = files[member.path]
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) != member.size:
        raise DataError(
            f"{member.path} ends before byte {member.offset + member.size}. The file is incomplete; copy or download "
            "it again."
        )
    return content


class Hdf5Store(Store):
    """Rows of a variable-length uint8 dataset in HDF5 files, with one encoded file per row."""

    def __init__(self, files: Sequence[tuple[Path, int]], dataset: str) -> None:
        """Take files with their numbers of rows; positions count through them in this order."""
        self.files = list(files)
        self.ends = list(itertools.accumulate(rows for _, rows in files))
        self.dataset = dataset
        self._files = FilePool(open_hdf5)

    def read(self, i: int) -> bytes:
        """Return the bytes of the row."""
        part = bisect.bisect_right(self.ends, i)
        path, rows = self.files[part]
        row = i - self.ends[part] + rows
        with reading_hdf5(path):
            content = self._files[path][self.dataset][row]
        if getattr(content, "dtype", None) != np.uint8 or content.nbytes > MAX_BYTES:
            raise DataError(f"Row {row} of {path} must be an array of at most {MAX_BYTES} bytes.")
        return bytes(content.tobytes())

    def sizes(self) -> list[int]:
        """Return -1 for every row, because the size is known only when the row is read."""
        return [-1] * (self.ends[-1] if self.ends else 0)

    def stamps(self) -> list[str]:
        """Return path, size and time of every file."""
        return [_stamp(path) for path, _ in self.files]


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading; raise a DataError if it cannot be read."""
    with needing("Reading HDF5 datasets", "hdf5"):
        import h5py
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file: {error}.") from error


@contextmanager
def reading_hdf5(path: Path) -> Iterator[None]:
    """Turn the errors of h5py over a damaged file, which are of many types, into a `DataError`."""
    try:
        yield
    except DymnError:
        raise
    except Exception as error:
        raise DataError(f"{path} is damaged: {error}. Copy or download it again.") from error


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _stamp(path: Path) -> str:
    if not path.exists():
        return f"{path}\0missing"
    status = path.stat()
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
