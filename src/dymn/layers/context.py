"""The Context Generation Module (Sec. III-C, Fig. 2): one summary of the block input for all dynamic parts of the block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Context(NamedTuple):
    """What a block knows of its input: H values for the clip, and H for each frequency band and each time frame."""

    vector: Tensor  # [B, H]
    frequency: Tensor  # [B, H, F, 1]
    time: Tensor  # [B, H, 1, T]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the constants of MobileNetV3: eps 1e-3, momentum 0.01."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)


class ContextGenerator(nn.Module):
    """Pool over time and over frequency, embed both sequences with the same weights, average them (eqs. 5 and 6)."""

    def __init__(self, c_in: int, context_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, context_size, kernel_size=1, bias=False)
        self.norm = BatchNorm2d(context_size)
        self.activation = nn.Hardswish()

    def forward(self, x: Tensor) -> Context:
        """Summarise a feature map [B, C, F, T]."""
        n_bands, n_frames = x.shape[2:]
        bands = x.mean(dim=3, keepdim=True)  # [B, C, F, 1]
        frames = x.mean(dim=2, keepdim=True).transpose(2, 3)  # [B, C, T, 1]
        sequence = self.activation(self.norm(self.conv(torch.cat([bands, frames], dim=2))))  # [B, H, F + T, 1]
        frequency, time = sequence.split([n_bands, n_frames], dim=2)
        return Context(sequence.mean(dim=(2, 3)), frequency, time.transpose(2, 3))
