"""The probabilities of labels at points in time, in two ways.

`activation` runs the network over windows as long as those of its training and asks its head about each frame of the last feature
map, as class activation maps do, instead of about their mean. `windows` runs the whole network over short windows that overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from dymn.config import check
from dymn.inference.segments import computed, pieces
from dymn.inference.selection import Selection, TagSettings, Timeline
from dymn.runtime.scores import Scores

if TYPE_CHECKING:
    from dymn.inference.segments import Source
    from dymn.inference.tagger import Tagger

Times = npt.NDArray[np.float64]


class Method(NamedTuple):
    """How a method cuts recordings unless somebody says otherwise, in seconds."""

    window: float
    hop: float


METHODS = {"activation": Method(10.0, 5.0), "windows": Method(1.6, 0.32)}
"""The ways to get frames, and their windows, chosen with `benchmarks/events.py`."""


@dataclass(frozen=True)
class FrameSettings:
    """How to get frames, and of which labels.

    Attributes:
        method: "windows" or "activation", see `dymn.inference.frames`.
        window: seconds that the network hears at once; None is what is best for the method.
        hop: seconds from the start of one window to the next; None is what is best for the method.
        smoothing: seconds of the feature map that each frame's mean takes in ("activation" only).
        clip: how much the answer for the whole window counts in that for a frame, from 0 to 1: the probability of a frame is the
            geometric mean of both with this weight ("activation" only).
        labels: patterns such as "Dog" or "*music*" of labels to choose from; none means all.
        exclude: patterns of labels to leave out.
    """

    method: str = "windows"
    window: float | None = None
    hop: float | None = None
    smoothing: float = 0.96
    clip: float = 0.3
    labels: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self.method in METHODS, f"method is {self.method!r}; allowed: {', '.join(METHODS)}.")
        check(0 <= self.smoothing <= 60, f"smoothing is {self.smoothing}; it must be from 0 to 60 seconds.")
        check(0 <= self.clip <= 1, f"clip is {self.clip}; it must be from 0 to 1.")
        tagging = self.tagging()  # checks what it shares with tagging
        for name in ("labels", "exclude"):
            object.__setattr__(self, name, getattr(tagging, name))
        window, hop = self.cutting()
        check(hop <= window, f"hop is {hop} s and window {window} s; a hop beyond the window would leave stretches unheard.")

    def cutting(self) -> Method:
        """Return window and hop in seconds."""
        usual = METHODS[self.method]
        window = usual.window if self.window is None else self.window
        return Method(window, min(usual.hop, window) if self.hop is None else self.hop)

    def tagging(self) -> TagSettings:
        """Return the settings with which a tagger tells all chosen labels of such windows."""
        return TagSettings(0, 0.0, self.labels, self.exclude, *self.cutting())


@dataclass(frozen=True)
class Frames:
    """The probabilities of labels at points in time.

    Attributes:
        labels: those that were asked for, C of them.
        times: the middles of the frames in seconds [T].
        scores: probabilities [T, C].
        seconds: how long the recording is.
    """

    labels: tuple[str, ...]
    times: Times = field(repr=False)
    scores: Scores = field(repr=False)
    seconds: float

    @property
    def edges(self) -> Times:
        """Where frames begin and end [T + 1]: half way between their middles, the first at 0 and the last at the recording's end."""
        between = (self.times[1:] + self.times[:-1]) / 2
        return np.concatenate([[0.0], between, [max(self.seconds, self.times[-1])]])

    @property
    def hop(self) -> float:
        """Seconds from one frame to the next."""
        return float(self.times[1] - self.times[0]) if len(self.times) > 1 else self.seconds


def frames(tagger: Tagger, source: Source, sample_rate: int | None = None, settings: FrameSettings | None = None) -> Frames:
    """Return the probabilities of labels at points in time.

    The audio is read in blocks; what is kept of an hour is some 12,000 frames, 24 MB if all 527 labels of AudioSet are asked for.

    Args:
        tagger: whose network is asked.
        source: as in `Tagger.tag`.
        sample_rate: of an array, in Hz.
        settings: how, and which labels.

    Raises:
        AudioError: if the source cannot be read.
        ConfigError: if a setting does not fit the model, or `sample_rate` is missing.
    """
    settings = settings or FrameSettings()
    return _WAYS[settings.method](tagger, source, sample_rate, settings)


def _windows(tagger: Tagger, source: Source, sample_rate: int | None, settings: FrameSettings) -> Frames:
    chosen = Selection(tagger.labels, settings.tagging()).allowed
    recording = next(tagger.tag_files([source], settings.tagging(), sample_rate=sample_rate))
    if recording.error is not None:
        raise recording.error
    timeline = cast("Timeline", recording.timeline)
    spans, scores = timeline.matrix()
    labels = tuple(tagger.labels[i] for i in chosen)
    return Frames(labels, spans.mean(axis=1), scores[:, chosen], recording.seconds)


class _Part(NamedTuple):
    """The frames of one window: the place of the first among those of the recording, and probabilities [T, C]."""

    first: int
    scores: Scores


def _activation(tagger: Tagger, source: Source, sample_rate: int | None, settings: FrameSettings) -> Frames:
    """Windows begin at multiples of a frame, so that the frames of overlapping ones fall together and are averaged."""
    chosen = Selection(tagger.labels, settings.tagging()).allowed
    backend, rate = tagger.backend, tagger.sample_rate
    frame = backend.frame_samples / rate
    window, hop = (max(1, round(seconds / frame)) * frame for seconds in settings.cutting())
    smoothing = max(0, round((settings.smoothing / frame - 1) / 2)) * 2 + 1  # odd, to lie evenly around a frame

    def compute(features: Scores) -> Scores:
        both = backend.frame_run(features, smoothing)
        frames, clip = both.frames[:, :, chosen], both.probabilities[:, None, chosen]
        return frames if settings.clip == 0 else frames ** (1 - settings.clip) * clip**settings.clip

    parts = []
    seconds = 0.0
    found = pieces([source], rate, sample_rate, window, hop, "bare", prepare=backend.features)
    for piece, scores in computed(found, compute, backend.batch_size):
        if piece.error is not None:
            raise piece.error
        if scores is not None:
            parts.append(_Part(round(piece.start / frame), scores))
        seconds = piece.recording.n_samples / rate
    overlapped = _overlapped(parts)
    times: Times = np.arange(len(overlapped), dtype=np.float64) * frame  # a convolution of stride s centres its frame i on frame i s
    heard = max(1, int(np.searchsorted(times, seconds)))
    return Frames(tuple(tagger.labels[i] for i in chosen), times[:heard], overlapped[:heard], seconds)


def _overlapped(parts: list[_Part]) -> Scores:
    """Average the frames of windows where they overlap, those in the middle of a window counting most."""
    n = max(part.first + len(part.scores) for part in parts)
    total = np.zeros((n, parts[0].scores.shape[1]), np.float32)
    weights = np.zeros((n, 1), np.float32)
    for first, scores in parts:
        length = len(scores)
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)[:, None]
        total[first : first + length] += scores * ramp
        weights[first : first + length] += ramp
    return total / weights


_WAYS: dict[str, Callable[[Tagger, Source, int | None, FrameSettings], Frames]] = {"activation": _activation, "windows": _windows}
