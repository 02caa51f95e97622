"""Freezing of parts of a network, and layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn

from dymn.models.mobilenet import MobileNet
from dymn.training.settings import TrainConfig


def parts(model: MobileNet) -> list[nn.Module]:
    """Return the parts of a network from the input to the output: stem, blocks, last convolution, head."""
    return [model.stem, *model.blocks, model.last, model.head]


def frozen_blocks(model: MobileNet, blocks: int) -> list[nn.Module]:
    """Return the stem and the first `blocks` blocks; with all blocks, also the last convolution; none for 0."""
    if blocks == 0:
        return []
    return parts(model)[:-1] if blocks >= len(model.blocks) else parts(model)[: blocks + 1]


def freeze(model: MobileNet, config: TrainConfig) -> None:
    """Freeze what a run does not train: blocks, the head, statistics of norms. Call it after each `model.train()`."""
    kept = [model.head] if config.teacher.head else []
    for part in (*frozen_blocks(model, config.optim.freeze), *kept):
        part.requires_grad_(False).eval()
    if config.optim.freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


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
