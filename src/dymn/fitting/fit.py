"""Custom classifiers: labelled recordings to a checkpoint, as in `dymn fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dymn import __version__
from dymn.config import check
from dymn.data.catalog import NEGATIVES
from dymn.errors import DataError, DymnError
from dymn.evaluation.metrics import per_class
from dymn.fitting.checkpoint import check_fittable, check_layer, head_inputs, with_head
from dymn.fitting.examples import CLIP_WINDOW, MADE, TRACK_WINDOW, LabelledWindows, OnClip, embed_labelled
from dymn.fitting.general import with_general
from dymn.fitting.heads import Fitted, fit_head
from dymn.fitting.labelled import Labelled, check_counts, recordings_of
from dymn.fitting.thresholds import ClassThresholds, FalseAlarms, class_thresholds
from dymn.inference.embedding import Embedder
from dymn.runtime.opening import open_backend
from dymn.weights.format import Stored

DIGITS = 4


class ClassReport(NamedTuple):
    """Metrics of a class after a fit, on held-out windows.

    Attributes:
        label: its name.
        recordings: number of recordings that contain it.
        windows: number of windows that contain it.
        average_precision: over all windows except those of synthetic or shipped background.
        thresholds: see `ClassThresholds`.
        likeliest_wrong: the window without the class with the highest score, as "path, start to end s: score".
    """

    label: str
    recordings: int
    windows: int
    average_precision: float
    thresholds: ClassThresholds
    likeliest_wrong: str


class FitResult(NamedTuple):
    """A fitted classifier.

    Attributes:
        stored: the checkpoint.
        classes: a report on each class.
        fitted: the fitted head.
        examples: the training examples.
        background_hours: hours of recorded background.
        counted_hours: hours of background in which false alarms are counted, recorded and shipped.
        bad: names and errors of the recordings that are left out.
    """

    stored: Stored
    classes: Sequence[ClassReport]
    fitted: Fitted
    examples: LabelledWindows
    background_hours: float
    counted_hours: float
    bad: Mapping[str, DymnError]


def fit_checkpoint(
    stored: Stored,
    labelled: Labelled,
    *,
    name: str = "",
    layer: str = "",
    exclusive: bool = False,
    made: bool = True,
    general: bool = True,
    track_window: float = TRACK_WINDOW,
    threads: int | None = None,
    workers: int = 0,
    progress: OnClip | None = None,
) -> FitResult:
    """Fit a classifier to labelled recordings, on the embeddings of a network.

    Args:
        stored: the network, from `dymn.weights.open_checkpoint`.
        labelled: from `dymn.fitting.labelled.read_labelled`.
        name: name of the new model.
        layer: input of the classifier, one of `dymn.fitting.checkpoint.LAYERS`; "" selects the hidden layer of the head
            or, if there is none, the last feature map.
        exclusive: whether each clip has exactly one class, so that probabilities are a softmax; background then becomes
            a class of that name.
        made: whether to add synthetic background: silence, noise, hum, tones and clicks.
        general: whether to add the background sounds that are shipped with dymn for this network, if any; not used with
            a softmax.
        track_window: length of the windows of annotated recordings, in seconds.
        threads: number of CPU threads of the network.
        workers: number of threads that decode recordings.
        progress: called with the number of processed recordings and their total.

    Raises:
        ConfigError: if a setting is not allowed.
        DataError: if there are too few recordings.
        MissingExtraError: if scikit-learn is not installed.

    Example:
        >>> stored = dymn.weights.open_checkpoint("dymn04_open")  # doctest: +SKIP
        >>> result = fit_checkpoint(stored, read_labelled("clips"))  # doctest: +SKIP
        >>> dymn.weights.format.save(result.stored, "mine.safetensors")  # doctest: +SKIP
    """
    check_fittable(stored)
    layer = check_layer(layer, stored.config)
    check(0.5 <= track_window <= 600, f"track_window is {track_window}; it must be from 0.5 to 600 seconds.")
    check_counts(recordings_of(labelled))  # before anything is computed
    embedder = Embedder(open_backend(stored, threads=threads, device="cpu"))
    examples, bad = embed_labelled(
        embedder, labelled, made=made, track_window=track_window, workers=workers, progress=progress
    )
    if general and not exclusive:
        examples = with_general(examples, stored)
    recorded, shipped = examples.background_of(), examples.background_of(general=True)  # before it becomes a class
    if exclusive:
        examples = _with_background(examples)
    hours, counted = recorded.hours, recorded.hours + shipped.hours
    alarms = FalseAlarms([recorded, shipped], len(labelled.labels))
    empty = ~examples.targets.any(axis=1)
    if len(examples.labels) == 1 and not (empty & examples.known.all(axis=1)).any():
        raise DataError(
            f"There is only the class {examples.labels[0]!r}, and no background. Add a folder background with "
            "recordings of other sounds."
        )
    try:
        fitted = fit_head(head_inputs(stored, examples.vectors, layer), examples, exclusive=exclusive)
    except DataError as error:
        if not bad:
            raise
        unread = f"Recordings that cannot be read: {len(bad)}, such as {next(iter(bad.values()))}"
        raise DataError(f"{error} {unread}") from error
    reports = [_report(examples, fitted, k, alarms) for k in range(len(examples.labels))]
    new = with_head(
        stored,
        fitted.head,
        examples.labels,
        layer,
        name=name,
        exclusive=exclusive,
        metrics=_metrics(reports),
        provenance=_provenance(stored, layer, fitted, reports, hours, counted),
    )
    return FitResult(new, reports, fitted, examples, hours, counted, bad)


def _with_background(examples: LabelledWindows) -> LabelledWindows:
    """Return examples with one more class, of windows without any; each window has exactly one class then.

    Raises:
        DataError: if a window has several, or it is not known which one it has.
    """
    several = examples.targets.sum(axis=1) > 1
    if several.any():
        place = examples.places[int(several.argmax())]
        raise DataError(f"{place.path} has several classes; a softmax needs exactly one. Leave --softmax out.")
    clear = examples.known.all(axis=1) | examples.targets.any(axis=1)
    if not clear.all():
        place = examples.places[int((~clear).argmax())]
        raise DataError(f"{place.path} has no class; a softmax needs exactly one. Leave --softmax out.")
    none = ~examples.targets.any(axis=1, keepdims=True)
    if not none.any():
        return examples
    targets = np.concatenate([examples.targets, none], axis=1)
    known = np.ones_like(targets)
    return dataclasses.replace(examples, labels=(*examples.labels, NEGATIVES[0]), targets=targets, known=known)


def _report(examples: LabelledWindows, fitted: Fitted, k: int, alarms: FalseAlarms) -> ClassReport:
    use = examples.known[:, k]
    scores, positive = fitted.held_out[:, k], examples.targets[:, k]
    given = ~examples.general
    recorded = use & given & ~examples.made
    real = recorded if (recorded & positive).any() else use & given  # background may be made alone
    precision = per_class(scores[real, None], positive[real, None])[0].average_precision
    wrong = int(np.where(use & ~positive, scores + given, -1).argmax())  # of those that can be listened to, if any
    place = examples.places[wrong]
    return ClassReport(
        examples.labels[k],
        sum(not group.startswith(MADE) for group in examples.groups_of(k)),
        int(positive.sum()),
        precision,
        class_thresholds(scores[use], positive[use], alarms.among(use)),
        f"{place.path}, {place.start:g} to {place.end:g} s: {scores[wrong]:.2f}",
    )


def _metrics(reports: Sequence[ClassReport]) -> dict[str, float]:
    return {
        "mAP (cross-validated)": round(float(np.mean([one.average_precision for one in reports])), DIGITS),
        "F1 (cross-validated)": round(float(np.mean([one.thresholds.f1 for one in reports])), DIGITS),
    }


def _provenance(
    base: Stored, layer: str, fitted: Fitted, reports: Sequence[ClassReport], hours: float, counted: float
) -> dict[str, Any]:
    """Return what a card says of a fit; lists are in the order of the labels."""
    source = base.card.provenance
    return {
        "method": f"dymn fit {__version__}: logistic regression on the layer {layer}, C {fitted.c:g}, calibrated, "
        f"chosen and measured by {fitted.folds}-fold cross-validation over recordings",
        "base": base.card.name,
        "base_sha256": base.digest or str(source.get("sha256", "")),
        "background_hours": round(hours, 3),
        "general_background_hours": round(counted - hours, 3),
        "config": {"data": {"seconds": CLIP_WINDOW, "fill": "repeat"}},
        "thresholds": {
            "auto": [round(one.thresholds.best, DIGITS) for one in reports],
            "precise": [round(one.thresholds.precise, DIGITS) for one in reports],
        },
        "classes": {
            "recordings": [one.recordings for one in reports],
            "windows": [one.windows for one in reports],
            "AP": [round(one.average_precision, DIGITS) for one in reports],
            "F1": [round(one.thresholds.f1, DIGITS) for one in reports],
            "recall_precise": [round(one.thresholds.recall, DIGITS) for one in reports],
        },
    }
