"""The constants of the log-mel spectrogram (Sec. IV-A.1) of the published weights: window, mel filters, logarithm.

They are computed in NumPy in one place, so that all backends use the same values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import FrontEndConfig
from dymn.system.arrays import Floats

PREEMPHASIS = 0.97
LOG_SHIFT, LOG_SCALE = 4.5, 0.2  # (log(max(mel + offset, floor)) + shift) * scale
TINY = 1e-30  # added where nothing else is: no power that is a normal number notices, and silence has a logarithm
SHORTEST = 32  # length of a Fourier transform that is compiled, always a power of two


def log_offset(config: FrontEndConfig) -> float:
    """Return what is added to the power of a mel band before the logarithm."""
    return config.log_offset or TINY


def lowest(config: FrontEndConfig) -> float | None:
    """Return the least value of a log-mel spectrogram if it is that of a floor, None without one."""
    return (math.log(config.log_floor) + LOG_SHIFT) * LOG_SCALE if config.log_floor else None


class Constants(NamedTuple):
    """What the transform multiplies with."""

    window: Floats  # [n_fft], zeros on both sides
    twiddles: Floats  # [n_fft, 2]: cosine and sine of -2 pi i / n_fft
    basis: Floats  # [n_mels, n_fft / 2 + 1]
    ranges: npt.NDArray[np.int32]  # [n_mels, 2]: where a filter is not zero


def constants(config: FrontEndConfig) -> Constants:
    """Return the constants of a front end in evaluation, f_min to f_max."""
    basis = mel_basis(config, config.f_min, config.f_max)
    missing = config.n_fft - config.win_length
    window = np.pad(hann_window(config.win_length), (missing // 2, missing - missing // 2))
    return Constants(window, twiddles(config.n_fft), basis, filter_ranges(basis))


def is_compilable(config: FrontEndConfig) -> bool:
    """Return whether the compiled Fourier transform supports this length."""
    return config.n_fft >= SHORTEST and config.n_fft & (config.n_fft - 1) == 0


def mel_basis(config: FrontEndConfig, f_min: float, f_max: float) -> Floats:
    """Return triangular mel filters [n_mels, n_fft / 2 + 1]: linear on the mel axis 1127 ln(1 + f / 700), peak 1.

    The column of the Nyquist bin is zero. Computed in float32, as for the published weights: in quiet bands the
    logarithm shows the difference to float64.
    """
    low, high = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (f_min, f_max))
    spacing = np.float32((high - low) / (config.n_mels + 1))
    index = np.arange(config.n_mels, dtype=np.float32)[:, None]
    # each [n_mels, 1]
    left, centre, right = (np.float32(low) + (index + np.float32(offset)) * spacing for offset in (0, 1, 2))
    ratios = 1 + np.arange(config.n_fft // 2, dtype=np.float32) * np.float32(
        config.sample_rate / config.n_fft
    ) / np.float32(700)
    # rounded once: the same on every machine
    bins = np.float32(1127) * np.log(ratios.astype(np.float64)).astype(np.float32)
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
    return np.pad(triangles, ((0, 0), (0, 1)))


def hann_window(length: int) -> Floats:
    """Return the symmetric Hann window [length]."""
    places = np.arange(length) / max(1, length - 1)
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * places) if length > 1 else np.ones(1), np.float32)


def twiddles(n_fft: int) -> Floats:
    """Return the cosine and sine of -2 pi i / n_fft, [n_fft, 2]."""
    angles = np.arange(n_fft) * (-2 * math.pi / n_fft)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def filter_ranges(basis: Floats) -> npt.NDArray[np.int32]:
    """Return where each filter of a mel basis is not zero, [n_mels, 2]; most of the basis is zeros."""
    n_bins = basis.shape[1]
    used, bins = basis != 0, np.arange(n_bins)
    end = np.where(used, bins + 1, 0).max(axis=1)
    start = np.minimum(np.where(used, bins, n_bins).min(axis=1), end)
    return np.stack([start, end], axis=1).astype(np.int32)
