"""Thresholds for each class, from scores of held-out clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dymn.system.arrays import Bools, Numbers

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
"""Of all classes together, at their precise thresholds."""
LOWEST, HIGHEST = 1e-4, 0.9999
NEVER = 1e-9


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


class BackgroundHours(NamedTuple):
    """A source of background.

    Attributes:
        windows: which windows are from it, without any class [N].
        hours: its length.
        overlap: how many windows each moment is in; a sound that two windows hear is one alarm.
    """

    windows: Bools
    hours: float
    overlap: float = 1.0


class FalseAlarms(NamedTuple):
    """Where the false alarms of a class are counted.

    Attributes:
        backgrounds: a threshold holds for each of them, so that hours of silence do not hide what few minutes of speech
            show.
        n_classes: number of classes that share `FALSE_ALARMS_PER_HOUR`.
    """

    backgrounds: Sequence[BackgroundHours]
    n_classes: int = 1

    def among(self, use: Bools) -> FalseAlarms:
        """Return the same for some of the windows."""
        return self._replace(backgrounds=[one._replace(windows=one.windows[use]) for one in self.backgrounds])


def class_thresholds(scores: Numbers, positive: Bools, alarms: FalseAlarms) -> ClassThresholds:
    """Return the thresholds of a class.

    `best` is the highest threshold whose F1 is within 0.01 of the best one, midway between two neighbouring scores.
    `precise` is the lowest threshold with a precision of 0.9 that background exceeds at most 1 / `n_classes` times per
    hour, and that is above the lowest third of the class's own scores. With less than a quarter of an hour of
    background, it is above all negatives instead; then, or with fewer than ten windows of the class, it is also above
    the lower half of the class's own scores.

    Args:
        scores: probabilities of held-out windows [N].
        positive: whether each window has the class [N]; some must, and some must not.
        alarms: where false alarms are counted.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    reported = np.arange(1, len(ranked) + 1)
    is_edge = np.append(ranked[:-1] > ranked[1:], True)  # equal scores pass together
    f1 = np.where(is_edge, 2 * hits / (reported + hits[-1]), -1)
    at = int(np.flatnonzero(f1 >= f1.max() - EQUAL)[0])
    below = ranked[at + 1] if at + 1 < len(ranked) else 0.0
    exact = np.flatnonzero(is_edge & (hits >= PRECISION * reported))
    share = FALSE_ALARMS_PER_HOUR / alarms.n_classes
    quiet = [(scores[one.windows & ~positive], one) for one in alarms.backgrounds if one.hours >= ENOUGH_HOURS]
    measured = [_exceeded(found, one.hours * one.overlap * share) for found, one in quiet if len(found)]
    level = max(measured) if measured else float(scores[~positive].max())
    enough = bool(measured) and positive.sum() >= ENOUGH_WINDOWS
    own = np.quantile(scores[positive], LEAST_FOUND if enough else LEAST_FOUND_BLIND)
    least = max(float(ranked[exact[-1]]) if len(exact) else HIGHEST, level, float(own))
    best, precise = (float(np.clip(value, LOWEST, HIGHEST)) for value in ((ranked[at] + below) / 2, least))
    recall = float((scores[positive] >= precise).mean())
    return ClassThresholds(best, max(best, precise), float(f1[at]), recall)


def _exceeded(scores: Numbers, times: float) -> float:
    """Return the probability that as many further windows are expected to exceed `times` times.

    The excesses of the highest sqrt(N) logits of the windows [N] over the next one are taken as exponentially
    distributed (Weissman, Estimation of Parameters and Large Quantiles Based on the k Largest Observations, 1978). The
    mean of k of them is uncertain; with it, a further one exceeds y with the probability (1 + y / (k mean)) ** -k.
    """
    ranked = np.clip(np.sort(scores)[::-1], NEVER, 1 - NEVER)
    count = min(max(math.isqrt(len(ranked)), 2 * math.ceil(times)), len(ranked) - 1)
    if count <= times:  # hardly any window, or far too many alarms allowed
        return float(ranked[-1] if count else ranked[0])
    logits = np.log(ranked[: count + 1] / (1 - ranked[: count + 1]))
    mean = float((logits[:-1] - logits[-1]).mean())
    level = float(logits[-1]) + mean * count * math.expm1(math.log(count / times) / count)
    return 1 / (1 + math.exp(-level))
