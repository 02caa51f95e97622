"""Augmentation of waveforms and spectrograms (Secs. IV-A.1 and V-B, VI-A).

Randomness comes from a generator that is passed in.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from dymn.training.losses import mix

STYLE_EPSILON = 1e-6
SILENCE = 1e-3  # of full scale: softer clips are not amplified in a mixture
BANDS, FRAMES = 17, 9  # over which the spectrum and the level that a clip takes from another are averaged
MOST = 0.7  # by which they change a value: 15 dB with the standard front end
STEEPNESS = 20.0  # of the transition between the bands of two clips, over the range of all bands


class Crossing(IntEnum):
    """What a clip takes from another in `cross`."""

    NOTHING = 0
    LOWER_BANDS = 1
    UPPER_BANDS = 2
    SPECTRUM = 3
    LEVEL = 4


class Mixing(NamedTuple):
    """The partner of each clip, and the clip's own share in the mixture."""

    partner: Tensor  # [B] int64
    share: Tensor  # [B] float32


def draw_mixing(n: int, alpha: float, rng: np.random.Generator, probability: float = 1.0) -> Mixing:
    """Draw a permutation and shares max(l, 1 - l) with l ~ Beta(alpha, alpha); without mixing a share is 1."""
    l = rng.beta(alpha, alpha, n)  # noqa: E741
    share = np.where(rng.random(n) < probability, np.maximum(l, 1 - l), 1.0)
    return Mixing(torch.from_numpy(rng.permutation(n)), torch.from_numpy(share.astype(np.float32)))


def draw_styles(n: int, alpha: float, probability: float, rng: np.random.Generator) -> Mixing:
    """Draw a permutation and shares from Beta(alpha, alpha); with probability 1 - `probability`, no clip is mixed."""
    is_mixed, share = rng.random() < probability, rng.beta(alpha, alpha, n)
    partner = torch.from_numpy(rng.permutation(n))
    return Mixing(partner, torch.from_numpy(share.astype(np.float32)) if is_mixed else torch.ones(n))


def roll(waveform: Tensor, shifts: npt.NDArray[np.int64]) -> Tensor:
    """Shift each waveform of [B, N] circularly by a number of samples."""
    n = waveform.shape[1]
    rolled = torch.empty_like(waveform)
    for row, shift in enumerate(shifts % n):
        rolled[row] = torch.roll(waveform[row], int(shift))
    return rolled


def gain(waveform: Tensor, decibels: npt.NDArray[np.float64]) -> Tensor:
    """Change the level of each waveform of [B, N]."""
    factor = torch.from_numpy(10.0 ** (decibels / 20.0)).to(waveform)
    return waveform * factor[:, None]


def change_speed(waveform: Tensor, factors: npt.NDArray[np.float64]) -> Tensor:
    """Play each waveform of [B, N] faster (above 1) or slower, pitch included.

    Beyond its end, the waveform repeats from its beginning.

    Cubic interpolation between four samples; a factor of 1 changes nothing.
    """
    rows = np.flatnonzero(factors != 1.0)
    if not len(rows):
        return waveform
    # On a CPU one clip at a time, so that intermediate values fit into its caches.
    group = 1 if waveform.device.type == "cpu" else len(rows)
    parts = [rows[i : i + group] for i in range(0, len(rows), group)]
    played = [_played(waveform[torch.from_numpy(part).to(waveform.device)], factors[part]) for part in parts]
    return waveform.index_copy(0, torch.from_numpy(rows).to(waveform.device), torch.cat(played))


