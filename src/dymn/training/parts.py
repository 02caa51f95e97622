"""Freezing of parts of a network, and layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn

from dymn.models.mobilenet import MobileNet


def parts(model: MobileNet) -> list[nn.Module]:
    """Return the parts of a network from the input to the output: stem, blocks, last convolution, head."""
    return [model.stem, *model.blocks, model.last, model.head]


def frozen(model: MobileNet, blocks: int) -> list[nn.Module]:
    """Return the frozen parts: the stem and the first `blocks` blocks; with all blocks, also the last convolution."""
    if blocks == 0:
        return []
    return parts(model)[:-1] if blocks >= len(model.blocks) else parts(model)[: blocks + 1]


def freeze(model: MobileNet, blocks: int) -> None:
    """Freeze weights and batch norm statistics of the `frozen` parts. Call it after each `model.train()`."""
    for part in frozen(model, blocks):
        part.requires_grad_(False).eval()


def parameter_groups(model: MobileNet, layer_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in groups for an optimiser.

    `share` is the factor of a group's learning rate: 1 for the head, and `layer_decay` times that of the next part for
    each part before it.
    """
    groups = []
    for distance, part in enumerate(reversed(parts(model))):
        learning = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if learning:
            groups.append({"params": learning, "share": layer_decay**distance})
    return groups


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of the running statistics of all batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
