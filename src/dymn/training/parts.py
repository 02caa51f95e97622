"""Which parts of a network learn, and how fast: freezing and learning rates that fall towards the input."""

from __future__ import annotations

from typing import Any

from torch import nn

from dymn.models.mobilenet import MobileNet


def parts(model: MobileNet) -> list[nn.Module]:
    """Return the parts of a network from the input to the output: stem, blocks, last convolution, head."""
    return [model.stem, *model.blocks, model.last, model.head]


def frozen(model: MobileNet, blocks: int) -> list[nn.Module]:
    """Return the parts that do not learn: the stem and the first `blocks` blocks.

    With all blocks, the last convolution too.
    """
    if blocks == 0:
        return []
    return parts(model)[:-1] if blocks >= len(model.blocks) else parts(model)[: blocks + 1]


def freeze(model: MobileNet, blocks: int) -> None:
    """Keep weights and norms' statistics of the `frozen` parts as they are. Call it after each `model.train()`."""
    for part in frozen(model, blocks):
        part.requires_grad_(False).eval()


def parameter_groups(model: MobileNet, layer_decay: float) -> list[dict[str, Any]]:
    """Return an optimiser's groups of the parameters that learn.

    `share` is the part of the learning rate that a group has: 1 for the head and `layer_decay` times as much for each
    part before it.
    """
    groups = []
    for distance, part in enumerate(reversed(parts(model))):
        learning = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if learning:
            groups.append({"params": learning, "share": layer_decay**distance})
    return groups


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set how much of a batch's statistics goes into the running ones of all batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
