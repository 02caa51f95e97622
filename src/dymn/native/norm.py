"""Compiled batch norm with the statistics of the batch, and the activation that follows it, for training on CPUs.

PyTorch keeps the map between the two for the gradient, and reads each map several times.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.native import structure
from dymn.native.gradients import Gradients, through_equation
from dymn.native.ops import call, is_compiled

_NORM = structure(
    ("x", "gradient", "weight", "bias", "out", "dx", "mean", "variance", "dweight", "dbias"),
    ("clips", "channels", "n", "activation"),
    ("eps",),
)
_ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Hardswish: 2}  # as in norm.c
_IDENTITY = nn.Identity()


def fits_normalised(x: Tensor, norm: nn.Module, *_: Any) -> bool:
    """Return whether there is compiled code for a map [B, C, F, T] and a norm in training."""
    if not (norm.training and isinstance(norm, nn.BatchNorm2d) and type(norm).forward is nn.BatchNorm2d.forward):
        return False
    if not norm.affine or norm.running_mean is None or norm.running_var is None or norm.momentum is None:
        return False
    if not is_compiled(x, norm.weight, norm.bias, norm.running_mean, norm.running_var) or _has_hooks(norm):
        return False
    shape_fits = x.ndim == 4 and x.shape[1] == norm.num_features and x.is_contiguous()
    return shape_fits and x.numel() > x.shape[1]  # PyTorch refuses a single value for each channel


def normalised(x: Tensor, norm: nn.BatchNorm2d, activation: nn.Module, *context: Any) -> Tensor:
    """Return the activation of a normalised map [B, C, F, T], and move the norm's running statistics.

    An activation for which there is no compiled code, such as Dy-ReLU, is called with the normalised map.
    """
    static = getattr(activation, "context_free", activation)
    is_known = type(static) in _ACTIVATIONS and not _has_hooks(activation) and not _has_hooks(static)
    follows = static if is_known else _IDENTITY
    out: Tensor = _Normalised.apply(x, norm.weight, norm.bias, norm, follows)  # type: ignore[no-untyped-call]
    return out if is_known else activation(out, *context)


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, activation: nn.Module
    ) -> Tensor:
        out = x.new_empty(x.shape)
        mean, variance = x.new_empty(2, x.shape[1], dtype=torch.float64)
        _normalise(x, weight, bias, mean, variance, norm.eps, activation, out=out)
        _follow(norm, mean, variance, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.eps, ctx.activation = norm.eps, activation
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():

            def equation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                y = functional.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
                return ctx.activation(y)  # type: ignore[no-any-return]

            return *through_equation(equation, (x, weight, bias), gradient, ctx.needs_input_grad[:3]), None, None
        dx = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        dweight, dbias = x.new_empty(2, x.shape[1])
        given = {"gradient": gradient.contiguous(), "dx": dx, "dweight": dweight, "dbias": dbias}
        _normalise(x, weight, bias, mean, variance, ctx.eps, ctx.activation, **given)
        return dx, dweight, dbias, None, None


def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics as PyTorch does, with the variance of a sample."""
    cast(Tensor, norm.num_batches_tracked).add_(1)
    for running, found in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
        cast(Tensor, running).lerp_(found.float(), cast(float, norm.momentum))


def _normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    activation: nn.Module,
    **results: Tensor | None,
) -> None:
    sizes = {"clips": x.shape[0], "channels": x.shape[1], "n": x.shape[2] * x.shape[3]}
    given = {"x": x, "weight": weight.contiguous(), "bias": bias.contiguous(), "mean": mean, "variance": variance}
    numbers = {"activation": _ACTIVATIONS[type(activation)], "eps": eps}
    call("dymn_normalise", _NORM, {**given, **results, **sizes, **numbers})
