"""The depthwise convolution with kernels of each clip's own, compiled for CPUs where that can be had (`dymn/native/depthwise.c`).

PyTorch takes clips and channels together as the groups of one convolution. Its gradient for that takes a third of a training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dymn.native.ops import call, is_compiled, structure

_CONVOLUTION = structure(
    ("x", "weight", "gradient", "out", "dx", "dweight", "memory"), ("maps", "n_bands", "n_frames", "kernel_size", "stride")
)


def can_compile(x: Tensor, kernel: Tensor, stride: int) -> bool:
    """Return whether `depthwise` has compiled code for a map [B, C, F, T] and kernels [..., C, k, k]."""
    k = kernel.shape[-1]
    fits = x.ndim == 4 and kernel.shape[-3:] == (x.shape[1], k, k) and min(x.shape[1:]) > 0
    return fits and k in (3, 5) and stride in (1, 2) and is_compiled(x, kernel)


def depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Filter each channel of each clip of [B, C, F, T] with a kernel of [B, C, k, k], half a kernel of zeros around each map."""
    if len(x) == len(kernel) and can_compile(x, kernel, stride):
        return _Depthwise.apply(x, kernel, stride)  # type: ignore[no-any-return, no-untyped-call]
    n_clips, n_channels, n_bands, n_frames = x.shape
    merged = x.reshape(1, n_clips * n_channels, n_bands, n_frames)
    k = kernel.shape[-1]
    out = functional.conv2d(merged, kernel.reshape(-1, 1, k, k), stride=stride, padding=k // 2, groups=n_clips * n_channels)
    return out.view(n_clips, n_channels, *out.shape[2:])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        x, kernel = x.contiguous(), kernel.contiguous()
        n_clips, n_channels, n_bands, n_frames = x.shape
        out = x.new_empty(n_clips, n_channels, (n_bands - 1) // stride + 1, (n_frames - 1) // stride + 1)
        ctx.save_for_backward(x, kernel)
        ctx.stride = stride
        _call(x, kernel, stride, out=out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        dx, dkernel = (
            torch.empty_like(tensor) if wanted else None for tensor, wanted in zip((x, kernel), ctx.needs_input_grad, strict=False)
        )
        _call(x, kernel, ctx.stride, gradient=gradient.contiguous(), dx=dx, dweight=dkernel)
        return dx, dkernel, None


def _call(x: Tensor, kernel: Tensor, stride: int, **results: Tensor | None) -> None:
    n_clips, n_channels, n_bands, n_frames = x.shape
    sizes = {"maps": n_clips * n_channels, "n_bands": n_bands, "n_frames": n_frames, "kernel_size": kernel.shape[-1], "stride": stride}
    call("dymn_depthwise", _CONVOLUTION, {"x": x, "weight": kernel, **results, **sizes}, memory="dymn_depthwise_memory")
