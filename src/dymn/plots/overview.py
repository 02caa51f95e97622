"""The content of a plot of a recording, thinned so that its size does not grow with the recording's length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.audio.settings import ReadSettings
from dymn.config import FrontEndConfig, check, from_dict
from dymn.inference.formats.text import clock
from dymn.inference.frames import FramePart, Frames, FrameSettings, frame_parts, frames, joined
from dymn.inference.windows import Shared, one_result, source_name
from dymn.native.log_mel import array_log_mel
from dymn.system.arrays import Array, Floats

if TYPE_CHECKING:
    from dymn.inference.files import Recording
    from dymn.inference.selection import TagSettings
    from dymn.inference.tagger import Tagger
    from dymn.inference.windows import AudioLike

MAX_COLUMNS = 1600
BLOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Overview:
    """The content of a plot.

    Attributes:
        name: name of the recording.
        model: name of the network.
        seconds: length of the recording.
        front_end: settings of the spectrogram.
        log_mel: the spectrogram [n_mels, columns].
        labels: those with the highest probability at any time, best first.
        scores: their probabilities over time [k, columns].
        window: length of the windows of these probabilities, in seconds.
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
        """A description of the plot for the line below the name."""
        return f"{self.model}, {clock(self.seconds)}; probabilities of {self.window:g} s at a time"

    @property
    def peaks(self) -> Array:
        """The highest probability of each label [k]."""
        highest: Array = self.scores.max(axis=1)
        return highest


def overview(
    tagger: Tagger, source: AudioLike, sample_rate: int | None = None, top_k: int = 8, **settings: Any
) -> Overview:
    """Compute the overview of a recording, which is read once, in blocks.

    Args:
        tagger: computes the probabilities.
        source: as in `Tagger.tag`.
        sample_rate: sample rate of an array, in Hz.
        top_k: maximum number of labels.
        settings: settings of `dymn.inference.frames.FrameSettings` by name, such as `labels=["Dog"]`.

    Raises:
        AudioError: if the source cannot be read.
        ConfigError: if a setting is not allowed, or `sample_rate` is missing.
    """
    check(top_k >= 1, f"top_k is {top_k}; it must be at least 1.")
    cutting = from_dict(FrameSettings, settings)
    spectrogram = ThinnedSpectrogram(tagger.card.front_end)
    found = frames(tagger.backend, source, sample_rate, cutting, spectrogram.append)
    return _overview(tagger, source_name(source), found, spectrogram, cutting, top_k)


def tag_with_overview(
    tagger: Tagger,
    source: AudioLike,
    settings: TagSettings,
    top_k: int = 8,
    *,
    batch_size: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    heard: Callable[[Floats], object] | None = None,
) -> tuple[Recording, Overview | None]:
    """Tag a recording and compute its overview, in a single pass over the recording.

    Args:
        tagger: computes the probabilities.
        source: as in `Tagger.tag`, except arrays.
        settings: settings of tagging; channel, labels and similar settings also apply to the overview.
        top_k: maximum number of labels in the overview.
        batch_size: as in `Tagger.tag_files`.
        progress: as in `Tagger.tag_files`.
        heard: called with each block of samples [n].

    Returns:
        the result of `Tagger.tag_files`, and that of `overview`, which is None if the recording cannot be read.

    Raises:
        ConfigError: if a setting is not allowed.
    """
    one_result(settings)
    reading = {field.name: getattr(settings, field.name) for field in fields(ReadSettings)}
    cutting = FrameSettings(**reading | {"clock": "none"}, labels=settings.labels, exclude=settings.exclude)
    spectrogram = ThinnedSpectrogram(tagger.card.front_end)

    def take(block: Floats) -> None:
        spectrogram.append(block)
        if heard is not None:
            heard(block)

    shared = Shared(source)
    parts = frame_parts(tagger.backend, [shared], cutting, batch_size=batch_size, heard=take)
    done: list[FramePart] = []

    def keep_step(name: str, seconds: float) -> None:
        while not done or (not done[-1].is_last and done[-1].times[-1] < seconds):
            done.append(next(parts))
        if progress is not None:
            progress(name, seconds)

    recording = next(tagger.tag_files([shared], settings, batch_size=batch_size, progress=keep_step))
    if recording.error is not None:
        return recording, None
    done.extend(parts)
    found = joined(done, tagger.backend, cutting)
    return recording, _overview(tagger, recording.name, found, spectrogram, cutting, top_k)


def _overview(
    tagger: Tagger, name: str, frames: Frames, spectrogram: ThinnedSpectrogram, cutting: FrameSettings, top_k: int
) -> Overview:
    best = np.argsort(-frames.scores.max(axis=0), kind="stable")[:top_k]
    n = min(MAX_COLUMNS, max(1, round(frames.seconds / 0.05)))
    edges = np.linspace(0, frames.seconds, n + 1)
    first = np.clip(np.searchsorted(frames.edges, edges[:-1], side="right") - 1, 0, len(frames.times) - 1)
    last = np.clip(np.searchsorted(frames.edges, edges[1:], side="left"), first + 1, len(frames.times))
    # the highest: nothing short is lost
    columns = [frames.scores[a:b, best].max(axis=0) for a, b in zip(first, last, strict=True)]
    return Overview(
        Path(name).name or "recording",
        tagger.card.name or "network",
        frames.seconds,
        tagger.card.front_end,
        spectrogram.thinned.columns(),
        tuple(frames.labels[i] for i in best),
        np.stack(columns, axis=1).astype(np.float32),
        cutting.cutting().window,
    )


class ThinnedSpectrogram:
    """The thinned log-mel spectrogram of samples that arrive in blocks."""

    def __init__(self, front_end: FrontEndConfig) -> None:
        self.thinned = Thinned(MAX_COLUMNS)
        self._log_mel_of = array_log_mel(front_end)
        self._size = round(BLOCK_SECONDS * front_end.sample_rate)

    def append(self, block: Floats) -> None:
        """Append samples [n]."""
        for start in range(0, len(block), self._size):
            self.thinned.append(self._log_mel_of(block[start : start + self._size])[0])


class Thinned:
    """A sequence of columns; if there are too many, neighbours are averaged."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[Array] = []
        self._rest: Array | None = None
        self._each = 1

    def append(self, columns: Array) -> None:
        """Append columns [rows, n]."""
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
        """Return the columns [rows, at most twice the limit]."""
        if self._rest is not None and self._rest.shape[1]:
            self._parts.append(self._rest.mean(axis=1, keepdims=True))
            self._rest = None
        return np.concatenate(self._parts, axis=1)
