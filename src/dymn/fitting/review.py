"""Which windows to ask about: those whose scores are nearest to a threshold, so that an answer teaches the most."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dymn.config import check
from dymn.errors import ConfigError, DataError, DymnError
from dymn.inference.files import tag_files
from dymn.inference.selection import Selection, TagSettings
from dymn.runtime.backend import Backend
from dymn.runtime.scores import thresholds_of
from dymn.system.arrays import Numbers

COUNT = 30
MOST_A_RECORDING = 3
LOWEST = 1e-6


class Doubt(NamedTuple):
    """A question: a stretch of a recording in seconds, a label, its score, and the threshold that it is near to."""

    path: str
    start: float
    end: float
    label: str
    score: float
    threshold: float


def doubts(
    backend: Backend,
    paths: Iterable[str | os.PathLike[str]],
    settings: TagSettings | None = None,
    *,
    count: int = COUNT,
    workers: int = 0,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Doubt], list[DymnError]]:
    """Return the windows of recordings that the model is least sure about, the least sure first.

    The distance of a score to its threshold is that of their logits. A window is asked about once, for the label that
    is nearest. Labels take turns, and a recording is asked about at most three times.

    Args:
        backend: the model. Its own thresholds count (see `THRESHOLDS` in `dymn.runtime.scores`), or 0.5 without them.
        paths: recordings.
        settings: how they are cut, and which labels are asked about.
        count: the largest number of questions.
        workers: threads that decode.
        progress: called with the name of each recording that is done.

    Returns:
        questions, and the errors of recordings that cannot be read.

    Raises:
        ConfigError: if a label is unknown, or `count` is below 1.
        DataError: if none can be read.
    """
    check(count >= 1, f"count is {count}; it must be at least 1.")
    wanted = settings or TagSettings()
    allowed = Selection(backend.card, wanted).allowed
    limits = _limits(backend)
    everything = TagSettings(0, 0.0, window=wanted.window, hop=wanted.hop, fill=wanted.fill)
    found: list[tuple[float, int, Doubt]] = []
    bad: list[DymnError] = []
    for recording in tag_files(backend, [os.fspath(path) for path in paths], everything, workers=workers):
        if progress is not None:
            progress(recording.name)
        if recording.error is not None:
            bad.append(recording.error)
            continue
        path = os.path.abspath(recording.name)
        for window in recording.timeline:
            scores = {tag.label: tag.score for tag in window.tags}
            values = np.array([scores[label] for label in backend.labels])
            gaps = np.abs(_logit(values) - _logit(limits))[allowed]
            k = int(allowed[gaps.argmin()])
            one = Doubt(path, window.start, window.end, backend.labels[k], float(values[k]), float(limits[k]))
            found.append((float(gaps.min()), k, one))
    if not found:
        raise DataError(f"No recording can be read: {bad[0] if bad else 'none is given'}")
    return _in_turns(sorted(found), count), bad


def _limits(backend: Backend) -> Numbers:
    try:
        return thresholds_of(backend.card, "auto").astype(np.float64)
    except ConfigError:
        return np.full(len(backend.labels), 0.5)


def _logit(values: Numbers) -> Numbers:
    clipped = np.clip(values, LOWEST, 1 - LOWEST)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _in_turns(ranked: Sequence[tuple[float, int, Doubt]], count: int) -> list[Doubt]:
    """Return the first questions, labels in turn, at most `MOST_A_RECORDING` of a recording."""
    asked: dict[str, int] = {}
    turns: dict[int, int] = {}
    kept: list[tuple[int, float, Doubt]] = []
    for gap, k, one in ranked:
        if asked.get(one.path, 0) < MOST_A_RECORDING:
            asked[one.path] = asked.get(one.path, 0) + 1
            turns[k] = turns.get(k, 0) + 1
            kept.append((turns[k], gap, one))
    return [one for _, _, one in sorted(kept, key=lambda item: item[:2])[:count]]
