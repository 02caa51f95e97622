"""Synthetic background: silence, noises, hum, tones and clicks, always the same ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dymn.system.arrays import Floats

KINDS = ("silence", "white", "pink", "brown", "band", "hum", "tone", "clicks")
COUNT = 40
SECONDS = 10.0
LOUDNESS = (-3.0, -0.3)
"""The powers of ten between which peaks lie."""


def made_background(sample_rate: int, count: int = COUNT, seconds: float = SECONDS) -> Iterator[Floats]:
    """Yield waveforms [N] of each of `KINDS` in turn, from silence to half of full scale.

    Example:
        >>> float(abs(next(made_background(32_000))).max())  # silence comes first
        0.0
    """
    rng = np.random.default_rng(0)
    for i in range(count):
        made = _sound(KINDS[i % len(KINDS)], round(seconds * sample_rate), sample_rate, rng)
        peak = float(np.abs(made).max())
        level = 10 ** rng.uniform(*LOUDNESS)
        yield (made * (level / peak) if peak else made).astype(np.float32)


def _sound(kind: str, n: int, rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    times, noise = np.arange(n) / rate, rng.standard_normal(n)
    if kind == "silence":
        return np.zeros(n)
    if kind == "hum":
        mains = rng.choice([50.0, 60.0])
        return np.asarray(sum(np.sin(2 * np.pi * k * mains * times) / k for k in (1, 2, 3, 5)))
    if kind == "tone":
        return np.asarray(np.sin(2 * np.pi * rng.uniform(100, 6000) * times))
    if kind == "clicks":
        strikes = (rng.random(n) < 3 / rate) * noise
        return np.convolve(strikes, np.exp(-np.arange(rate // 16) / (rate // 100)))[:n]
    frequencies = np.fft.rfftfreq(n, 1 / rate)
    low = rng.uniform(50, 6000)
    shape = {
        "white": np.ones_like(frequencies),
        "pink": 1 / np.sqrt(np.maximum(frequencies, 20)),
        "brown": 1 / np.maximum(frequencies, 20),
        "band": ((frequencies > low) & (frequencies < 2 * low)).astype(float),
    }[kind]
    return np.fft.irfft(np.fft.rfft(noise) * shape, n)
