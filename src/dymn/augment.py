"""Augmentation of waveforms and spectrograms (Secs. IV-A.1 and V-B, VI-A). All chance comes from the generator that is given."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dymn.losses import mix


class Mixing(NamedTuple):
    """Which clip each clip is mixed with, and how much of itself it keeps."""

    partner: Tensor  # [B] int64
    share: Tensor  # [B] float32


def draw_mixing(n: int, alpha: float, generator: np.random.Generator, probability: float = 1.0) -> Mixing:
    """Draw a permutation and shares max(l, 1 - l) with l ~ Beta(alpha, alpha); without mixing a share is 1."""
    l = generator.beta(alpha, alpha, n)  # noqa: E741
    share = np.where(generator.random(n) < probability, np.maximum(l, 1 - l), 1.0)
    return Mixing(torch.from_numpy(generator.permutation(n)), torch.from_numpy(share.astype(np.float32)))


def roll(waveform: Tensor, shifts: npt.NDArray[np.int64]) -> Tensor:
    """Shift each waveform of [B, N] in time by a number of samples, around its end."""
    return torch.stack([row.roll(int(shift)) for row, shift in zip(waveform, shifts, strict=True)])


def gain(waveform: Tensor, decibels: npt.NDArray[np.float64]) -> Tensor:
    """Change the level of each waveform of [B, N]."""
    factor = torch.from_numpy(10.0 ** (decibels / 20.0)).to(waveform)
    return waveform * factor[:, None]


def mix_waveforms(waveform: Tensor, mixing: Mixing) -> Tensor:
    """Mix waveforms [B, N], each freed of its mean before and after."""
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    mixed = mix(centred, mixing.partner, mixing.share)
    return mixed - mixed.mean(dim=1, keepdim=True)


def spec_augment(log_mel: Tensor, frequency_mask: int, time_mask: int, generator: np.random.Generator) -> Tensor:
    """Silence one stripe of bands and one of frames of each clip of [B, 1, F, T], each of random width below the given one ([74]).

    Stripes get the clip's mean.
    """
    masked = log_mel.clone()
    n_bands, n_frames = log_mel.shape[2:]
    for clip in masked:
        mean = clip.mean()
        for size, longest, axis in ((n_bands, frequency_mask, 1), (n_frames, time_mask, 2)):
            if longest > 0:
                width = int(generator.integers(0, min(longest, size) + 1))
                start = int(generator.integers(0, size - width + 1))
                clip.narrow(axis, start, width).fill_(mean)
    return masked
