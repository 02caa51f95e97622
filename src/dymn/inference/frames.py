"""The probabilities of labels over time, by four methods, in parts.

`activation` runs the network on windows of the training length and applies its head to each frame of the last feature
map, like class activation maps, instead of to their mean. `windows` runs the whole network on short overlapping
windows. `combined` is the geometric mean of these two: long windows classify sounds better, short windows locate them
better. `frames` uses the scores of a frame-wise network on consecutive windows of the training length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dymn.errors import DymnError
from dymn.inference.makers import FrameMaker, frame_maker
from dymn.inference.methods import METHODS as METHODS
from dymn.inference.methods import FrameSettings as FrameSettings
from dymn.inference.methods import Times as Times
from dymn.inference.selection import Selection
from dymn.inference.windows import AudioLike, AudioSource, Piece, RecordingInfo, one_result, run_windows
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores
from dymn.system.arrays import Floats


@dataclass(frozen=True)
class Frames(RecordingInfo):
    """The probabilities of labels over time.

    Attributes:
        labels: the C selected labels.
        times: centres of the frames in seconds [T].
        scores: probabilities [T, C].
        seconds: the length of the recording.
    """

    labels: tuple[str, ...]
    times: Times = field(repr=False)
    scores: Scores = field(repr=False)
    seconds: float

    @property
    def edges(self) -> Times:
        """The edges of the frames [T + 1], midway between the centres; the first is 0, the last the recording's end."""
        between = (self.times[1:] + self.times[:-1]) / 2
        return np.concatenate([[0.0], between, [max(self.seconds, self.times[-1])]])

    @property
    def hop(self) -> float:
        """The distance between frames in seconds."""
        return float(self.times[1] - self.times[0]) if len(self.times) > 1 else self.seconds


class FramePart(NamedTuple):
    """Consecutive frames of a recording.

    The last part of each recording has its length and its notes, or the error that ended it. With the method
    "frames", its last frames may lie beyond the end.
    """

    name: str
    times: Times  # [n], the middles of the frames in seconds
    scores: Scores  # [n, C]
    seconds: float | None = None
    error: DymnError | None = None
    info: Mapping[str, Any] = {}  # fields of `RecordingInfo`: all at the end, after an error the channel

    @property
    def is_last(self) -> bool:
        """Whether the recording ends with this part."""
        return self.seconds is not None or self.error is not None


PART_FRAMES = 512
"""The least number of frames of a part that is not the last: 1 MB of probabilities of 527 labels."""


def frames(
    backend: Backend,
    source: AudioLike,
    sample_rate: int | None = None,
    settings: FrameSettings | None = None,
    heard: Callable[[Floats], object] | None = None,
) -> Frames:
    """Return the probabilities of labels at points in time.

    An hour has some 12,000 frames, 24 MB for AudioSet's 527 labels; `frame_parts` yields them in parts.

    Args:
        backend, source, sample_rate, settings: as in `dymn.Tagger.frames`.
        heard: called with each block of samples [n] that is read.

    Raises:
        AudioError: if the source cannot be read.
        ConfigError: if a setting does not fit the model, or `sample_rate` is missing.
    """
    settings = (settings or FrameSettings()).of(backend)
    one_result(settings)
    parts = list(frame_parts(backend, [source], settings, sample_rate=sample_rate, heard=heard))
    return joined(parts, backend, settings)


def joined(parts: Sequence[FramePart], backend: Backend, settings: FrameSettings) -> Frames:
    """Return the parts of a recording as one, or raise the error that ended it."""
    settings = settings.of(backend)
    last = parts[-1]
    if last.error is not None:
        raise last.error
    times: Times = np.concatenate([part.times for part in parts])
    scores: Scores = np.concatenate([part.scores for part in parts])
    if settings.method == "frames":  # the last window may reach beyond the end
        within = max(1, int(np.searchsorted(times, last.seconds or 0.0)))
        times, scores = times[:within], scores[:within]
    return Frames(chosen_labels(backend, settings), times, scores, last.seconds or 0.0, **last.info)


def chosen_labels(backend: Backend, settings: FrameSettings) -> tuple[str, ...]:
    """Return the selected labels in the order of the backend's; a `ConfigError` if a pattern matches none."""
    return tuple(backend.labels[i] for i in Selection(backend.card, settings.tagging()).allowed)


def frame_parts(
    backend: Backend,
    sources: Iterable[AudioSource],
    settings: FrameSettings | None = None,
    *,
    sample_rate: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[str, float], None] | None = None,
    heard: Callable[[Floats], object] | None = None,
) -> Iterator[FramePart]:
    """Return the frames of recordings in parts, in memory that does not grow with the length of a recording.

    Arguments and errors are those of `dymn.inference.files.tag_files`; `heard` is called with each block that is read.

    Yields:
        parts of about `PART_FRAMES` frames, in the order of the recordings and in chronological order; `is_last` marks
        the last part of each recording.
    """
    maker = frame_maker(backend, settings or FrameSettings())
    scored = run_windows(
        backend,
        sources,
        maker,
        maker.compute,
        sample_rate=sample_rate,
        batch_size=batch_size,
        workers=workers,
        heard=heard,
        joins=maker.joins,
    )
    return collect_parts(scored, maker, backend.sample_rate, progress)


def collect_parts(
    scored: Iterable[tuple[Piece, Floats | None]],
    maker: FrameMaker,
    rate: int,
    progress: Callable[[str, float], None] | None,
) -> Iterator[FramePart]:
    """Yield the frames of recordings in parts, in order, from windows and what `maker.compute` returned for them."""
    times: list[Times] = []
    scores: list[Scores] = []
    for piece, row in scored:
        name, is_last = piece.recording.name, row is None
        seconds = piece.recording.seconds(rate) if is_last and piece.error is None else None
        middles, values = maker.finish(seconds) if row is None else maker.add(piece, row)
        times.append(middles)
        scores.append(values)
        if progress is not None and not is_last:
            progress(name, piece.end)
        if is_last or sum(map(len, times)) >= PART_FRAMES:
            info = {} if not is_last else piece.recording.info()
            if piece.error is not None:
                info = {"channel": piece.recording.channel}
            yield FramePart(name, np.concatenate(times), np.concatenate(scores), seconds, piece.error, info)
            times, scores = [], []
