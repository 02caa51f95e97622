"""Dynamic ReLU, variant B (Sec. III-E, eqs. 3 and 6), and the static activations with the same signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dymn.models.layers.context import Context
from dymn.native.ops import call, is_compiled, structure

_MAXIMUM = structure(("x", "gradient", "slope", "intercept", "out", "dx", "dslope", "dintercept"), ("maps", "n"))

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "identity": nn.Identity}


class StaticActivation(nn.Module):
    """One of `ACTIVATIONS`, blind to the context."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[name]()

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Apply the activation to [B, C, F, T]."""
        return self.activation(x)  # type: ignore[no-any-return]


class DynamicReLU(nn.Module):
    """The maximum of M linear maps of each channel, whose slopes and intercepts come from the context.

    Slopes lie in (0, 2) for the first map and (-1, 1) for the others, intercepts in (-0.5, 0.5). Without a context signal
    the first two maps are x and 0, the plain ReLU.
    """

    SLOPE_RANGE = 1.0
    INTERCEPT_RANGE = 0.5

    def __init__(self, channels: int, *, context_size: int, n_maps: int) -> None:
        super().__init__()
        self.n_maps = n_maps
        self.coefficients = nn.Linear(context_size, 2 * n_maps * channels)

    def maps(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts, each [B, C, M]."""
        theta = 2 * torch.sigmoid(self.coefficients(context.vector)) - 1
        theta = theta.view(theta.shape[0], -1, 2 * self.n_maps)  # [B, C, 2 M]
        slopes, intercepts = theta[..., : self.n_maps], theta[..., self.n_maps :]
        first = torch.zeros_like(slopes)
        first[..., 0] = 1.0
        return slopes * self.SLOPE_RANGE + first, intercepts * self.INTERCEPT_RANGE

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply eq. 3 to [B, C, F, T]."""
        slopes, intercepts = self.maps(context)
        return maximum_of_maps(x, slopes.to(x.dtype), intercepts.to(x.dtype))


def maximum_of_maps(x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    """Return the maximum over m of slope_m x + intercept_m, for x [B, C, F, T] and coefficients [B, C, M]."""
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, slopes, intercepts))
    fits = slopes.shape == intercepts.shape == (*x.shape[:2], 2)
    if fits and (learns or is_compiled(x, slopes, intercepts)):
        return _MaximumOfTwo.apply(x, slopes, intercepts)  # type: ignore[no-any-return, no-untyped-call]
    a, b = (values[..., None, None].unbind(2) for values in (slopes, intercepts))  # M of [B, C, 1, 1]
    out = torch.addcmul(b[0], x, a[0])
    for slope, intercept in zip(a[1:], b[1:], strict=True):
        out = torch.maximum(out, torch.addcmul(intercept, x, slope))
    return out


class _MaximumOfTwo(torch.autograd.Function):
    """The maximum of two maps, with a gradient that reads the feature map less often than autograd's own; compiled, only once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
        x, slopes, intercepts = x.contiguous(), slopes.contiguous(), intercepts.contiguous()
        ctx.save_for_backward(x, slopes, intercepts)
        if is_compiled(x, slopes, intercepts):
            out = torch.empty_like(x)
            _call(x, slopes, intercepts, out=out)
            return out
        (a0, a1), (b0, b1) = (values[..., None, None].unbind(2) for values in (slopes, intercepts))
        return torch.maximum(torch.addcmul(b0, x, a0), torch.addcmul(b1, x, a1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, slopes, intercepts = ctx.saved_tensors
        if is_compiled(x, slopes, intercepts, gradient):
            dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
            dslope, dintercept = torch.empty_like(slopes), torch.empty_like(intercepts)
            _call(x, slopes, intercepts, gradient=gradient.contiguous(), dx=dx, dslope=dslope, dintercept=dintercept)
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


def _call(x: Tensor, slopes: Tensor, intercepts: Tensor, **results: Tensor | None) -> None:
    sizes = {"maps": x.shape[0] * x.shape[1], "n": x.shape[2] * x.shape[3]}
    call("dymn_maximum", _MAXIMUM, {"x": x, "slope": slopes, "intercept": intercepts, **results, **sizes})
