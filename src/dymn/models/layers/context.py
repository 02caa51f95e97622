"""The Context Generation Module (Sec. III-C, Fig. 2).

One summary of the block input for all dynamic parts of the block.

`CONTEXTS` contains it and its variants of Table XII. Each class is constructed with (c_in, context_size) and called
with the block input; `feed` defines how a dynamic part of the block receives its context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.architectures import CONTEXTS
from dymn.config import round_channels
from dymn.models.layers.norm import normalised


class Context(NamedTuple):
    """The summary of a block's input: H values for the clip, and H for each frequency band and each time frame."""

    vector: Tensor  # [B, H]
    frequency: Tensor  # [B, H, F, 1]
    time: Tensor  # [B, H, 1, T]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the constants of MobileNetV3: eps 1e-3, momentum 0.01."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)


class ContextGenerator(nn.Module):
    """Pool over time and over frequency, embed both sequences with the same weights, average them (eqs. 5 and 6)."""

    feeds_parts = True  # whether the dynamic convolutions and activations of a block depend on it

    def __init__(self, c_in: int, context_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, context_size, kernel_size=1, bias=bias)
        self.norm = BatchNorm2d(context_size)
        self.activation = nn.Hardswish()

    def forward(self, x: Tensor) -> Context:
        """Summarise a feature map [B, C, F, T]."""
        n_bands, n_frames = x.shape[2:]
        bands = x.mean(dim=3, keepdim=True)  # [B, C, F, 1]
        frames = x.mean(dim=2, keepdim=True).transpose(2, 3)  # [B, C, T, 1]
        sequence = normalised(
            self.conv(torch.cat([bands, frames], dim=2)), self.norm, self.activation
        )  # [B, H, F + T, 1]
        frequency, time = torch.split(sequence, [n_bands, n_frames], dim=2)
        return Context(sequence.mean(dim=(2, 3)), frequency, time.transpose(2, 3))

    @staticmethod
    def feed(part: Callable[[int], nn.Module], channels: int, context_size: int, reduction: int) -> nn.Module:
        """Return a dynamic part of a block, made by `part` from the length of the context vector that it will be given.

        Args:
            part: builds the dynamic convolution or activation.
            channels: of the feature map that enters the part.
            context_size: H of the block.
            reduction: what the work that introduced the part divides its channels by, for a part that makes its own
                context.
        """
        return part(context_size)


class SeparateContextGenerator(ContextGenerator):
    """Embed the two sequences with weights of their own ("no shared seq. parameters", Sec. VI-F.1)."""

    def __init__(self, c_in: int, context_size: int) -> None:
        super().__init__(c_in, context_size)
        self.time_conv = nn.Conv2d(c_in, context_size, kernel_size=1, bias=False)
        self.time_norm = BatchNorm2d(context_size)

    def forward(self, x: Tensor) -> Context:
        """Summarise a feature map [B, C, F, T]."""
        frequency = normalised(self.conv(x.mean(dim=3, keepdim=True)), self.norm, self.activation)  # [B, H, F, 1]
        time = normalised(self.time_conv(x.mean(dim=2, keepdim=True)), self.time_norm, self.activation)  # [B, H, 1, T]
        return Context(torch.cat([frequency, time.transpose(2, 3)], dim=2).mean(dim=(2, 3)), frequency, time)


class ConcatenatedContextGenerator(ContextGenerator):
    """Pool the two sequences separately to a vector of 2 H values ("concat pooled seq.", Sec. VI-F.1)."""

    def forward(self, x: Tensor) -> Context:
        """Summarise a feature map [B, C, F, T]."""
        context = super().forward(x)
        return context._replace(
            vector=torch.cat([context.frequency.mean(dim=(2, 3)), context.time.mean(dim=(2, 3))], dim=1)
        )

    @staticmethod
    def feed(part: Callable[[int], nn.Module], channels: int, context_size: int, reduction: int) -> nn.Module:
        """Build the part for a vector of 2 H values; see `ContextGenerator.feed`."""
        return part(2 * context_size)


class AttentionContextGenerator(ContextGenerator):
    """Only for Coordinate Attention; other dynamic parts have contexts of their own (Sec. VI-F.1)."""

    feeds_parts = False

    @staticmethod
    def feed(part: Callable[[int], nn.Module], channels: int, context_size: int, reduction: int) -> nn.Module:
        """Build the part with a context of its own; see `ContextGenerator.feed`."""
        size = round_channels(channels // reduction)
        return OwnContext(part(size), channels, size)


class OwnContext(nn.Module):
    """A dynamic part that summarises its own input: global average, linear layer, ReLU (as in [13] and [14])."""

    def __init__(self, part: nn.Module, channels: int, size: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, size)
        self.part = part

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Apply the part to [B, C, F, T]; the context of the block is not used."""
        vector = functional.relu(self.squeeze(x.mean(dim=(2, 3))))  # [B, H]
        point = vector[..., None, None]  # the clip as one band and one frame
        return self.part(x, Context(vector, point, point))  # type: ignore[no-any-return]


CONTEXTS.update(
    shared=ContextGenerator,
    separate=SeparateContextGenerator,
    concatenated=ConcatenatedContextGenerator,
    own=AttentionContextGenerator,
)
