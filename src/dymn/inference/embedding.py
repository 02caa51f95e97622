"""Embeddings: a recording as a vector that tells much of what is in it, for small models on top.

What a network has learned lies in the averages of its feature maps. The last one serves tasks that are near to tagging; blocks of the
middle and the averages of the mel bands serve speech and music better (F. Schmid, K. Koutini, G. Widmer: Low-complexity audio embedding
extractors, EUSIPCO 2023). Which of them make the embedding is said by names:

- "last": the averaged last feature map, which is also what the classifier of `MobileNet` gets;
- "block0" to "block14": the averaged output of a block, "blocks" of all blocks, "blocks10-14" of some;
- "mels": the mean of each mel band of the log-mel spectrogram.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from dymn.audio.windows import check_windows
from dymn.config import check, from_dict
from dymn.errors import ConfigError, DymnError
from dymn.inference.segments import Piece, Source, computed, pieces
from dymn.runtime.backend import CPU_BATCH_SIZE
from dymn.system.prefetch import Team

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]

LAST, MELS, BLOCKS = "last", "mels", "blocks"
_ONE = re.compile(r"block([0-9]{1,3})")
_SOME = re.compile(r"blocks([0-9]{1,3})-([0-9]{1,3})")


@dataclass(frozen=True)
class EmbedSettings:
    """How a recording is cut; the defaults are those of `dymn embed`.

    Attributes:
        window: seconds that the network hears at once; it was trained on 10.
        hop: seconds from the start of one window to the next; `window` if None.
        fill: what a recording or a remainder that is shorter than the window is filled with: "bare" (nothing), "repeat" or "pad" (zeros).
    """

    window: float = 10.0
    hop: float | None = None
    fill: str = "bare"

    def __post_init__(self) -> None:
        check_windows(self.window, self.hop, self.fill)


@dataclass(frozen=True)
class Embedding:
    """The embedding of one recording, or the error that kept it from having one.

    Attributes:
        name: the path as given; "-" for standard input, "" for what has no name.
        seconds: how long the recording is.
        vector: of the whole recording [D]: the mean of its windows over time; empty after an error.
        windows: of each window [W, D].
        spans: start and end of each window in seconds [W, 2].
        error: why there is none, or None.
    """

    name: str
    seconds: float = 0.0
    vector: Floats = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    windows: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    spans: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)), repr=False)
    error: DymnError | None = None


def parse_layers(layers: str | Sequence[str], n_blocks: int = 15) -> tuple[str, ...]:
    """Return the names of single layers that `layers` names, in its order: "mels,blocks0-2" is mels, block0, block1, block2.

    Args:
        layers: names as above, in a list or with commas between.
        n_blocks: how many blocks the network has.

    Raises:
        ConfigError: if a name is unknown or a layer is named twice.
    """
    names: list[str] = []
    for word in [layers] if isinstance(layers, str) else layers:
        for name in word.split(","):
            names += _expand(name.strip().lower(), n_blocks)
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    check(not twice, f"layers names {', '.join(twice)} twice; name each layer once.")
    check(bool(names), f"layers is empty; name one, such as {LAST}.")
    return tuple(names)


def _expand(name: str, n_blocks: int) -> list[str]:
    if name in (LAST, MELS):
        return [name]
    if name == BLOCKS:
        return [f"block{i}" for i in range(n_blocks)]
    one, some = _ONE.fullmatch(name), _SOME.fullmatch(name)
    first, last = (int(one[1]), int(one[1])) if one else (int(some[1]), int(some[2])) if some else (1, 0)
    if not first <= last < n_blocks:
        raise ConfigError(
            f"There is no layer {name!r}. Allowed: {LAST}, {MELS}, {BLOCKS}, block0 to block{n_blocks - 1}, and ranges such as "
            f"blocks{max(0, n_blocks - 5)}-{n_blocks - 1}."
        )
    return [f"block{i}" for i in range(first, last + 1)]


class BaseEmbedder(ABC):
    """Waveforms to embeddings, whatever computes them. `dymn.inference.embedding_hooks` holds the implementation for PyTorch.

    Attributes:
        layers: the names of the layers, in the order of their values.
        names: one a value, such as "block3_0" or "last_95".
        size: how many values an embedding has, D.
        sample_rate: of the waveforms, in Hz.
    """

    layers: tuple[str, ...]
    names: tuple[str, ...]
    size: int
    sample_rate: int

    @property
    def batch_size(self) -> int:
        """How many windows to compute at once, if nobody says otherwise."""
        return CPU_BATCH_SIZE

    @abstractmethod
    def vectors(self, waveforms: Floats | Tensor) -> Floats:
        """Return embeddings [B, D] of waveforms [B, N] at `sample_rate`, in float32.

        Raises:
            ResourceError: if the batch does not fit the device's memory.
        """

    def embed(self, source: Source, sample_rate: int | None = None, **settings: Any) -> Embedding:
        """Return the embedding of a recording and of each of its windows.

        Args:
            source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
            sample_rate: of an array, in Hz; files bring their own.
            settings: those of `EmbedSettings` by name, such as `window=1.0`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        found = next(self.embed_files([source], from_dict(EmbedSettings, settings), sample_rate=sample_rate))
        if found.error is not None:
            raise found.error
        return found

    def embed_files(
        self,
        sources: Iterable[Source],
        settings: EmbedSettings | None = None,
        *,
        sample_rate: int | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Embedding]:
        """Embed recordings one after the other, windows of one length in common batches; only the embeddings are kept in memory.

        Args:
            sources: as in `embed`.
            settings: how to cut.
            sample_rate: of the arrays among the sources.
            batch_size: how many windows go through the network at once; 4 on a CPU and 32 elsewhere if None.
            workers: how many threads decode recordings ahead of the network; 0 is none: everything is done in turn.
            progress: called with a recording's name and how many seconds of it are done.

        Yields:
            one `Embedding` a source, in their order. One that cannot be read has an `error`, and the others go on.

        Raises:
            ConfigError: if there are fewer than 0 workers.
            ResourceError: if a batch does not fit the device's memory.
        """
        settings = settings or EmbedSettings()
        if batch_size is None:
            batch_size = self.batch_size
        team = Team(workers, batch_size)
        found = pieces(sources, self.sample_rate, sample_rate, settings.window, settings.hop, settings.fill, team=team)
        return self.collect(computed(found, self.vectors, batch_size), progress)

    def collect(
        self, embedded: Iterable[tuple[Piece, Floats | None]], progress: Callable[[str, float], None] | None = None
    ) -> Iterator[Embedding]:
        """Yield recordings of their windows with vectors [D], in their order, as `dymn.inference.segments.computed` yields them."""
        rows: list[Floats] = []
        spans: list[tuple[float, float]] = []
        for piece, row in embedded:
            name = piece.recording.name
            if row is not None:
                rows.append(row)
                spans.append((piece.start, piece.end))
                if progress is not None:
                    progress(name, piece.end)
                continue
            if piece.error is not None:
                yield Embedding(name, error=piece.error)
            else:
                windows, places = np.stack(rows), np.array(spans)
                vector = np.average(windows, axis=0, weights=places[:, 1] - places[:, 0]).astype(np.float32)
                yield Embedding(name, piece.recording.n_samples / self.sample_rate, vector, windows, places)
            rows, spans = [], []


