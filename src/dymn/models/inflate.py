"""Initialisation of a dynamic network from a static one of the same width.

MN and DyMN share Table I, so each of the K kernels can begin as the static kernel, disturbed so that the K can part,
their mean the static kernel still: a uniform kernel attention changes nothing. Norms, first and last convolution and
head are taken over. Squeeze-and-Excitation has no place in a dynamic block: its mean weights are folded into the
project kernels. Coordinate Attention begins nearly open, at `GATE`, which the project kernels make up for. The Dy-ReLU
begins as a ReLU; where the static network has a hard swish, training finds the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dymn.errors import ConfigError
from dymn.models.layers import DynamicConv2d
from dymn.models.layers.attention import CoordinateAttention, SqueezeExcitation
from dymn.models.layers.context import OwnContext
from dymn.models.mobilenet import MobileNet

GATE = 0.8
GATE_WEIGHTS = 0.1  # in units of their usual initial size
DISTURBANCE = 0.5  # of kernels, in units of their standard deviation


@torch.no_grad()
def inherit(student: MobileNet, parent: MobileNet, log_mel: Tensor, generator: torch.Generator) -> MobileNet:
    """Give `student` the weights of `parent`, a static network; return it.

    Args:
        student: any network of Table I.
        parent: an MN of the same width, head and number of classes, on the same device. `dymn.models.narrow` makes one
            from a wider MN.
        log_mel: [B, 1, F, T], for the mean weights of Squeeze-and-Excitation and for the norms' statistics; use 64
            clips or more.
        generator: of the CPU; disturbs the kernels.

    Raises:
        ConfigError: if the channels of the two differ, or the parent has dynamic blocks.
    """
    _check(student, parent)
    for name in ("stem", "last", "head"):
        getattr(student, name).load_state_dict(getattr(parent, name).state_dict())
    openness = _mean_excitation(parent, log_mel)
    for block, static, excitation in zip(student.blocks, parent.blocks, openness, strict=True):
        attention = block.attention
        if isinstance(attention, CoordinateAttention):
            excitation = excitation / GATE
            for gate in (attention.frequency, attention.time):
                gate.weight.mul_(GATE_WEIGHTS)
                nn.init.constant_(cast(Tensor, gate.bias), math.log(math.sqrt(GATE) / (1 - math.sqrt(GATE))))
        for position in ("expand", "depthwise", "project"):
            stage, source = getattr(block, position), getattr(static, position)
            if not hasattr(source, "conv"):
                continue
            kernel = source.conv.weight
            if position == "project":
                kernel = kernel * excitation[None, :, None, None]
            conv: Any = stage.conv.part if isinstance(stage.conv, OwnContext) else stage.conv
            if isinstance(conv, DynamicConv2d):
                noise = torch.randn(conv.weight.shape, generator=generator).to(kernel.device) * kernel.std()
                conv.weight.copy_(kernel + DISTURBANCE * (noise - noise.mean(dim=0)))
            else:
                conv.weight.copy_(kernel)
            stage.norm.load_state_dict(source.norm.state_dict())
    calibrate(student, log_mel)
    return student


@torch.no_grad()
def calibrate(model: MobileNet, log_mel: Tensor, batch_size: int = 32) -> None:
    """Set the statistics of all batch norms to the mean over batches of log-mel spectrograms [B, 1, F, T]."""
    measure_norms(model, (log_mel[start : start + batch_size] for start in range(0, len(log_mel), batch_size)))


@torch.no_grad()
def measure_norms(model: MobileNet, batches: Iterable[Tensor]) -> None:
    """Set the statistics of all batch norms to the mean over batches [B, 1, F, T]."""
    was_training = model.training
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


def _mean_excitation(parent: MobileNet, log_mel: Tensor) -> list[Tensor]:
    """Return each block's Squeeze-and-Excitation weights [c_exp], averaged over clips (1 for blocks without)."""
    means = [torch.ones(block.c_exp, device=log_mel.device) for block in parent.config.blocks]

    def recorder(i: int) -> Callable[[SqueezeExcitation, tuple[Tensor], Tensor], None]:
        def record(module: SqueezeExcitation, inputs: tuple[Tensor], output: Tensor) -> None:
            means[i] = module.weights(inputs[0]).mean(dim=0)

        return record

    hooks = [
        block.attention.register_forward_hook(recorder(i))
        for i, block in enumerate(parent.blocks)
        if isinstance(block.attention, SqueezeExcitation)
    ]
    if hooks:
        parent.eval()(log_mel)
    for hook in hooks:
        hook.remove()
    return means


def have_same_channels(student: MobileNet, parent: MobileNet) -> bool:
    """Whether two networks have the same channels, kernel sizes and dilation everywhere."""
    one, other = (
        [(b.c_in, b.c_exp, b.c_out, b.kernel_size, b.dilation) for b in config.blocks]
        + [(config.in_chans, config.c_last, config.c_hidden)]
        for config in (student.config, parent.config)
    )
    return one == other


def _check(student: MobileNet, parent: MobileNet) -> None:
    heads = [(model.config.head, model.config.num_classes) for model in (student, parent)]
    if not have_same_channels(student, parent) or heads[0] != heads[1]:
        raise ConfigError(
            "Weights are inherited between networks of the same width, head, classes and input channels, without "
            f"dilation; these are {student.config.width:g} {heads[0]} and {parent.config.width:g} {heads[1]}."
        )
    if any(block.is_dynamic for block in parent.config.blocks):
        raise ConfigError("The parent has dynamic blocks; weights are inherited from a static network (an MN).")
