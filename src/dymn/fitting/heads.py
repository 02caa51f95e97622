"""Linear heads on standardised inputs: regularisation by cross-validation, and calibration of probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.errors import MissingExtraError
from dymn.evaluation.calibration import Affine, fit_affine, smoothed
from dymn.evaluation.linear import MAX_ITERATIONS
from dymn.evaluation.metrics import mean_average_precision
from dymn.evaluation.rounds import parts
from dymn.fitting.examples import LabelledWindows
from dymn.fitting.labelled import check_counts
from dymn.system.arrays import Bools, Numbers

GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the regularisation to choose from, C of scikit-learn."""
EQUAL = 0.005
"""Of figures that are this close, the one that regularises most is taken: it says less of sounds it has not heard.

With the background that comes with dymn, the best one is taken: the figure then counts sounds of all kinds.
"""
FOLDS = 5
LEAST_DEVIATION = 1e-3
"""Inputs are divided by their standard deviation, but by no less than this share of the mean of all deviations."""


class Linear(NamedTuple):
    """logits [N, C] = inputs [N, D] @ weight.T + bias, with weight [C, D] and bias [C]."""

    weight: Numbers
    bias: Numbers

    def logits(self, inputs: npt.NDArray[np.floating]) -> Numbers:
        """Return logits [N, C] of inputs [N, D]."""
        return np.asarray(inputs, np.float64) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Fitted:
    """A head, and what it says of windows that were held out.

    Attributes:
        head: for inputs as the network gives them.
        c: the chosen inverse strength of the regularisation.
        held_out: calibrated probabilities of each window by heads that did not learn from it [N, C].
        folds: into how many parts the windows were divided.
    """

    head: Linear
    c: float
    held_out: Numbers
    folds: int


def fit_head(inputs: npt.NDArray[np.floating], examples: LabelledWindows, *, exclusive: bool = False) -> Fitted:
    """Fit a head, and choose its regularisation by cross-validation over groups.

    Without `exclusive`, each class is a logistic regression, whose logits are then scaled and shifted to be right on
    held-out windows.

    Args:
        inputs: of the head [N, D].
        examples: what they belong to.
        exclusive: whether each window has exactly one of the classes: a softmax.

    Raises:
        DataError: if a class is in fewer than two recordings.
        MissingExtraError: if scikit-learn is not installed.
    """
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Fitting a classifier", "fit") from error
    numbers = _folds(examples)
    chosen: tuple[float, float, Numbers] | None = None
    equal = 0.0 if examples.general.any() else EQUAL
    for c in GRID:
        held_out = np.zeros(examples.targets.shape)
        for number in np.unique(numbers):
            test = numbers == number
            held_out[test] = _fit(inputs[~test], examples, ~test, c, exclusive).logits(inputs[test])
        figure = _figure(held_out, examples, exclusive)
        if chosen is None or figure > chosen[1] + equal:
            chosen = c, figure, held_out
    assert chosen is not None  # GRID is not empty
    c, _, held_out = chosen
    head = _fit(inputs, examples, np.ones(len(inputs), bool), c, exclusive)
    if exclusive:
        powers = np.exp(held_out - held_out.max(axis=1, keepdims=True))
        return Fitted(head, c, powers / powers.sum(axis=1, keepdims=True), len(np.unique(numbers)))
    maps = [_calibration(held_out[:, k], examples, k) for k in range(len(examples.labels))]
    slopes, offsets = np.array([one.slope for one in maps]), np.array([one.offset for one in maps])
    probabilities = 1 / (1 + np.exp(-(slopes * held_out + offsets)))
    scaled = Linear(head.weight * slopes[:, None], head.bias * slopes + offsets)
    return Fitted(scaled, c, probabilities, len(np.unique(numbers)))


def _folds(examples: LabelledWindows) -> npt.NDArray[np.int64]:
    """Return the number of the part that each window belongs to [N]; groups stay whole, and classes are spread evenly.

    Raises:
        DataError: if a class is in fewer than two groups.
    """
    sizes = {label: len(examples.groups_of(k)) for k, label in enumerate(examples.labels)}
    check_counts(sizes)
    rarest = sorted(range(len(examples.labels)), key=lambda k: sizes[examples.labels[k]])
    strata: dict[str, int] = {}
    for group in dict.fromkeys(examples.groups):
        strata[group] = len(rarest)
    for k in reversed(rarest):  # a group with several classes counts for the rarest
        strata.update(dict.fromkeys(examples.groups_of(k), k))
    count = min(FOLDS, min(sizes.values()))
    of_group = dict(zip(strata, parts(np.array(list(strata.values())), count), strict=True))
    return np.array([of_group[group] for group in examples.groups])


def _fit(known: npt.NDArray[np.floating], examples: LabelledWindows, rows: Bools, c: float, exclusive: bool) -> Linear:
    """Return a head for the rows, whose inputs are given, with the standardisation folded into it."""
    from sklearn.linear_model import LogisticRegression

    inputs = np.asarray(known, np.float64)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    deviation = np.maximum(deviation, LEAST_DEVIATION * max(float(deviation.mean()), 1e-12))
    inputs = (inputs - mean) / deviation
    targets, annotated, weights = examples.targets[rows], examples.known[rows], examples.weights[rows]
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    n_classes = targets.shape[1]
    weight, bias = np.zeros((n_classes, inputs.shape[1])), np.full(n_classes, -10.0)
    if exclusive:
        classes = targets.argmax(axis=1)
        model.fit(inputs, classes, weights)
        binary = len(model.classes_) == 2  # one row of coefficients for two classes
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if binary else model.coef_
        bias[model.classes_] = np.append(-model.intercept_, model.intercept_) / 2 if binary else model.intercept_
    else:
        for k in range(n_classes):
            use, positive = annotated[:, k], targets[annotated[:, k], k]
            if positive.any() and not positive.all():
                model.fit(inputs[use], positive, weights[use])
                weight[k], bias[k] = model.coef_[0], model.intercept_[0]
    weight = weight / deviation
    return Linear(weight, bias - weight @ mean)


def _figure(logits: Numbers, examples: LabelledWindows, exclusive: bool) -> float:
    if exclusive:
        right = logits.argmax(axis=1) == examples.targets.argmax(axis=1)
        return float(np.average(right, weights=examples.weights))
    return mean_average_precision(logits, examples.targets, examples.known)


def _calibration(logits: Numbers, examples: LabelledWindows, k: int) -> Affine:
    use = examples.known[:, k]
    return fit_affine(logits[use], smoothed(examples.targets[use, k]), examples.weights[use])