def _played(waveform: Tensor, factors: npt.NDArray[np.float64]) -> Tensor:
    """Return waveforms [B, N] at other speeds [B]; positions between samples are float64."""
    n = waveform.shape[1]
    factor = torch.from_numpy(factors).to(waveform.device)[:, None]
    place = torch.arange(n, device=waveform.device, dtype=torch.float64) * factor
    whole = place.floor()
    t = (place - whole).float()
    first = whole.long()
    length = int((n - 1) * factors.max()) + 3
    # What `first` counts in: the last sample, then the clip, repeated as often as needed.
    repeated = torch.cat([waveform[:, -1:], waveform.repeat(1, -(-length // n))[:, :length]], dim=1)
    a, b, c, d = (repeated.gather(1, first + i) for i in range(4))
    return b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def colour(waveform: Tensor, decibels: npt.NDArray[np.float64]) -> Tensor:
    """Filter each waveform of [B, N] with gains in decibels [B, K] at K frequencies.

    The frequencies are an octave apart, from half the sample rate downwards. Between them, the gain is linear along the
    octaves; the phase does not change.
    """
    n, k = waveform.shape[1], decibels.shape[1]
    bins = torch.arange(n // 2 + 1, device=waveform.device, dtype=torch.float32)
    octave = torch.log2((n / 2) / bins.clamp(min=1.0)).clamp(0.0, k - 1.0)
    low = octave.floor().long().clamp(max=max(k - 2, 0))
    points = torch.from_numpy(decibels).to(waveform)
    curve = torch.lerp(points[:, low], points[:, (low + 1).clamp(max=k - 1)], octave - low)
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(waveform) * 10.0 ** (curve / 20.0), n=n)
    return filtered


def reverberate(
    waveform: Tensor, decays: npt.NDArray[np.float64], levels: npt.NDArray[np.float64], generator: torch.Generator
) -> Tensor:
    """Add reverberation to each waveform of [B, N]: a circular convolution with decaying noise.

    Args:
        waveform: [B, N].
        decays: number of samples in which the reverberation of each clip decays by 60 dB.
        levels: amplitude of the reverberation relative to the direct sound; 0 disables it.
        generator: generator of the noise, on the waveform's device.
    """
    rows = np.flatnonzero(levels)
    if not len(rows):
        return waveform
    where = torch.from_numpy(rows).to(waveform.device)
    chosen, n = waveform[where], waveform.shape[1]
    length = min(n, int(decays[rows].max()) + 1)
    decay, level = (torch.from_numpy(values[rows]).to(waveform)[:, None] for values in (decays, levels))
    noise = torch.randn(len(rows), length, generator=generator, device=waveform.device)
    echo = noise * 10.0 ** (-3.0 * torch.arange(length, device=waveform.device) / decay)
    echo = echo * level / echo.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
    return waveform.index_add(0, where, torch.fft.irfft(torch.fft.rfft(chosen) * torch.fft.rfft(echo, n=n), n=n))


def blend_waveforms(waveform: Tensor, partner: Tensor, ratios: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Add another clip to each of [B, N], softer by a number of decibels [B] (infinite: none).

    The level of the clip is kept. Its share [B] of the amplitude is also returned.
    """
    g = 10.0 ** (torch.from_numpy(ratios).to(waveform.device) / 20.0)
    inverse = (1.0 / g).float()[:, None]
    level = waveform.square().mean(dim=1, keepdim=True).sqrt().clamp(min=SILENCE)
    other = (waveform / level)[partner]
    mixed = (waveform + other * level * inverse) / (1.0 + inverse.square()).sqrt()
    return mixed, 1.0 / (1.0 + inverse[:, 0])


def mix_waveforms(waveform: Tensor, mixing: Mixing) -> Tensor:
    """Mix waveforms [B, N], whose means are removed before and after mixing."""
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    mixed = mix(centred, mixing.partner, mixing.share)
    return mixed - mixed.mean(dim=1, keepdim=True)


def cut_short(waveform: Tensor, shares: npt.NDArray[np.float64]) -> Tensor:
    """Silence each waveform of [B, N] after a share of its samples, like the zero padding of a short clip."""
    n = waveform.shape[1]
    kept = torch.from_numpy(np.ceil(shares * n)).to(waveform.device)[:, None]
    return torch.where(torch.arange(n, device=waveform.device) < kept, waveform, 0.0)


def mix_styles(log_mel: Tensor, mixing: Mixing) -> Tensor:
    """Mix mean and standard deviation of each clip of [B, 1, F, T] in every band with another's (Freq-MixStyle).

    These statistics largely describe the recording device (as in the public code for DCASE20).
    """
    mean = log_mel.mean(dim=(1, 3), keepdim=True)  # [B, 1, F, 1]
    spread = (log_mel.var(dim=(1, 3), keepdim=True) + STYLE_EPSILON).sqrt()
    plain = (log_mel - mean) / spread
    mixed: Tensor = plain * mix(spread, *mixing) + mix(mean, *mixing)
    return mixed


def cross(
    log_mel: Tensor,
    partner: Tensor,
    parts: npt.NDArray[np.int64],
    amounts: npt.NDArray[np.float64],
    edges: npt.NDArray[np.float64],
) -> Tensor:
    """Let each clip of [B, 1, F, T] take a part of another; only a teacher that hears the result can label it.

    Bands are replaced. The mean spectrum acts as a filter that makes it the partner's. The level acts as a gain, which
    rises and falls as the partner's level does. Spectrum and level are smooth, and leave silence as it is.

    Args:
        log_mel: spectrograms.
        partner: which clip each takes a part of [B].
        parts: which `Crossing` each takes [B].
        amounts: how much of the spectrum or level each takes [B], between 0 and 1.
        edges: where the partner's bands end or begin [B], as a share of all bands; the transition is gradual.
    """

    def column(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(log_mel.device)[:, None, None, None]

    n_bands, other, part = log_mel.shape[2], log_mel[partner], column(parts)
    band = (torch.arange(n_bands, device=log_mel.device)[:, None] + 0.5) / n_bands
    upper = torch.sigmoid(STEEPNESS * (band - column(edges).float()))  # [B, 1, F, 1]
    weight = torch.where(part == Crossing.UPPER_BANDS, upper, 1.0 - upper)
    spectrum = _smooth((other - log_mel).mean(dim=3)[:, 0], BANDS)[:, None, :, None]
    level = other.mean(dim=2)[:, 0]
    level = _smooth(level - level.mean(dim=1, keepdim=True), FRAMES)[:, None, None, :]
    change = (column(amounts).float() * torch.where(part == Crossing.SPECTRUM, spectrum, level)).clamp(-MOST, MOST)
    floor = log_mel.amin(dim=(2, 3), keepdim=True)
    moved = torch.where(log_mel > floor, torch.maximum(log_mel + change, floor), log_mel)
    has_bands = (part == Crossing.LOWER_BANDS) | (part == Crossing.UPPER_BANDS)
    crossed = torch.where(has_bands, torch.lerp(log_mel, other, weight), moved)
    return torch.where(part == Crossing.NOTHING, log_mel, crossed)


def _smooth(curves: Tensor, width: int) -> Tensor:
    """Return curves [B, N], averaged over `width` (odd) values."""
    return avg_pool1d(curves, width, stride=1, padding=width // 2, count_include_pad=False)


def spec_augment(
    log_mel: Tensor,
    frequency_mask: int,
    time_mask: int,
    chances: npt.NDArray[np.float64],
    value: float | None = None,
) -> Tensor:
    """Mask one stripe of bands and one of frames of each clip of [B, 1, F, T] (SpecAugment).

    Each stripe is at most as wide as the given number. Stripes are set to `value` or, by default, to the clip's mean.
    `chances` [B, 4], uniform in [0, 1), determine width and position in frequency, then in time.
    """
    n_bands, n_frames = log_mel.shape[2:]
    bands = _stripes(n_bands, frequency_mask, chances[:, :2]).to(log_mel.device)[:, None, :, None]
    frames = _stripes(n_frames, time_mask, chances[:, 2:]).to(log_mel.device)[:, None, None, :]
    silence = log_mel.mean(dim=(1, 2, 3), keepdim=True) if value is None else log_mel.new_tensor(value)
    return torch.where(bands | frames, silence, log_mel)


def _stripes(size: int, longest: int, chances: npt.NDArray[np.float64]) -> Tensor:
    """Return which of `size` places are in the stripe of each clip [B, size], bool."""
    width = np.floor(chances[:, :1] * (min(longest, size) + 1))
    start = np.floor(chances[:, 1:] * (size - width + 1))
    place = np.arange(size)
    return torch.from_numpy((start <= place) & (place < start + width))
