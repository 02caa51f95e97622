"""The depthwise convolution with kernels of its own for each clip, with clips and channels as its groups."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dymn.models.layers.operation import Operation


@Operation
def depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Filter each channel of each clip of [B, C, F, T] with a kernel of [B, C, k, k], zero-padded by k // 2."""
    n_clips, n_channels, n_bands, n_frames = x.shape
    merged = x.reshape(1, n_clips * n_channels, n_bands, n_frames)
    k = kernel.shape[-1]
    out = functional.conv2d(
        merged, kernel.reshape(-1, 1, k, k), stride=stride, padding=k // 2, groups=n_clips * n_channels
    )
    return out.view(n_clips, n_channels, *out.shape[2:])
