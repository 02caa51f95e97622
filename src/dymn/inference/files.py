"""Tags of recordings: audio → windows → log-mel → network → probabilities → labels with a start and an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dymn.inference.selection import Selection, Tag, TagSettings, Timeline, WindowTags
from dymn.inference.windows import AudioSource, Piece, Result, run_windows
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores


@dataclass(frozen=True)
class Recording(Result):
    """The tags of one recording, or the error that prevented them.

    Attributes:
        name: the path as given; "-" for standard input, "" for sources without a name.
        seconds: the length of the recording.
        tags: the labels of the whole recording, best first.
        timeline: the labels of each window.
        scores: the probabilities of all labels for the whole recording [C]; empty after an error.
        error: why there are no tags, or None.
    """

    tags: Sequence[Tag] = ()
    timeline: Sequence[WindowTags] = ()
    scores: Scores = field(default_factory=lambda: np.empty(0, np.float32), repr=False)


def tag_files(
    backend: Backend,
    sources: Iterable[AudioSource],
    settings: TagSettings | None = None,
    *,
    sample_rate: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Iterator[Recording]:
    """Tag recordings in order, with windows of several in a batch; memory does not grow with their length.

    Args:
        backend: runs the network.
        sources: paths, "-" for standard input, open binary files, or arrays or tensors [N] or [channels, N].
        settings: settings of tagging.
        sample_rate: sample rate of arrays, in Hz.
        batch_size: number of windows per batch; the default is 4 on a CPU and 32 on other devices.
        workers: number of threads that decode recordings while the network runs; 0 decodes in the calling thread.
        progress: called with the name of a recording and the number of its seconds that have been processed.

    Yields:
        one `Recording` per source, in order, or with `channel="each"` one per channel. Recordings and channels that
        cannot be read have an `error`; the others are still tagged.

    Raises:
        ConfigError: if a setting does not fit the model.
        ResourceError: if a batch does not fit the device's memory.
    """
    settings = settings or TagSettings()
    scored = run_windows(
        backend,
        sources,
        settings,
        lambda features: backend.run(features).probabilities,
        sample_rate=sample_rate,
        batch_size=batch_size,
        workers=workers,
    )
    return collect_tags(scored, backend, settings, progress)


def collect_tags(
    scored: Iterable[tuple[Piece, Scores | None]],
    backend: Backend,
    settings: TagSettings,
    progress: Callable[[str, float], None] | None = None,
) -> Iterator[Recording]:
    """Return recordings, in order, from windows and probabilities [C] that `dymn.inference.windows.computed` yields.

    Raises:
        ConfigError: at once, if a setting does not fit the model.
    """
    return _collect(scored, backend.sample_rate, Selection(backend.card, settings), settings.combine, progress)


def _collect(
    scored: Iterable[tuple[Piece, Scores | None]],
    rate: int,
    selection: Selection,
    combine: str,
    progress: Callable[[str, float], None] | None,
) -> Iterator[Recording]:
    work = _Work(selection, combine)
    for piece, scores in scored:
        name = piece.recording.name
        if scores is not None:
            work.add(piece.start, piece.end, scores)
            if progress is not None:
                progress(name, piece.end)
            continue
        done, work = work, _Work(selection, combine)
        if piece.error is not None:
            yield Recording(name, error=piece.error, channel=piece.recording.channel)
            continue
        combined = done.scores()
        seconds = piece.recording.seconds(rate)
        best = selection.best(combined)
        tags = selection.tags(best, combined[best], 0.0, seconds)
        yield Recording(name, seconds, tags, done.timeline, combined, **piece.recording.info())


class _Work:
    """A recording while its windows come out of the network."""

    def __init__(self, selection: Selection, combine: str) -> None:
        self.timeline = Timeline(selection)
        self._combine = combine
        self._combined = np.zeros(len(selection.labels))
        self._weight = 0.0

    def add(self, start: float, end: float, scores: Scores) -> None:
        """Add the probabilities [C] of a window."""
        self.timeline.append(start, end, scores)
        if self._combine == "max":
            np.maximum(self._combined, scores, out=self._combined)
        else:
            self._combined += scores * (end - start)
            self._weight += end - start

    def scores(self) -> Scores:
        """Return the probabilities of the whole recording [C]."""
        return (self._combined / (self._weight or 1.0)).astype(np.float32)
