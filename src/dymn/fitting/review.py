"""Active learning: selects the windows whose scores are closest to a threshold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dymn.config import check
from dymn.errors import AudioError, ConfigError, DataError, DymnError
from dymn.inference.files import tag_files
from dymn.inference.selection import Selection, TagSettings
from dymn.runtime.backend import Backend
from dymn.runtime.scores import thresholds_of
from dymn.system.arrays import Numbers

COUNT = 30
MOST_A_RECORDING = 3
LOWEST = 1e-6


class Doubt(NamedTuple):
    """A question: start and end of a window in seconds, a label, its score, and the closest threshold."""

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
    """Return the windows of recordings for which the model is least certain, the least certain first.

    The distance of a score from its threshold is measured in logits. Each window occurs at most once, with the label
    that is closest to its threshold. Questions alternate between labels, with at most three per recording.

    Args:
        backend: the model, with its stored thresholds (see `THRESHOLDS` in `dymn.runtime.scores`), or 0.5 without them.
        paths: recordings.
        settings: windows of the recordings, and the labels to ask about.
        count: maximum number of questions.
        workers: number of threads that decode recordings.
        progress: called with the name of each processed recording.

    Returns:
        the questions, and the errors of recordings that cannot be read, or whose names a table cannot contain.

    Raises:
        ConfigError: if a label is unknown, or `count` is below 1.
        DataError: if no recording can be used.
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
        path = os.path.abspath(recording.path)
        if not _is_text(path):
            bad.append(
                AudioError(f"{recording.name} has a name that is not UTF-8, as the table of answers is. Rename it.")
            )
            continue
        for window in recording.timeline:
            scores = {tag.label: tag.score for tag in window.tags}
            values = np.array([scores[label] for label in backend.labels])
            gaps = np.abs(_logit(values) - _logit(limits))[allowed]
            k = int(allowed[gaps.argmin()])
            one = Doubt(path, window.start, window.end, backend.labels[k], float(values[k]), float(limits[k]))
            found.append((float(gaps.min()), k, one))
    if not found:
        raise DataError(f"No recording can be used: {bad[0] if bad else 'none is given'}")
    return _in_turns(sorted(found), count), bad


def _limits(backend: Backend) -> Numbers:
    try:
        return thresholds_of(backend.card, "auto").astype(np.float64)
    except ConfigError:
        return np.full(len(backend.labels), 0.5)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # the name has bytes that are no text in UTF-8
        return False
    return True


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
