"""Compiled forms of three layer operations, with gradients, for training and evaluation on CPUs.

PyTorch takes a third of a training step for the gradient of a depthwise convolution with kernels of each clip's own,
and reads the feature map several times for those of Dy-ReLU and Coordinate Attention. Second derivatives are left to
autograd and the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dymn.native import structure
from dymn.native.ops import call, is_compiled, is_plain

_CONVOLUTION = structure(
    ("x", "weight", "gradient", "out", "dx", "dweight", "memory"),
    ("maps", "n_bands", "n_frames", "kernel_size", "stride"),
)
_MAXIMUM = structure(("x", "gradient", "slope", "intercept", "out", "dx", "dslope", "dintercept"), ("maps", "n"))
_WEIGHTS = structure(
    ("x", "gradient", "frequency", "time", "out", "dx", "dfrequency", "dtime"), ("maps", "n_bands", "n_frames")
)

Gradients = tuple["Tensor | None", ...]


def through_equation(
    equation: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor, needed: tuple[bool, ...]
) -> Gradients:
    """Return gradients that can be differentiated again, None where none is needed."""
    # so that no input depends on another: a kernel is read off the map
    inputs = tuple(tensor.view_as(tensor) for tensor in inputs)
    wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(equation(*inputs), wanted, gradient, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)


def fits_depthwise(x: Tensor, kernel: Tensor, stride: int) -> bool:
    """Return whether there is compiled code for a map [B, C, F, T] and kernels [..., C, k, k]."""
    if not is_compiled(x, kernel):  # first: a tracer would take sizes that are compared for constants
        return False
    k = kernel.shape[-1]
    fits = (
        x.ndim == 4
        and kernel.shape[-3:] == (x.shape[1], k, k)
        and min(x.shape[1:]) > 0
        and kernel.shape[:-3] in ((), (len(x),))
    )
    return fits and k in (3, 5) and stride in (1, 2)


def depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Filter each channel of each clip of [B, C, F, T] with a kernel of [B, C, k, k], zero-padded by k // 2."""
    return _Depthwise.apply(x, kernel, stride)  # type: ignore[no-any-return, no-untyped-call]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        n_clips, n_channels, n_bands, n_frames = x.shape
        out = x.new_empty(n_clips, n_channels, (n_bands - 1) // stride + 1, (n_frames - 1) // stride + 1)
        ctx.save_for_backward(x, kernel)
        ctx.stride = stride
        _filter(x, kernel, stride, out=out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, kernel = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = tuple(ctx.needs_input_grad[:2])
            return *through_equation(
                lambda x, kernel: _convolve(x, kernel, ctx.stride), (x, kernel), gradient, needed
            ), None
        dx, dkernel = (
            tensor.new_empty(tensor.shape) if wanted else None
            for tensor, wanted in zip((x, kernel), ctx.needs_input_grad, strict=False)
        )
        _filter(x, kernel, ctx.stride, gradient=gradient.contiguous(), dx=dx, dweight=dkernel)
        return dx, dkernel, None


def _convolve(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    n_clips, n_channels, n_bands, n_frames = x.shape
    k = kernel.shape[-1]
    merged, kernels = x.reshape(1, -1, n_bands, n_frames), kernel.reshape(-1, 1, k, k)
    out = torch.nn.functional.conv2d(merged, kernels, stride=stride, padding=k // 2, groups=n_clips * n_channels)
    return out.view(n_clips, n_channels, *out.shape[2:])


def _filter(x: Tensor, kernel: Tensor, stride: int, **results: Tensor | None) -> None:
    n_clips, n_channels, n_bands, n_frames = x.shape
    sizes = {"maps": n_clips * n_channels, "n_bands": n_bands, "n_frames": n_frames}
    sizes |= {"kernel_size": kernel.shape[-1], "stride": stride}
    given = {"x": x.contiguous(), "weight": kernel.contiguous()}
    call("dymn_depthwise", _CONVOLUTION, {**given, **results, **sizes}, memory="dymn_depthwise_memory")


def fits_maximum(x: Tensor, slopes: Tensor, intercepts: Tensor) -> bool:
    """Return whether `maximum` is worth it: two maps, and compiled code or a gradient to compute."""
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, slopes, intercepts))
    if not (is_compiled(x, slopes, intercepts) or (learns and is_plain())):
        return False
    return slopes.shape == intercepts.shape == (*x.shape[:2], 2)


def maximum(x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    """Return the maximum of two maps of x [B, C, F, T] with coefficients [B, C, 2].

    Its gradient reads the feature map less often than autograd's own; compiled, only once.
    """
    return _MaximumOfTwo.apply(x, slopes, intercepts)  # type: ignore[no-any-return, no-untyped-call]


class _MaximumOfTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
        ctx.save_for_backward(x, slopes, intercepts)
        if is_compiled(x, slopes, intercepts):
            out = x.new_empty(x.shape)
            _maximise(x, slopes, intercepts, out=out)
            return out
        return _maximum(x, slopes, intercepts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, slopes, intercepts = ctx.saved_tensors
        if torch.is_grad_enabled():
            return through_equation(_maximum, (x, slopes, intercepts), gradient, ctx.needs_input_grad)
        if is_compiled(x, slopes, intercepts, gradient):
            dx = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
            dslope, dintercept = slopes.new_empty(slopes.shape), intercepts.new_empty(intercepts.shape)
            _maximise(
                x, slopes, intercepts, gradient=gradient.contiguous(), dx=dx, dslope=dslope, dintercept=dintercept
            )
            return dx, dslope, dintercept
        (a0, a1), (b0, b1) = (values[..., None, None].unbind(2) for values in (slopes, intercepts))
        first = gradient * (torch.addcmul(b0 - b1, x, a0 - a1) > 0)  # where the first map is above the second
        second = gradient - first
        rows = x.reshape(-1, x.shape[3], 1)  # [B * C * F, T, 1]

        def sums(values: Tensor) -> tuple[Tensor, Tensor]:  # row by row, which rounds less than one sum of F * T terms
            if x.device.type != "cpu":  # which has no fast product of so many short rows, but sums that round little
                return (values * x).sum(dim=(2, 3)), values.sum(dim=(2, 3))
            products = values.reshape(-1, 1, x.shape[3]) @ rows
            return products.view(x.shape[:3]).sum(dim=2), values.sum(dim=(2, 3))

        (da0, db0), (da1, db1) = sums(first), sums(second)
        return torch.addcmul(first * a0, second, a1), torch.stack([da0, da1], dim=2), torch.stack([db0, db1], dim=2)


def _maximum(x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    (a0, a1), (b0, b1) = (values[..., None, None].unbind(2) for values in (slopes, intercepts))
    return torch.maximum(torch.addcmul(b0, x, a0), torch.addcmul(b1, x, a1))


def _maximise(x: Tensor, slopes: Tensor, intercepts: Tensor, **results: Tensor | None) -> None:
    sizes = {"maps": x.shape[0] * x.shape[1], "n": x.shape[2] * x.shape[3]}
    given = {"x": x.contiguous(), "slope": slopes.contiguous(), "intercept": intercepts.contiguous()}
    call("dymn_maximum", _MAXIMUM, {**given, **results, **sizes})


def fits_weighted(x: Tensor, frequency: Tensor, time: Tensor) -> bool:
    """Return whether there is compiled code for a map [B, C, F, T] and weights [B, C, F, 1] and [B, C, 1, T]."""
    if not is_compiled(x, frequency, time):
        return False
    return frequency.shape == (*x.shape[:3], 1) and time.shape == (*x.shape[:2], 1, x.shape[3])


def weighted(x: Tensor, frequency: Tensor, time: Tensor) -> Tensor:
    """Multiply [B, C, F, T] by weights [B, C, F, 1] and [B, C, 1, T], reading the map once for all gradients."""
    return _Weighed.apply(x, frequency, time)  # type: ignore[no-any-return, no-untyped-call]


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frequency: Tensor, time: Tensor) -> Tensor:
        out = x.new_empty(x.shape)
        ctx.save_for_backward(x, frequency, time)
        _weigh(x, frequency, time, out=out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, frequency, time = ctx.saved_tensors
        if torch.is_grad_enabled():
            return through_equation(lambda x, f, t: x * f * t, (x, frequency, time), gradient, ctx.needs_input_grad)
        dx = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        dfrequency, dtime = frequency.new_empty(frequency.shape), time.new_empty(time.shape)
        _weigh(x, frequency, time, gradient=gradient.contiguous(), dx=dx, dfrequency=dfrequency, dtime=dtime)
        return dx, dfrequency, dtime


def _weigh(x: Tensor, frequency: Tensor, time: Tensor, **results: Tensor | None) -> None:
    sizes = {"maps": x.shape[0] * x.shape[1], "n_bands": x.shape[2], "n_frames": x.shape[3]}
    given = {"x": x.contiguous(), "frequency": frequency.contiguous(), "time": time.contiguous()}
    call("dymn_weigh", _WEIGHTS, {**given, **results, **sizes})
