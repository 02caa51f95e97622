"""The accuracy of events in annotated recordings: F1 of events and of seconds, and PSDS.

The metrics are those of sed_scores_eval. PSDS (Ebbers et al., "Threshold-independent evaluation of sound event
detection scores", ICASSP 2022) is computed from the frames at all thresholds, with dtc = gtc = 0.5 and up to
`MAX_FALSE_ALARMS` an hour. F1 is computed from the events.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dymn.audio.annotations import Annotation, read_annotated, warn_late
from dymn.data.detect import detect
from dymn.data.manifest import read_events
from dymn.errors import DataError, DymnError
from dymn.inference.events import Event, EventSettings, decide
from dymn.inference.frames import FramePart, Frames, Times, frame_parts, joined
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores
from dymn.system.extras import needing

COLLAR = 0.5
"""Tolerance of the start and end of an event in seconds; for its end, half of its length is also tolerated."""
MAX_FALSE_ALARMS = 500.0
STEPS = 20
"""Number of thresholds of PSDS per unit of the logit; its computing time grows with the square of their number."""
Truth = tuple[float, float, str]
"""Start and end in seconds, and label."""


class ClassEvents(NamedTuple):
    """Metrics of a class; `annotated` and `found` are numbers of events, precision and recall refer to events."""

    label: str
    annotated: int
    found: int
    precision: float
    recall: float
    f1: float
    segment_f1: float
    psds: float


class EventAssessment(NamedTuple):
    """Metrics of a model on annotated recordings.

    Attributes:
        recordings: number of recordings that were read.
        seconds: total length of the recordings.
        classes: metrics of the annotated classes that the model has.
        unknown: number of annotations of each label that the model does not have.
        beyond: number of annotations that start after the end of their recording.
        bad: recordings that cannot be read, with the reasons.
    """

    recordings: int
    seconds: float
    classes: list[ClassEvents]
    unknown: dict[str, int]
    beyond: int
    bad: dict[str, str]

    def mean(self, name: str) -> float:
        """Return the mean of a metric over the classes, such as "f1"."""
        return float(np.mean([getattr(one, name) for one in self.classes]))


def annotated_events(path: Path, kind: str = "auto") -> dict[Path, list[Annotation]]:
    """Return the annotations of each recording, from Raven or Audacity tables, or a CSV file of events.

    Args:
        path: a table, or a folder with tables.
        kind: "annotations", "csv", or "auto" to detect it from the files.

    Raises:
        DataError: if there are no annotations, or they cannot be read.
    """
    if kind == "auto":
        kind, path = detect(path)
    if kind == "csv":
        return read_events(path)
    if kind not in ("annotations", "folder"):  # tables may be deeper than `detect` searches
        raise DataError(
            f"{path} contains clips ({kind}). Events need recordings with Raven selection tables or Audacity label "
            "tracks (.txt), or a table with the columns path, start, end and label."
        )
    return read_annotated(path)


def assess_events(
    backend: Backend,
    annotated: Mapping[Path, Sequence[Annotation]],
    settings: EventSettings | None = None,
    *,
    collar: float = COLLAR,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EventAssessment:
    """Detect events in recordings and compare them with annotations, for the labels that occur in both.

    Args:
        backend: computes the network.
        annotated: the annotations of each recording; what is found and not annotated is a false alarm.
        settings: how events are found; `labels` and `exclude` are replaced.
        collar: seconds by which the bounds of an event may be wrong.
        batch_size, workers: as in `dymn.inference.files.tag_files`.
        progress: called with the recordings done and their total.

    Raises:
        ConfigError: if a setting does not fit the model.
        DataError: if no annotated label is known, or no recording that can be read has an annotation of one.
        MissingExtraError: if sed_scores_eval is not installed.
    """
    _scorers()  # reports a missing package before anything is computed
    names, unknown = known_labels(backend.labels, (one.label for ones in annotated.values() for one in ones))
    labels = tuple(label for label in backend.labels if label in names.values())
    if not labels:
        listed = ", ".join(list(unknown)[:5]) + (" and others" if len(unknown) > 5 else "")
        raise DataError(
            f"The model has none of the annotated labels: {listed}. Evaluate a model with these labels, or rename them."
        )
    settings = dataclasses.replace(settings or EventSettings(), labels=labels, exclude=()).of(backend)
    parts = frame_parts(backend, list(annotated), settings, batch_size=batch_size, workers=workers)
    truth, found, bad, beyond = dict[str, list[Truth]](), dict[str, Frames](), dict[str, str](), 0
    for number, (path, frames) in enumerate(zip(annotated, _recordings(parts, backend, settings), strict=True), 1):
        if isinstance(frames, DymnError):
            bad[str(path)] = str(frames)
        else:
            known = [one._replace(label=names[one.label]) for one in annotated[path] if one.label in names]
            beyond += warn_late(path, frames.seconds, known)
            truth[str(path)], found[str(path)] = truth_of(known, frames.seconds), frames
        if progress is not None:
            progress(number, len(annotated))
    present = {label for events in truth.values() for _, _, label in events}
    if not present:
        reason = f": {next(iter(bad.values()))}" if bad else "."
        raise DataError(f"No recording that can be read has an annotation of a known label{reason}")
    classes = tuple(label for label in labels if label in present)
    found = {name: of_labels(one, classes) for name, one in found.items()}
    events = {name: decide(one, settings, backend.card) for name, one in found.items()}
    figures = event_figures(truth, found, events, collar)
    return EventAssessment(len(found), sum(one.seconds for one in found.values()), figures, unknown, beyond, bad)


def _recordings(parts: Iterable[FramePart], backend: Backend, settings: EventSettings) -> Iterator[Frames | DymnError]:
    """Yield the frames of each recording, or why there are none."""
    own: list[FramePart] = []
    for part in parts:
        own.append(part)
        if part.is_last:
            yield part.error if part.error is not None else joined(own, backend, settings)
            own = []


def known_labels(labels: Sequence[str], given: Iterable[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return the model's label for each given one that it has, and how often each of the others is given.

    Upper and lower case are the same, unless the model has both.

    Example:
        >>> known_labels(["Dog", "Bark"], ["dog", "Bark", "Growl", "Growl"])
        ({'dog': 'Dog', 'Bark': 'Bark'}, {'Growl': 2})
    """
    folded = Counter(label.casefold() for label in labels)
    same = {label.casefold(): label for label in labels if folded[label.casefold()] == 1}
    counts = Counter(given)
    found = {name: name if name in labels else same.get(name.casefold()) for name in counts}
    known = {name: label for name, label in found.items() if label is not None}
    return known, {name: count for name, count in counts.items() if name not in known}


