"""Freezing of parts of a network, and layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn

from dymn.models.heads import FrameHead
from dymn.models.mobilenet import MobileNet


def parts(model: MobileNet) -> list[nn.Module]:
    """Return the parts of a network from the input to the output: stem, blocks, last convolution, head."""
    return [model.stem, *model.blocks, model.last, model.head]


def frozen(model: MobileNet, blocks: int) -> list[nn.Module]:
    """Return the stem and the first `blocks` blocks; with all blocks, also the last convolution; none for 0."""
    if blocks == 0:
        return []
    return parts(model)[:-1] if blocks >= len(model.blocks) else parts(model)[: blocks + 1]


def freeze(model: MobileNet, blocks: int = 0, *, head: bool = False, norms: bool = False) -> None:
    """Freeze parts of a network. Call it after each `model.train()`.

    The layer of a frame-wise network for frames is always frozen, because losses compare the logits of clips.

    Args:
        model: the network.
        blocks: number of blocks, counted from the input, that are frozen together with the stem; with all blocks, the
            last convolution is frozen, too.
        head: whether the head is frozen.
        norms: whether the statistics of all batch norms are frozen; their weights are trained.
    """
    for part in (*frozen(model, blocks), *([model.head] if head else [])):
        part.requires_grad_(False).eval()
    if isinstance(model.head, FrameHead):
        model.head.frame.requires_grad_(False)
    if norms:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def parameter_groups(model: MobileNet, layer_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in groups for an optimiser.

    `share` is the factor of a group's learning rate: 1 for the head, or the last part that is trained, and
    `layer_decay` times that of the next part for each part before it.
    """
    trained = [
        [parameter for parameter in part.parameters() if parameter.requires_grad] for part in reversed(parts(model))
    ]
    return [
        {"params": learning, "share": layer_decay**distance} for distance, learning in enumerate(filter(None, trained))
    ]


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of the running statistics of all batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
