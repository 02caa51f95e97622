"""Calibration of a checkpoint's probabilities on labelled clips, and thresholds for each class."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dymn import __version__
from dymn.config import ModelCard, check
from dymn.errors import ConfigError, DataError, DymnError, WeightsError
from dymn.evaluation.calibration import Affine, Reliability, fit_affine, reliability, smoothed
from dymn.evaluation.rounds import parts
from dymn.fitting.checkpoint import LAST, check_fittable, check_layer, logits_of
from dymn.fitting.examples import TRACK_WINDOW, LabelledWindows, OnClip, embed_labelled
from dymn.fitting.labelled import Labelled
from dymn.fitting.thresholds import ClassThresholds, FalseAlarms, class_thresholds
from dymn.inference.embedding import Embedder
from dymn.runtime.opening import open_backend
from dymn.runtime.scores import THRESHOLDS, thresholds_of
from dymn.system.arrays import Bools, Numbers
from dymn.weights.format import Stored

FOLDS = 5
LEAST = 5
"""The number of positive, and of negative, windows that a class needs for its own calibration."""
DIGITS = 4
UNCHANGED = Affine(1.0, 0.0)


class ClassCalibration(NamedTuple):
    """The calibration of one class.

    Attributes:
        label: its name.
        positives: the number of its windows.
        affine: scale and offset of its logits; the same for all classes with too few windows.
        thresholds: thresholds of the calibrated probabilities, if the class has windows.
    """

    label: str
    positives: int
    affine: Affine
    thresholds: ClassThresholds | None


class Calibrated(NamedTuple):
    """A calibrated checkpoint.

    Attributes:
        stored: the checkpoint.
        classes: a report on each class that occurs in the data.
        before: reliability of the original probabilities.
        after: reliability of cross-validated calibration; equal to `before` if calibration was not better.
        attempted: calibration error of cross-validated calibration; if it is above that of `before`, the probabilities
            are not changed.
        windows: number of windows.
        bad: names and errors of the recordings that are left out.
    """

    stored: Stored
    classes: Sequence[ClassCalibration]
    before: Reliability
    after: Reliability
    attempted: float
    windows: int
    bad: Mapping[str, DymnError]


def calibrate(
    stored: Stored,
    labelled: Labelled,
    *,
    name: str = "",
    track_window: float = TRACK_WINDOW,
    threads: int | None = None,
    workers: int = 0,
    progress: OnClip | None = None,
) -> Calibrated:
    """Scale and shift the logits of a checkpoint so that its probabilities are correct on labelled recordings.

    Each class with at least five positive and five negative windows gets its own scale and offset; the others share one
    that is fitted to all classes together. They are folded into the last layer. The metrics before and after, and the
    thresholds, are computed on held-out recordings. If calibration makes the probabilities worse, which can happen with
    few recordings, they are not changed, and only the thresholds are new.

    Args:
        stored: the checkpoint; its labels are matched with those of the data by name, and it may have more.
        labelled: from `dymn.fitting.labelled.read_labelled`, with the labels of the checkpoint as `known`.
        name: name of the new model; "" keeps the name.
        track_window: length of the windows of annotated recordings, in seconds.
        threads: number of CPU threads of the network.
        workers: number of threads that decode recordings.
        progress: called with the number of processed recordings and their total.

    Raises:
        ConfigError: if the model does not have all classes of the data, its probabilities are a softmax, or its head is
            not supported.
        DataError: if there are too few recordings.
    """
    labels = stored.card.labels
    check_fittable(stored)
    check(
        not stored.card.exclusive,
        f"The probabilities of {stored.card.name or 'the model'} are a softmax over classes; only independent "
        "probabilities can be calibrated. Fit it without --softmax.",
    )
    check(
        stored.config.head in ("mlp", "fully_convolutional"),
        f"{stored.card.name or 'The model'} has the head {stored.config.head}, into which no map of the logits can be "
        "folded. Fit a head to it with `dymn fit`.",
    )
    missing = [label for label in labelled.labels if label not in labels]
    if missing:
        lower = {label.lower().replace("_", " "): label for label in labels}
        close = difflib.get_close_matches(missing[0].lower().replace("_", " "), lower, n=3)
        like = f"similar labels of the model are {'; '.join(lower[name] for name in close)}"
        raise ConfigError(
            f"The dataset has the label {missing[0]!r}, which the model does not have. Rename it; "
            + (like if close else f"the model's labels are {'; '.join(labels[:3])} and so on")
            + "."
        )
    embedder = Embedder(open_backend(stored, threads=threads, device="cpu"))
    examples, bad = embed_labelled(
        embedder, labelled, made=False, track_window=track_window, workers=workers, progress=progress
    )
    chosen = [labels.index(label) for label in examples.labels]
    logits = logits_of(stored, examples.vectors)[:, chosen]
    numbers = _parts(examples)
    held_out = np.zeros_like(logits)
    for number in np.unique(numbers):
        test = numbers == number
        maps = _maps(logits, examples, ~test)
        held_out[test] = logits[test] * [one.slope for one in maps] + [one.offset for one in maps]
    use, everything = examples.known, np.ones(len(logits), bool)
    before, after = (reliability(_sigmoid(values[use]), examples.targets[use]) for values in (logits, held_out))
    attempted = after.error
    if attempted > before.error:
        held_out, after = logits, before
        final, shared = [UNCHANGED] * len(chosen), UNCHANGED
    else:
        final, shared = _maps(logits, examples, everything), _shared(logits, examples, everything)
    alarms = FalseAlarms([examples.background_of()], len(chosen))
    reports = [_report(examples, _sigmoid(held_out[:, k]), k, final[k], alarms) for k in range(len(chosen))]
    maps = [shared] * len(labels)
    for column, affine in zip(chosen, final, strict=True):
        maps[column] = affine
    new = _folded(stored, maps)
    provenance = _provenance(stored, reports, maps, before, attempted, len(logits))
    card = dataclasses.replace(new.card, name=name or new.card.name, provenance=provenance)
    return Calibrated(new._replace(card=card), reports, before, after, attempted, len(logits), bad)


def _parts(examples: LabelledWindows) -> Any:
    """Return the number of the part that each window belongs to [N]; groups stay whole.

    Raises:
        DataError: if there are fewer than two groups.
    """
    groups = list(dict.fromkeys(examples.groups))
    if len(groups) < 2:
        raise DataError(
            "There is only one recording; at least 2 are needed, one for fitting and one for measuring. Add or "
            "annotate another one, or split a long one into several files."
        )
    first = dict.fromkeys(groups, 0)
    for k in range(len(examples.labels)):
        first.update(dict.fromkeys(examples.groups_of(k), k + 1))
    of_group = dict(zip(groups, parts(np.array([first[g] for g in groups]), min(FOLDS, len(groups))), strict=True))
    return np.array([of_group[group] for group in examples.groups])


def _maps(logits: Numbers, examples: LabelledWindows, rows: Bools) -> list[Affine]:
    shared = _shared(logits, examples, rows)
    found = []
    for k in range(logits.shape[1]):
        use = rows & examples.known[:, k]
        positive = examples.targets[use, k]
        enough = min(int(positive.sum()), int((~positive).sum())) >= LEAST
        found.append(fit_affine(logits[use, k], smoothed(positive), examples.weights[use]) if enough else shared)
    return found


def _shared(logits: Numbers, examples: LabelledWindows, rows: Bools) -> Affine:
    """Return the map that fits all classes together."""
    use = examples.known & rows[:, None]
    weights = np.broadcast_to(examples.weights[:, None], use.shape)[use]
    return fit_affine(logits[use], smoothed(examples.targets[use]), weights)


def _sigmoid(logits: Numbers) -> Numbers:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _report(
    examples: LabelledWindows, scores: Numbers, k: int, affine: Affine, alarms: FalseAlarms
) -> ClassCalibration:
    use = examples.known[:, k]
    positive = examples.targets[use, k]
    found: ClassThresholds | None = None
    if positive.any() and not positive.all():
        found = class_thresholds(scores[use], positive, alarms.among(use))
    return ClassCalibration(examples.labels[k], int(positive.sum()), affine, found)


def _folded(stored: Stored, maps: Sequence[Affine]) -> Stored:
    """Return a checkpoint whose logits are mapped class by class, in its last layer or the norm after it."""
    slopes, offsets = (np.array([one[i] for one in map(tuple, maps)], np.float32) for i in range(2))
    state = dict(stored.state)
    part = "head.norm" if check_layer("", stored.config) == LAST else "head.classifier"
    weight = state[f"{part}.weight"]
    state[f"{part}.weight"] = weight * slopes.reshape(-1, *[1] * (weight.ndim - 1))
    state[f"{part}.bias"] = state[f"{part}.bias"] * slopes + offsets
    return stored._replace(state=state, digest="")


def _provenance(
    stored: Stored,
    reports: Sequence[ClassCalibration],
    maps: Sequence[Affine],
    before: Reliability,
    attempted: float,
    windows: int,
) -> dict[str, Any]:
    """Return what the card says, with thresholds; a class without windows of its own keeps those that it has."""
    labels = stored.card.labels
    found = {name: _kept_thresholds(stored.card, name, maps) for name in THRESHOLDS}
    for one in reports:
        if one.thresholds is not None:
            for name, value in zip(THRESHOLDS, one.thresholds[:2], strict=True):
                found[name][labels.index(one.label)] = round(value, DIGITS)
    return dict(stored.card.provenance) | {
        "calibration": f"dymn calibrate {__version__}: {windows} windows of {len(reports)} classes; expected "
        f"calibration error {before.error:.4f} before, {attempted:.4f} after, cross-fitted"
        + ("; probabilities were left as before" if attempted > before.error else ""),
        "thresholds": found,
    }


def _kept_thresholds(card: ModelCard, name: str, maps: Sequence[Affine]) -> list[float]:
    """Return the thresholds that a checkpoint has, mapped as its probabilities are; halves if it has none."""
    try:
        before = np.clip(thresholds_of(card, name).astype(np.float64), 1e-6, 1 - 1e-6)
    except (ConfigError, WeightsError):  # none, or invalid ones
        return [0.5] * len(card.labels)
    slopes, offsets = np.array(maps, np.float64).T
    return [round(float(value), DIGITS) for value in _sigmoid(slopes * np.log(before / (1 - before)) + offsets)]