def of_labels(frames: Frames, labels: tuple[str, ...]) -> Frames:
    """Return frames with some of their labels, in the given order."""
    columns = [frames.labels.index(label) for label in labels]
    return dataclasses.replace(frames, labels=labels, scores=frames.scores[:, columns])


def truth_of(annotations: Iterable[Annotation], seconds: float) -> list[Truth]:
    """Return the annotations within a recording of `seconds`; those of a label that touch each other become one.

    Example:
        >>> annotations = [Annotation(Path("a.wav"), *span, "Dog") for span in ((1, 2), (1.5, 3), (9, 12))]
        >>> truth_of(annotations, 10)
        [(1, 3, 'Dog'), (9, 10, 'Dog')]
    """
    found: list[Truth] = []
    for one in sorted(annotations, key=lambda one: (one.label, one.start)):
        start, end = one.start, min(one.end, seconds)
        if start >= end:
            continue
        if found and found[-1][2] == one.label and start <= found[-1][1]:
            start, last, _ = found.pop()
            end = max(last, end)
        found.append((start, end, one.label))
    return sorted(found)


def event_figures(
    truth: Mapping[str, Sequence[Truth]],
    found: Mapping[str, Frames],
    events: Mapping[str, Sequence[Event]],
    collar: float = COLLAR,
    steps: int | None = STEPS,
) -> list[ClassEvents]:
    """Return the figures of each class.

    Args:
        truth: the annotated events of each recording; each class has one at least, and those of a class do not touch.
        found: the frames of each recording, all with the same labels: the classes.
        events: the events that these frames amount to.
        collar: seconds by which the bounds of an event may be wrong.
        steps: thresholds of PSDS for each unit of the logit; None is every one.

    Raises:
        MissingExtraError: if sed_scores_eval is not installed.
    """
    pandas, collar_based, intersection_based, segment_based = _scorers()

    def table(labels: tuple[str, ...], edges: Times, rows: Scores) -> Any:
        columns = dict(zip(labels, rows.T, strict=True))
        return pandas.DataFrame({"onset": edges[:-1], "offset": edges[1:], **columns})

    lengths = {name: frames.seconds for name, frames in found.items()}
    soft, hard = dict[str, Any](), dict[str, Any]()
    for name, frames in found.items():
        scores = frames.scores if steps is None else stepped(frames.scores, steps)
        soft[name] = table(frames.labels, frames.edges, scores)
        hard[name] = table(frames.labels, *drawn(events[name], frames.labels, frames.seconds))
    _, psds, *_ = intersection_based.psds(
        soft, truth, lengths, dtc_threshold=0.5, gtc_threshold=0.5, max_efpr=MAX_FALSE_ALARMS
    )
    collars = {"onset_collar": collar, "offset_collar": collar, "offset_collar_rate": 0.5}
    f1, precision, recall, counts = collar_based.fscore(hard, truth, 0.5, **collars)
    segment_f1, *_ = segment_based.fscore(hard, truth, lengths, 0.5, segment_length=1.0)
    return [
        ClassEvents(
            label,
            int(counts[label]["n_ref"]),
            int(counts[label]["tps"] + counts[label]["fps"]),
            *(float(figure[label]) for figure in (precision, recall, f1, segment_f1, psds)),
        )
        for label in next(iter(found.values())).labels
    ]


def _scorers() -> tuple[Any, ...]:
    """Return pandas and the modules of sed_scores_eval, or raise a `MissingExtraError`."""
    with needing("Evaluating events", "sed"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its companions use what setuptools will remove
        import pandas
        from sed_scores_eval import collar_based, intersection_based, segment_based
    return pandas, collar_based, intersection_based, segment_based


def drawn(events: Iterable[Event], labels: Sequence[str], seconds: float) -> tuple[Times, Scores]:
    """Return events as edges [T + 1] in seconds, and ones among zeros [T, C] between them."""
    events = list(events)
    edges: Times = np.unique([0.0, seconds, *(edge for event in events for edge in (event.start, event.end))])
    rows: Scores = np.zeros((len(edges) - 1, len(labels)), np.float32)
    for event in events:
        first, last = np.searchsorted(edges, (event.start, event.end))
        rows[first:last, labels.index(event.label)] = 1
    return edges, rows


def stepped(scores: Scores, steps: int) -> Scores:
    """Return probabilities whose logits are rounded to `steps` steps for each unit."""
    given = np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9)
    logits = np.round(np.log(given / (1 - given)) * steps) / steps
    found: Scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return found
