"""Learning rate and temperature by epoch (Sec. IV-A.2 and IV-A.3, V-B): pure functions."""

from __future__ import annotations

import math


def learning_rate_factor(epoch: float, *, warm_up: float, ramp_start: float, ramp_length: float, floor: float) -> float:
    """Return the share of the peak learning rate: exponential warm-up, constant, linear ramp-down, then `floor`.

    Args:
        epoch: counted from 0.
        warm_up: epochs until the peak; the factor is exp(-5 (1 - e / warm_up)^2) with e from 0.5 on.
        ramp_start: the epoch in which the ramp-down starts.
        ramp_length: number of epochs of the ramp-down.
        floor: the factor at the end of the ramp-down.
    """
    rise = 1.0
    if epoch < warm_up:
        rise = math.exp(-5.0 * (1.0 - max(epoch, 0.5) / warm_up) ** 2) if warm_up > 0.5 else 1.0
    descent = 0.0 if epoch <= ramp_start else min(1.0, (epoch - ramp_start) / ramp_length) if ramp_length > 0 else 1.0
    return rise * (1.0 - descent * (1.0 - floor))


def temperature(epoch: float, *, start: float, end: float, epochs: int) -> float:
    """Return the temperature of the kernel attention: linear from `start` in epoch 0 to `end` in epoch `epochs` - 1."""
    if epochs <= 1 or epoch >= epochs - 1:
        return end
    return start + (end - start) * epoch / (epochs - 1)
