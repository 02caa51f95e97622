"""The recordings of a run: each tree is walked once, and a file opened for inspection is not opened again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from dymn.audio import reading
from dymn.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from dymn.inference.windows import AudioLike


Expand = Callable[[str, Callable[[str, AudioError], None]], "Iterable[Path | str]"]


class Listed(NamedTuple):
    """A recording, a path or the address of one, and the index of the path that named it."""

    number: int
    path: Path | str


class Unreadable:
    """A recording that was found to be unreadable, as a file object that raises the error again without opening it."""

    def __init__(self, path: Path | str, error: AudioError) -> None:
        self.name = os.fspath(path)
        self.error = error

    def read(self, size: int = -1) -> bytes:
        """Raise the error."""
        raise self.error


class Discovery:
    """The recordings that paths name, as they are met; to be used in a `with`, and to be iterated over once.

    Attributes:
        lost: paths that name no recording and folders that cannot be listed, and why; complete when the iterator is
            exhausted.
        unlisted: the folders among them that cannot be listed, from the root on.
        seconds: lengths of recordings whose headers have been read, by their names.
    """

    def __init__(
        self,
        paths: Iterable[str],
        output: Path | None = None,
        expand: Expand = reading.expand,
        partial: bool = False,
        excluded: Path | None = None,
    ) -> None:
        """Prepare to walk.

        Args:
            paths: files, folders, patterns, or "-" for standard input, as in `dymn.audio.reading.find`.
            output: a file that none of them may be.
            expand: from one of the paths to the recordings that it names, as `dymn.audio.reading.expand`.
            partial: whether damaged recordings are read as far as they can be; then any file that opens counts as
                readable.
            excluded: a folder of whose files none is a recording of this run.
        """
        self._is_excluded = lru_cache(lambda folder: excluded is not None and lies_in(folder, excluded))
        self._partial = partial
        self._expand = expand
        self.lost: list[tuple[str, AudioError]] = []
        self.unlisted: set[str] = set()
        self.seconds: dict[str, float] = {}
        self._output = output
        self._identity = identity(output) if output is not None else None
        self._met: list[Listed] = []
        self._rest = self._walk(list(paths))
        self._held: dict[str, BinaryIO | Unreadable] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Discovery:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Listed]:
        """Yield recordings as they are met, those of a folder in the order of the file system, some perhaps twice.

        Raises:
            ConfigError: if one of them is the output.
        """
        met, self._met = self._met, []
        yield from met
        yield from self._rest

    def sorted(self) -> list[Path | str]:
        """Return the recordings, each once: in the order of the paths, those of one path sorted."""
        found: dict[str, Path | str] = {}
        for item in sorted(self):
            found.setdefault(whole(item.path), item.path)
        return list(found.values())

    def any_readable(self) -> bool:
        """Whether any recording can be opened.

        A wrong path is thus reported before a model is loaded. Recordings that cannot be opened are remembered, and the
        first that can stays open for its reader. Sources that can be read only once count as readable.
        """
        for item in self._rest:
            self._met.append(item)
            can_be_read_once = str(item.path) == "-" or (os.path.lexists(item.path) and not os.path.isfile(item.path))
            if can_be_read_once or self._opens(item.path):
                return True
        return False

    def _opens(self, path: Path | str) -> bool:
        key = whole(path)
        if key in self._held:
            return False
        try:
            handle = self._stack.enter_context(cast(BinaryIO, open(os.fspath(path), "rb")))  # noqa: SIM115
        except (OSError, ValueError):
            handle = None  # the decoder reports the error
        try:
            if handle is None or not self._partial:
                self.seconds[os.fspath(path)] = reading.probe(path if handle is None else handle).seconds or 0.0
        except AudioError as error:
            self._held[key] = Unreadable(path, error)
            if handle is not None:
                handle.close()
            return False
        if handle is not None:
            self._held[key] = handle
        return True

    def source(self, path: Path | str) -> AudioLike:
        """Return a path, or the first time the file that is already open, unless another file now has its path."""
        held = self._held.pop(whole(path), path)
        if isinstance(held, io.IOBase) and identity(held.fileno()) != identity(path):
            held.close()
            held = path
        return cast("AudioLike", held)

    def errors(self, found: Iterable[Path | str]) -> list[tuple[str, AudioError]]:
        """Return which of the recordings are known to be unreadable, after the paths that name none, and why."""
        held = [self._held.get(whole(path)) for path in found]
        return [*self.lost, *((one.name, one.error) for one in held if isinstance(one, Unreadable))]

    def _walk(self, paths: list[str]) -> Iterator[Listed]:
        for number, path in enumerate(paths):
            try:
                for item in self._expand(path, self._lose):
                    if self._is_excluded(os.path.dirname(item)):
                        continue
                    if self._identity is not None and identity(item) == self._identity:
                        raise ConfigError(f"--output {self._output} is one of the recordings. Give another file.")
                    yield Listed(number, item)
            except AudioError as error:
                self.lost.append((path, error))

    def _lose(self, folder: str, error: AudioError) -> None:
        """Remember a folder that cannot be listed, once."""
        if whole(folder) not in self.unlisted:
            self.unlisted.add(whole(folder))
            self.lost.append((folder, error))


def whole(path: Path | str) -> str:
    """Return a path from the root on; "-" and addresses as they are."""
    name = os.fspath(path)
    return name if name == "-" or "://" in name else os.path.abspath(name)


def lies_in(path: Path | str, folder: Path | str) -> bool:
    """Whether a path is that of a folder or below it, wherever links lead."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def identity(path: Path | str | int) -> tuple[int, int] | None:
    """Return device and inode of a file, by its path or descriptor; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