class EmbedsLast(Protocol):
    """A backend that gives the averaged last feature map."""

    @property
    def embedding_size(self) -> int:
        """How many values an embedding has."""

    @property
    def batch_size(self) -> int:
        """How many windows to compute at once, if nobody says otherwise."""

    @property
    def sample_rate(self) -> int:
        """The rate of the waveforms, in Hz."""

    def vectors(self, waveforms: Floats | Tensor) -> Floats:
        """Return embeddings [B, D] of waveforms [B, N]."""


class LastLayer(BaseEmbedder):
    """Waveforms to the embeddings of the last layer, computed by a backend."""

    def __init__(self, backend: EmbedsLast, layers: str | Sequence[str] = LAST) -> None:
        """Take the backend's only layer.

        Raises:
            ConfigError: if `layers` names another one.
        """
        self.layers = parse_layers(layers)
        if self.layers != (LAST,):
            kind = type(backend).__name__
            raise ConfigError(f"{kind} gives the layer {LAST} alone, not {','.join(self.layers)}. Load the model in PyTorch for others.")
        self.backend, self.sample_rate = backend, backend.sample_rate
        self.size = backend.embedding_size
        self.names = tuple(f"{LAST}_{i}" for i in range(self.size))

    @property
    def batch_size(self) -> int:
        """How many windows to compute at once, if nobody says otherwise."""
        return self.backend.batch_size

    def vectors(self, waveforms: Floats | Tensor) -> Floats:
        """Return embeddings [B, D] of waveforms [B, N] at `sample_rate`.

        Raises:
            ConfigError: if the backend takes clips of another length.
        """
        return self.backend.vectors(waveforms)
