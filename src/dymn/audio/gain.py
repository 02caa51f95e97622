"""The gain of quiet recordings, and the loudest channel: both need a pass over the whole recording first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dymn.audio.decoder import Block
from dymn.system.arrays import Floats

TARGET_DB, PEAK_DB = -20.0, -1.0
"""What the loudest second, or else the largest sample, is raised to."""


class Loudness(NamedTuple):
    """Levels in dBFS: of the loudest second, without its mean, and of the largest sample; -inf for silence."""

    second: float
    peak: float

    @property
    def gain(self) -> float:
        """The dB by which a recording is raised; 0 for one that is loud, or silent."""
        return 0.0 if math.isinf(self.second) else max(0.0, min(TARGET_DB - self.second, PEAK_DB - self.peak))


def loudness(chunks: Iterable[Floats], rate: int) -> Loudness:
    """Return the levels of mono samples [n] at a rate in Hz; the sizes of the chunks change nothing."""
    most, peak, rest = 0.0, 0.0, np.zeros(0, np.float32)
    seconds = 0
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        whole = len(rest) // rate
        for second in rest[: whole * rate].reshape(whole, rate):
            most = max(most, float(second.astype(np.float64).var()))
        seconds += whole
        rest = rest[whole * rate :]
        peak = max(peak, float(np.abs(chunk).max(initial=0)))
    if len(rest) >= rate // 4 or (seconds == 0 and len(rest)):
        most = max(most, float(rest.astype(np.float64).var()))
    return Loudness(_decibels(most) / 2, _decibels(peak))


def loudest(blocks: Iterable[Block]) -> str:
    """Return the number of the channel with the most power, from 1, as text; of equal ones the first."""
    powers = np.zeros(1)
    for samples, _ in blocks:
        power = np.array([np.dot(one, one) for one in np.ascontiguousarray(samples.T)], np.float64)
        powers = np.pad(powers, (0, max(0, len(power) - len(powers))))
        powers[: len(power)] += power
    return str(int(powers.argmax()) + 1)


def _decibels(value: float) -> float:
    return 20 * math.log10(value) if value > 0 else -math.inf
