"""What `replicate.py` measures and how sure it is.

NumPy alone, so that a machine without anything else can compute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
HEARD = 0.3  # a class counts as heard by the teacher above this probability
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its bootstrap interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def clip_excess(logits: Floats, teacher: Floats) -> npt.NDArray[np.float64]:
    """Return the excess cross-entropy of each clip [N], from logits of a network and its teacher [N, C].

    It is the cross-entropy against the teacher less the teacher's own entropy.
    """
    z, t = logits.astype(np.float64), teacher.astype(np.float64)
    p = 1 / (1 + np.exp(-t))
    # log(1 + exp(z)) - p z is the cross-entropy; with z = t, the entropy.
    excess: npt.NDArray[np.float64] = (np.logaddexp(0, z) - np.logaddexp(0, t) - p * (z - t)).mean(axis=1)
    return excess


def average_precision(
    scores: Floats, positive: npt.NDArray[np.bool_], counts: Floats | None = None
) -> npt.NDArray[np.float64]:
    """Return the average precision of each class [C], NaN without positives.

    Args:
        scores: [N, C].
        positive: [N, C].
        counts: how often each clip counts [N], as in a bootstrap; None for once.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    return ranked_precision(order, np.take_along_axis(positive, order, axis=0), counts)


def ranked_precision(
    order: npt.NDArray[np.int64], hits: npt.NDArray[np.bool_], counts: Floats | None = None
) -> npt.NDArray[np.float64]:
    """Return what `average_precision` does, from the order of the clips and the positives in that order [N, C]."""
    weights = np.ones(order.shape) if counts is None else counts[order]
    found = np.cumsum(weights * hits, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(found / np.cumsum(weights, axis=0))
        result: npt.NDArray[np.float64] = (weights * hits * precision).sum(axis=0) / found[-1]
    return result


def draws_of(n: int, groups: Sequence[str] | None, draws: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return how often each of `n` clips is in each bootstrap sample [draws, n].

    Clips are drawn, or whole groups of them.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return drawn[:, member].astype(np.float64)


def paired_bootstrap(difference: Floats, groups: Sequence[str] | None = None, draws: int = 10_000) -> Interval:
    """Return the mean of differences between pairs [N] and its 95 % interval (percentiles)."""
    counts = draws_of(len(difference), groups, draws)
    means = counts @ difference.astype(np.float64) / counts.sum(axis=1)
    return _interval(float(difference.mean()), means)


def precision_bootstrap(
    first: Sequence[Floats],
    second: Sequence[Floats],
    positive: npt.NDArray[np.bool_],
    groups: Sequence[str] | None = None,
    draws: int = 1000,
) -> Interval:
    """Return the difference of mAP between networks `first` and `second`, and its interval.

    Each network is given as the logits [N, C] of several seeds. Classes without positives in a sample are left out.
    """
    used = positive.any(axis=0)
    positive = positive[:, used]

    def ranked(scores: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        order = np.argsort(-scores[:, used], axis=0, kind="stable")
        return order, np.take_along_axis(positive, order, axis=0)

    sides = [[ranked(scores) for scores in side] for side in (first, second)]

    def difference(counts: Floats | None) -> float:
        means = [np.mean([np.nanmean(ranked_precision(order, hits, counts)) for order, hits in side]) for side in sides]
        return float(means[0] - means[1])

    return _interval(
        difference(None), np.array([difference(counts) for counts in draws_of(len(positive), groups, draws)])
    )


def _interval(estimate: float, samples: Floats) -> Interval:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))
