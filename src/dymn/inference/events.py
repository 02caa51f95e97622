"""From probabilities frame by frame to events: median filter, two thresholds, shortest gap, shortest event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import check
from dymn.errors import DymnError
from dymn.inference.frames import Frames, FrameSettings
from dymn.runtime.scores import Scores

OFF_SHARE = 0.3
"""The lower threshold as a share of the upper one. The defaults here were chosen with `benchmarks/events.py`."""


class Event(NamedTuple):
    """A sound with a beginning and an end, in seconds, and the highest probability of its label between them."""

    label: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class EventSettings(FrameSettings):
    """How to get frames, and what makes an event of them.

    Attributes:
        threshold: an event has a frame with at least this probability.
        off_threshold: an event lasts while the probability is at least this; None is `OFF_SHARE` of `threshold`.
        median: seconds over which the median of the probabilities is taken first; up to one frame leaves them as they are.
        min_gap: silences of up to this many seconds between events of one label do not part them.
        min_duration: shorter events are dropped, in seconds.
    """

    threshold: float = 0.1
    off_threshold: float | None = None
    median: float = 0.0
    min_gap: float = 0.64
    min_duration: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.threshold <= 1, f"threshold is {self.threshold}; it must be above 0, and at most 1.")
        off = self.off_threshold
        check(off is None or 0 < off <= self.threshold, f"off_threshold is {off}; it must be above 0, and at most {self.threshold}.")
        for name in ("median", "min_gap", "min_duration"):
            value = getattr(self, name)
            check(0 <= value <= 3600, f"{name} is {value}; it must be from 0 to 3600 seconds.")


@dataclass(frozen=True)
class EventRecording:
    """The events of one recording, or the error that prevented them.

    Attributes:
        name: the path as given; "-" for standard input, "" for what has no name.
        seconds: the length of the recording.
        events: in the order of their starts.
        error: why there are none, or None.
    """

    name: str
    seconds: float = 0.0
    events: Sequence[Event] = ()
    error: DymnError | None = None


def decide(frames: Frames, settings: EventSettings | None = None) -> list[Event]:
    """Return the events that frames amount to, in the order of their start, at equal starts the likeliest first."""
    settings = settings or EventSettings()
    off = OFF_SHARE * settings.threshold if settings.off_threshold is None else settings.off_threshold
    edges = frames.edges
    size = max(0, round((settings.median / frames.hop - 1) / 2)) * 2 + 1 if frames.hop else 1
    events: list[Event] = []
    for column in np.flatnonzero(frames.scores.max(axis=0) >= settings.threshold):
        scores = median_filtered(frames.scores[:, column], size)
        first, last = hysteresis(scores, settings.threshold, off)
        starts, ends = joined(edges[first], edges[last], settings.min_gap)
        for start, end in zip(starts, ends, strict=True):
            inside = slice(int(np.searchsorted(edges, start)), int(np.searchsorted(edges, end)))
            if end - start >= settings.min_duration:
                events.append(Event(frames.labels[column], float(start), float(end), float(scores[inside].max())))
    return sorted(events, key=lambda event: (event.start, -event.score, event.label))


def median_filtered(scores: Scores, size: int) -> Scores:
    """Return the median of the `size` values around each of [T]; the first and last value stand for those beyond the ends."""
    if size <= 1:
        return scores
    padded = np.pad(scores, size // 2, mode="edge")
    medians: Scores = np.median(np.lib.stride_tricks.sliding_window_view(padded, size), axis=1).astype(np.float32)
    return medians


def hysteresis(scores: Scores, on: float, off: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return first frames and, exclusive, last frames of the stretches of [T] that stay at `off` or above and reach `on`."""
    above = np.concatenate([[False], scores >= off, [False]])
    changes = np.flatnonzero(above[1:] != above[:-1])
    first, last = changes[::2], changes[1::2]
    if not len(first):
        return first, last
    reached = np.maximum.reduceat(np.append(scores, np.float32(-1)), np.ravel([first, last], order="F"))[::2] >= on
    return first[reached], last[reached]


def joined(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], gap: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return stretches in the order of time, those with at most `gap` seconds between them made one."""
    if not len(starts):
        return starts, ends
    apart = starts[1:] - ends[:-1] > gap + 1e-9
    return starts[np.append(True, apart)], ends[np.append(apart, True)]
