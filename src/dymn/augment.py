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
    n = waveform.shape[1]
    place = torch.arange(n, device=waveform.device) - torch.from_numpy(shifts % n).to(waveform.device)[:, None]
    return waveform.gather(1, place % n)


def gain(waveform: Tensor, decibels: npt.NDArray[np.float64]) -> Tensor:
    """Change the level of each waveform of [B, N]."""
    factor = torch.from_numpy(10.0 ** (decibels / 20.0)).to(waveform)
    return waveform * factor[:, None]


def mix_waveforms(waveform: Tensor, mixing: Mixing) -> Tensor:
    """Mix waveforms [B, N], each freed of its mean before and after."""
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    mixed = mix(centred, mixing.partner, mixing.share)
    return mixed - mixed.mean(dim=1, keepdim=True)


def cut_short(waveform: Tensor, shares: npt.NDArray[np.float64]) -> Tensor:
    """Silence each waveform of [B, N] after a share of its samples, as zero padding does to a clip shorter than its window."""
    n = waveform.shape[1]
    kept = torch.from_numpy(np.ceil(shares * n)).to(waveform.device)[:, None]
    return torch.where(torch.arange(n, device=waveform.device) < kept, waveform, 0.0)


def spec_augment(log_mel: Tensor, frequency_mask: int, time_mask: int, chances: npt.NDArray[np.float64]) -> Tensor:
    """Silence one stripe of bands and one of frames of each clip of [B, 1, F, T], each at most as wide as the given number ([74]).

    Stripes get the clip's mean. `chances` [B, 4], uniform in [0, 1), decide on width and place in frequency, then in time.
    """
    n_bands, n_frames = log_mel.shape[2:]
    bands = _stripes(n_bands, frequency_mask, chances[:, :2]).to(log_mel.device)[:, None, :, None]
    frames = _stripes(n_frames, time_mask, chances[:, 2:]).to(log_mel.device)[:, None, None, :]
    return torch.where(bands | frames, log_mel.mean(dim=(1, 2, 3), keepdim=True), log_mel)


def _stripes(size: int, longest: int, chances: npt.NDArray[np.float64]) -> Tensor:
    """Return which of `size` places lie in the stripe of each clip [B, size], bool."""
    width = np.floor(chances[:, :1] * (min(longest, size) + 1))
    start = np.floor(chances[:, 1:] * (size - width + 1))
    place = np.arange(size)
    return torch.from_numpy((start <= place) & (place < start + width))
