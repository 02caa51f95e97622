"""Thresholds for each class, from scores of held-out clips."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.system.arrays import Numbers

PRECISION = 0.9
LEAST_FOUND = 1 / 3
"""The quantile of a class's own scores that a precise threshold never falls below, from `ENOUGH_HOURS` of background.

Precision among clips says little of recordings in which a class is rare. How many false alarms an hour brings can be
counted only in hours without the class.
"""
LEAST_FOUND_BLIND = 0.5
"""The same with less background, where false alarms cannot be counted, or fewer windows of the class."""
ENOUGH_HOURS, ENOUGH_WINDOWS = 0.25, 10
EQUAL = 0.01
"""Of thresholds whose F1 is this close to the best, the highest is taken: it lets fewer unheard sounds pass."""
FALSE_ALARMS_PER_HOUR = 1.0
LOWEST, HIGHEST = 1e-4, 0.9999


class ClassThresholds(NamedTuple):
    """The thresholds of a class.

    Attributes:
        best: with the highest F1, or nearly so.
        precise: for few false alarms.
        f1: at `best`.
        recall: the share of the class's windows that `precise` finds.
    """

    best: float
    precise: float
    f1: float
    recall: float


def class_thresholds(scores: Numbers, positive: npt.NDArray[np.bool_], hours: float) -> ClassThresholds:
    """Return the thresholds of a class.

    `best` is the highest threshold whose F1 is within 0.01 of the best one, midway between two neighbouring scores.
    `precise` is the lowest threshold with a precision of 0.9 that is exceeded by at most one negative per hour of
    background and is above the lowest third of the class's own scores; above the lower half, if there is less than a
    quarter of an hour of background, or fewer than ten windows of the class.

    Args:
        scores: probabilities of held-out windows [N].
        positive: whether each window has the class [N]; some must, and some must not.
        hours: of recorded background among the negatives.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    reported = np.arange(1, len(ranked) + 1)
    is_edge = np.append(ranked[:-1] > ranked[1:], True)  # equal scores pass together
    f1 = np.where(is_edge, 2 * hits / (reported + hits[-1]), -1)
    at = int(np.flatnonzero(f1 >= f1.max() - EQUAL)[0])
    below = ranked[at + 1] if at + 1 < len(ranked) else 0.0
    exact = np.flatnonzero(is_edge & (hits >= PRECISION * reported))
    negatives = np.sort(scores[~positive])[::-1]
    allowed = min(int(hours * FALSE_ALARMS_PER_HOUR), len(negatives) - 1)
    enough = hours >= ENOUGH_HOURS and positive.sum() >= ENOUGH_WINDOWS
    own = np.quantile(scores[positive], LEAST_FOUND if enough else LEAST_FOUND_BLIND)
    least = max(float(ranked[exact[-1]]) if len(exact) else HIGHEST, float(negatives[allowed]), float(own))
    best, precise = (float(np.clip(value, LOWEST, HIGHEST)) for value in ((ranked[at] + below) / 2, least))
    recall = float((scores[positive] >= precise).mean())
    return ClassThresholds(best, max(best, precise), float(f1[at]), recall)
