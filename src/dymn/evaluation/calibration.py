"""Calibration: scaling and shifting of logits, and the calibration error of probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

STEPS = 30  # of Newton's method
BINS = 10


class Affine(NamedTuple):
    """logits -> slope * logits + offset."""

    slope: float
    offset: float


class Reliability(NamedTuple):
    """Probabilities in `BINS` bins of equal width, and the frequency of positives in each.

    Attributes:
        predicted: mean probability of each bin that has any [B].
        true: share of positives in it [B].
        counts: how many probabilities it has [B].
        error: the expected calibration error (ECE), the mean distance of the two, weighted by the counts.
    """

    predicted: npt.NDArray[np.float64]
    true: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    error: float


def fit_affine(
    logits: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[np.floating[Any]],
    weights: npt.NDArray[np.floating[Any]] | None = None,
) -> Affine:
    """Return the map of logits [N] with the least binary cross-entropy against targets [N] in [0, 1].

    It is found by Newton's method. The slope is never negative; it is 0 if the logits do not predict the targets.

    Example:
        >>> z = np.linspace(-4, 4, 99)
        >>> fit_affine(z, 1 / (1 + np.exp(-(2 * z - 1))))
        Affine(slope=2.0, offset=-1.0)
    """
    z = np.stack([np.asarray(logits, np.float64).ravel(), np.ones(np.size(logits))])  # [2, N]
    q = np.asarray(targets, np.float64).ravel()
    w = np.ones_like(q) if weights is None else np.asarray(weights, np.float64).ravel()
    w = w / w.sum()

    def loss(at: npt.NDArray[np.float64]) -> float:
        found = at @ z
        return float((w * (np.logaddexp(0, found) - q * found)).sum())

    at = np.array([1.0, 0.0])
    for _ in range(STEPS):
        predicted = 1 / (1 + np.exp(-np.clip(at @ z, -50, 50)))
        gradient = z @ (w * (predicted - q))
        bend = (z * (w * predicted * (1 - predicted))) @ z.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, gradient)
        size = 1.0
        while size > 1e-6 and loss(at - size * step) > loss(at):
            size /= 2
        at = at - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    slope, offset = (round(float(value), 9) for value in at)
    if slope > 0:
        return Affine(slope, offset)
    share = float(np.clip((w * q).sum(), 1e-6, 1 - 1e-6))
    return Affine(0.0, float(np.log(share / (1 - share))))


def smoothed(positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return smoothed targets [N], so that probabilities fitted to few clips are not 0 or 1 (Platt, 1999, Sec. 2.2)."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    return np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))


def reliability(
    probabilities: npt.NDArray[np.floating[Any]],
    positive: npt.NDArray[np.bool_] | npt.NDArray[np.floating[Any]],
    bins: int = BINS,
) -> Reliability:
    """Return a comparison of probabilities [N] with labels or with reference probabilities [N].

    Example:
        >>> reliability(np.array([0.2, 0.9]), np.array([False, True])).error
        0.15
    """
    p, y = np.asarray(probabilities, np.float64).ravel(), np.asarray(positive, np.float64).ravel()
    place = np.minimum((p * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    full = counts > 0
    predicted = np.bincount(place, p, bins)[full] / counts[full]
    true = np.bincount(place, y, bins)[full] / counts[full]
    error = float((counts[full] * np.abs(predicted - true)).sum() / max(1, len(p)))
    return Reliability(predicted, true, counts[full], round(error, 12))
