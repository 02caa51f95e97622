"""What there is to see of a recording, thinned so that one of many hours is no larger than one of minutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.config import FrontEndConfig, check, from_dict
from dymn.inference.formats.text import clock
from dymn.inference.segments import source_name
from dymn.system.arrays import Array, Floats

if TYPE_CHECKING:
    from dymn.inference.segments import AudioLike
    from dymn.inference.tagger import Tagger

MAX_COLUMNS = 1600
BLOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Overview:
    """A recording to draw.

    Attributes:
        name: of the recording.
        model: name of the network.
        seconds: how long the recording is.
        front_end: what made the spectrogram.
        log_mel: the spectrogram [n_mels, columns].
        labels: those with the highest probability at any time, best first.
        scores: their probabilities over time [k, columns].
        window: how many seconds the network heard at once for each of them.
    """

    name: str
    model: str
    seconds: float
    front_end: FrontEndConfig
    log_mel: Array = field(repr=False)
    labels: tuple[str, ...]
    scores: Array = field(repr=False)
    window: float

    @property
    def about(self) -> str:
        """What is drawn, in a line beneath the name."""
        return f"{self.model}, {clock(self.seconds)}; probabilities of {self.window:g} s at a time"

    @property
    def peaks(self) -> Array:
        """The highest probability of each label [k]."""
        highest: Array = self.scores.max(axis=1)
        return highest


def overview(
    tagger: Tagger, source: AudioLike, sample_rate: int | None = None, top_k: int = 8, **settings: Any
) -> Overview:
    """Look at a recording. It is read once, in blocks.

    Args:
        tagger: whose network says what is there.
        source: as in `Tagger.tag`.
        sample_rate: of an array, in Hz.
        top_k: how many labels to keep at most.
        settings: those of `dymn.inference.frames.FrameSettings` by name, such as `labels=["Dog"]`.

    Raises:
        AudioError: if the source cannot be read.
        ConfigError: if a setting is not allowed, or `sample_rate` is missing.
    """
    from dymn.inference.frames import FrameSettings
    from dymn.inference.frames import frames as frames_of
    from dymn.native.log_mel import array_log_mel

    check(top_k >= 1, f"top_k is {top_k}; it must be at least 1.")
    front_end = tagger.card.front_end
    log_mel_of = array_log_mel(front_end)
    thinned = Thinned(MAX_COLUMNS)
    size = round(BLOCK_SECONDS * tagger.sample_rate)

    def heard(block: Floats) -> None:
        for start in range(0, len(block), size):
            thinned.append(log_mel_of(block[start : start + size])[0])

    cutting = from_dict(FrameSettings, settings)
    frames = frames_of(tagger.backend, source, sample_rate, cutting, heard)
    best = np.argsort(-frames.scores.max(axis=0), kind="stable")[:top_k]
    n = min(MAX_COLUMNS, max(1, round(frames.seconds / 0.05)))
    edges = np.linspace(0, frames.seconds, n + 1)
    first = np.clip(np.searchsorted(frames.edges, edges[:-1], side="right") - 1, 0, len(frames.times) - 1)
    last = np.clip(np.searchsorted(frames.edges, edges[1:], side="left"), first + 1, len(frames.times))
    # the highest: nothing short is lost
    columns = [frames.scores[a:b, best].max(axis=0) for a, b in zip(first, last, strict=True)]
    labels = tuple(frames.labels[i] for i in best)
    name = Path(source_name(source)).name or "recording"
    scores = np.stack(columns, axis=1).astype(np.float32)
    return Overview(
        name,
        tagger.card.name or "network",
        frames.seconds,
        front_end,
        thinned.columns(),
        labels,
        scores,
        cutting.cutting().window,
    )


class Thinned:
    """Columns that come one after the other; where they become too many, neighbours are averaged."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[Array] = []
        self._rest: Array | None = None
        self._each = 1

    def append(self, columns: Array) -> None:
        """Take columns [rows, n]."""
        columns = columns if self._rest is None else np.concatenate([self._rest, columns], axis=1)
        whole = columns.shape[1] // self._each * self._each
        self._rest = columns[:, whole:]
        self._parts.append(columns[:, :whole].reshape(len(columns), -1, self._each).mean(axis=2))
        while sum(part.shape[1] for part in self._parts) >= 2 * self._limit:
            joined = np.concatenate(self._parts, axis=1)
            even = joined.shape[1] // 2 * 2
            odd = np.repeat(joined[:, even:], self._each, axis=1)
            self._rest = np.concatenate([odd, self._rest], axis=1)
            self._parts = [joined[:, :even].reshape(len(joined), -1, 2).mean(axis=2)]
            self._each *= 2

    def columns(self) -> Array:
        """Return what has come [rows, at most twice the limit]."""
        if self._rest is not None and self._rest.shape[1]:
            self._parts.append(self._rest.mean(axis=1, keepdims=True))
            self._rest = None
        return np.concatenate(self._parts, axis=1)
