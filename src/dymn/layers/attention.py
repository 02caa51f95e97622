"""Attention between the depthwise and the project convolution (Sec. III-F, VI-C): a dict from name to class.

Every class is built with (c_exp, context_size, stride) and called with the feature map and the context of the block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.config import round_channels
from dymn.layers.context import Context


class CoordinateAttention(nn.Module):
    """Channel-frequency and channel-time weights from the two sequences of the context (eq. 7, Fig. 3; [15])."""

    needs_context = True

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.frequency = nn.Conv2d(context_size, channels, kernel_size=1)
        self.time = nn.Conv2d(context_size, channels, kernel_size=1)

    def maps(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return the weights [B, C, F, 1] and [B, C, 1, T] at the resolution after the depthwise convolution."""
        frequency, time = context.frequency, context.time
        if self.stride > 1:
            frequency = functional.avg_pool2d(frequency, (3, 1), (self.stride, 1), (1, 0))
            time = functional.avg_pool2d(time, (1, 3), (1, self.stride), (0, 1))
        return torch.sigmoid(self.frequency(frequency)), torch.sigmoid(self.time(time))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Weigh [B, C, F, T] along both axes."""
        frequency, time = self.maps(context)
        return x * frequency * time


class SqueezeExcitation(nn.Module):
    """Channel weights from the mean of the feature map (eq. 4; [17]), as in MobileNetV3 but with a sigmoid."""

    needs_context = False

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        squeezed = round_channels(channels // 4)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Weigh the channels of [B, C, F, T]."""
        weights = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean(dim=(2, 3))))))  # [B, C]
        return x * weights[..., None, None]


ATTENTIONS: dict[str, type[nn.Module]] = {"ca": CoordinateAttention, "se": SqueezeExcitation}
