"""Recordings as windows, and windows through a network in common batches.

Tags, embeddings and frames share this code.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from dymn.audio import reading
from dymn.audio.clocks import Begin, begin_of
from dymn.audio.notes import Notes
from dymn.audio.settings import PLAIN, Channel, ReadSettings
from dymn.audio.windows import Filled, cut, fill
from dymn.config import check
from dymn.errors import AudioError, ConfigError, DymnError
from dymn.runtime.backend import Backend
from dymn.system.arrays import Floats
from dymn.system.prefetch import Team, ahead

if TYPE_CHECKING:
    import torch

AudioLike: TypeAlias = "str | Path | BinaryIO | npt.NDArray[Any] | torch.Tensor"
AudioSource: TypeAlias = "AudioLike | Shared"
R = TypeVar("R")

SHORT_SECONDS = 0.1
"""Length below which a note says that a recording is short."""


@dataclass(frozen=True, kw_only=True)
class RecordingInfo:
    """Properties of a recording that every result contains.

    Attributes:
        notes: notes about unusual properties of the recording, such as a wrong header; also logged as warnings.
        partial: whether damaged parts are missing; only with the setting `partial`.
        channel: the channel, if there is one result per channel.
        begin: absolute start of the recording; only with the setting `clock`.
        read_channel: number of the only channel that was read, None if all were mixed.
        path: where the recording is, which its name cannot state if the path is no valid text; empty if that is not
            known.
    """

    notes: tuple[str, ...] = ()
    partial: bool = False
    channel: Channel | None = None
    begin: Begin | None = None
    read_channel: int | None = None
    path: str = field(default="", repr=False)


@dataclass(frozen=True)
class Result(RecordingInfo):
    """The result of one recording, or the error that prevented it.

    Attributes:
        name: the path as given; "-" for standard input, "" for sources without a name.
        seconds: length of the recording.
        error: why there is no result, or None.
    """

    name: str
    seconds: float = 0.0
    error: DymnError | None = field(default=None, kw_only=True)


ResultT = TypeVar("ResultT", bound=Result)


def is_last(result: Result) -> bool:
    """Whether no further channel of the same recording follows."""
    return result.channel is None or result.channel.number == result.channel.of


def raising(results: Iterable[ResultT]) -> Iterator[ResultT]:
    """Yield results; the error of the first recording that failed is raised."""
    for result in results:
        if result.error is not None:
            raise result.error
        yield result


@dataclass
class Opened:
    """A recording while it is read.

    Attributes:
        name: as given.
        n_samples: the number of samples read so far, of the signal as played.
        notes: what is unusual about it.
        speed: how much faster it is played than it was recorded.
        channel: which channel is read, if each is.
        begin: when it began, if that is known and requested.
        path: where it is, or "".
    """

    name: str
    n_samples: int = 0
    notes: Notes = field(default_factory=Notes)
    speed: float = 1.0
    channel: Channel | None = None
    begin: Begin | None = None
    path: str = ""

    def seconds(self, rate: int) -> float:
        """Return how much of it has been read, in seconds of the recording, from the rate of the network in Hz."""
        return self.n_samples / rate * self.speed

    def info(self) -> dict[str, Any]:
        """Return the fields of `RecordingInfo`."""
        return {
            "notes": tuple(self.notes.lines),
            "partial": self.notes.partial,
            "channel": self.channel,
            "begin": self.begin,
            "read_channel": self.notes.channel,
            "path": self.path,
        }


class Shared:
    """A source that two pipelines read, although it is opened and decoded once.

    What only one of them has read stays in memory, so they are to keep in step. Both run in the same thread and read
    alike; the one that begins gets the notes.
    """

    def __init__(self, source: AudioLike) -> None:
        self.source = source
        self.name = source_name(source)
        self._readers: list[Iterator[Floats | Exception]] = []

    def blocks(self, rate: int, sample_rate: int | None, read: ReadSettings, notes: Notes | None) -> Iterator[Floats]:
        """Yield the blocks of the source, as the function `blocks` returns them; the error that ends one ends both."""
        if not self._readers:
            self._readers += tee(_until_error(blocks(self.source, rate, sample_rate, read=read, notes=notes)))
        for block in self._readers.pop():
            if isinstance(block, Exception):
                raise block
            yield block


def _until_error(found: Iterable[Floats]) -> Iterator[Floats | Exception]:
    try:
        yield from found
    except (DymnError, OSError) as error:
        yield error


class Piece(NamedTuple):
    """A window's input for computation, with its place in seconds of the recording.

    It may also be the end of the recording (no features) or its failure.
    """

    recording: Opened
    start: float = 0.0
    end: float = 0.0
    features: Floats | None = None
    error: DymnError | None = None


def blocks(
    source: AudioSource,
    rate: int,
    sample_rate: int | None = None,
    *,
    read: ReadSettings = PLAIN,
    notes: Notes | None = None,
) -> Iterable[Floats]:
    """Return a source as blocks [n] of mono samples at `rate` Hz.

    Args:
        source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
        rate: wanted, in Hz.
        sample_rate: sample rate of an array, in Hz; not needed for files.
        read: how to read it, such as the channel.
        notes: what is unusual about the recording is added here; None logs it.

    Raises:
        AudioError: if the source cannot be read; of a file, with the first block or where the damage is.
        ConfigError: if `sample_rate` is missing, or the source is of another type.
    """
    if isinstance(source, Shared):
        return source.blocks(rate, sample_rate, read, notes)
    if reading.is_array(source):
        if sample_rate is None:
            raise ConfigError("An array has no sample rate. Give sample_rate in Hz.")
        return [reading.from_array(source, sample_rate, rate, notes=notes, settings=read)]
    given: object = source
    if not isinstance(given, (str, os.PathLike)) and not hasattr(given, "read"):
        remedy = " Wrap it in io.BytesIO." if isinstance(given, (bytes, bytearray, memoryview)) else ""
        kind = type(given).__name__
        raise ConfigError(f"A recording must be a path, an open binary file, an array or a tensor, not {kind}.{remedy}")
    return reading.stream(source, rate, notes=notes, settings=read)


Prepare: TypeAlias = Callable[[Iterable[Filled], int], Iterator[Floats]]
"""From the windows of a recording, and the samples from the start of one to the next, to their features."""


def samples_of(windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
    """Yield the samples of windows as they are."""
    return (window.samples for window in windows)


def pieces(
    sources: Iterable[AudioSource],
    rate: int,
    sample_rate: int | None,
    window: float,
    hop: float | None,
    how: str,
    *,
    prepare: Prepare = samples_of,
    team: Team | None = None,
    read: ReadSettings = PLAIN,
    heard: Callable[[Floats], object] | None = None,
    joins: bool = True,
) -> Iterator[Piece]:
    """Cut recordings into windows, no further than the caller iterates; an error ends only its own recording.

    Args:
        sources: as in `blocks`.
        rate: of the windows, in Hz.
        sample_rate: of the arrays among the sources.
        window: seconds of a window.
        hop: seconds from the start of one window to the next; `window` if None.
        how: what a shorter recording or remainder is filled up with, a key of `dymn.audio.windows.FILLS`.
        prepare: makes the features of windows.
        team: threads that work ahead of the caller; None works in the caller's thread.
        read: how to read the recordings; with "each" channel, one recording after the other for each of its channels,
            of which each may fail.
        heard: called with each block of samples [n] that is read.
        joins: whether a short remainder joins the window before it.
    """
    length, step = round(window * rate), round((hop or window) * rate)

    def work(source: AudioSource) -> Generator[Piece, None, None]:
        if read.channel != "each" or isinstance(source, Shared):
            yield from one(source, read)
            return
        try:
            count, rewind = _channels(source)
        except DymnError as failure:
            yield Piece(Opened(source_name(source)), error=failure)
            return
        for number in range(1, count + 1):
            rewind()
            yield from one(source, replace(read, channel=str(number)), Channel(number, count))

    def one(source: AudioSource, read: ReadSettings, channel: Channel | None = None) -> Iterator[Piece]:
        recording = Opened(source_name(source), speed=read.speed, channel=channel, path=_path(source))
        places: deque[tuple[float, float]] = deque()

        def windows() -> Iterator[Filled]:
            found = blocks(source, rate, sample_rate, read=read, notes=recording.notes)
            for start, samples in cut(_counted(found, recording, heard), length, step, joins):
                places.append((start / rate * read.speed, (start + len(samples)) / rate * read.speed))
                yield Filled(fill(samples, length, how), len(samples))

        error: DymnError | None = None
        try:
            if read.clock == "auto":
                recording.begin = begin_of(source.source if isinstance(source, Shared) else source, recording.notes)
            for features in prepare(windows(), step):
                yield Piece(recording, *places.popleft(), features)
            if recording.n_samples == 0:
                raise AudioError(f"{recording.name or 'The array'} has no samples. Give a recording that is not empty.")
            if recording.n_samples < SHORT_SECONDS * rate:
                milliseconds = 1000 * recording.n_samples / rate
                recording.notes.add(f"it is {milliseconds:.3g} ms long; sounds this short are rarely recognised.")
            recording.notes.log(recording.name or "The array")
        except DymnError as failure:
            error = failure
        except OSError as failure:
            error = AudioError(
                f"{recording.name}: {failure.strerror or failure}. Check that the file is there and readable."
            )
        yield Piece(recording, error=error)

    return ahead(work, sources, team or Team())


class Cutting(Protocol):
    """How recordings are cut into windows, such as `TagSettings`."""

    @property
    def window(self) -> float:
        """Seconds of a window."""

    @property
    def hop(self) -> float | None:
        """Seconds from the start of one window to the next; `window` if None."""

    @property
    def fill(self) -> str:
        """What a shorter recording or remainder is filled with, a key of `dymn.audio.windows.FILLS`."""

    @property
    def read(self) -> ReadSettings:
        """How recordings are read."""


def run_windows(
    backend: Backend,
    sources: Iterable[AudioSource],
    cutting: Cutting,
    compute: Callable[[Floats], Iterable[R]],
    *,
    sample_rate: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    prepare: Prepare | None = None,
    heard: Callable[[Floats], object] | None = None,
    joins: bool = True,
) -> Iterator[tuple[Piece, R | None]]:
    """Cut recordings into windows and run them through a backend: what tags, embeddings and frames have in common.

    Args:
        backend: prepares the features of windows.
        sources: as in `blocks`.
        cutting: window, hop and filling.
        compute: returns a row for each of a batch of features [B, ...].
        sample_rate, heard, joins: as in `pieces`.
        batch_size: number of windows that are computed at once; None is the backend's own.
        workers: number of threads that decode recordings ahead of the network.
        prepare: instead of the backend's `features`.

    Yields:
        pieces in the order of the recordings and of time, each window with its row.

    Raises:
        ConfigError: at once, if the batch size is below 1 or the number of workers below 0.
    """
    batch_size = backend.batch_size if batch_size is None else batch_size
    found = pieces(
        sources,
        backend.sample_rate,
        sample_rate,
        cutting.window,
        cutting.hop,
        cutting.fill,
        prepare=prepare or backend.features,
        team=Team(workers, batch_size, backend.enter_worker, backend.entered_workers),
        read=cutting.read,
        heard=heard,
        joins=joins,
    )
    return computed(found, compute, batch_size)


def computed(
    found: Iterable[Piece], compute: Callable[[Floats], Iterable[R]], batch_size: int
) -> Iterator[tuple[Piece, R | None]]:
    """Yield pieces in order, each window with its row of `compute`, which is called with features [B, ...].

    Raises:
        ConfigError: at once, if the batch size is below 1.
    """
    check(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1.")
    return _computed(found, compute, batch_size)


def _computed(
    found: Iterable[Piece], compute: Callable[[Floats], Iterable[R]], batch_size: int
) -> Iterator[tuple[Piece, R | None]]:
    batch: list[Piece] = []
    shapes: list[tuple[int, ...]] = []
    for piece in found:
        if piece.features is not None:
            if len(shapes) == batch_size or (shapes and shapes[0] != piece.features.shape):
                yield from _run(batch, compute)
                batch, shapes = [], []
            shapes.append(piece.features.shape)
        batch.append(piece)
    yield from _run(batch, compute)


def _run(batch: list[Piece], compute: Callable[[Floats], Iterable[R]]) -> Iterator[tuple[Piece, R | None]]:
    features = [piece.features for piece in batch if piece.features is not None]
    rows = iter(compute(np.stack(features)) if features else ())
    for piece in batch:
        yield piece, (None if piece.features is None else next(rows))


def _channels(source: AudioLike) -> tuple[int, Callable[[], object]]:
    """Return the number of channels of a source, and what moves it back to where it stood, to be read once more.

    Raises:
        AudioError: if it cannot be opened, or read only once.
    """
    if reading.is_array(source):
        return reading.channels_last(source).shape[1], lambda: None
    count = reading.probe(source).channels
    if isinstance(source, (str, os.PathLike)):
        return count, lambda: None
    place = source.tell()
    return count, lambda: source.seek(place)


def _counted(found: Iterable[Floats], recording: Opened, heard: Callable[[Floats], object] | None) -> Iterator[Floats]:
    for block in found:
        recording.n_samples += len(block)
        if heard is not None:
            heard(block)
        yield block


def one_result(settings: ReadSettings) -> None:
    """Raise a `ConfigError` if settings give one result per channel where there can be only one."""
    check(
        settings.channel != "each",
        'channel is "each", which returns one result per channel, but this function returns a single result. Give '
        "the number of a channel, or use tag_files, event_files or embed_files.",
    )


def source_name(source: AudioSource) -> str:
    """Return a source's name as printable text, also where a file's name is no valid text."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "")
    return os.fsencode(name).decode("utf-8", "replace") if isinstance(name, (str, os.PathLike)) else str(name)


def _path(source: AudioSource) -> str:
    """Return the path of a source or of an open file, as the system knows it; "" if it has none."""
    source = source.source if isinstance(source, Shared) else source
    path = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "")
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
