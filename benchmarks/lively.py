"""Untrained networks whose outputs depend on the clip, for measurements of agreement and speed.

A newly drawn network is not suitable: its linear layers are so small that all logits are about 1e-20 and every dynamic
part computes the same for every clip, so incorrect forms of it would agree.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dymn.audio.mel import LOG_SCALE, LOG_SHIFT
from dymn.config import FrontEndConfig
from dymn.models.layers import DynamicConv2d
from dymn.models.mobilenet import FrameHead, MobileNet

SILENCE = (math.log(FrontEndConfig().log_offset) + LOG_SHIFT) * LOG_SCALE
SPREAD = 0.12  # standard deviation of a logit over the clips


def lively(model: MobileNet, log_mel: Tensor, seed: int = 0) -> MobileNet:
    """Draw larger weights, fit the norms to clips [B, 1, F, T], and scale the logits.

    The logits then spread over the clips by `SPREAD`. Like a trained network, and unlike one of large random weights,
    it does not multiply differences from layer to layer: what forms of it differ by is round-off. Returns the same
    network, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("scale", "shift", "style")):  # parts that start as nothing at all
            parameter.data.normal_(0, 0.5, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.weight.data.uniform_(0.7, 1.4, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0, module.in_features**-0.5, generator=generator)
        # kernels of a kind: a clip that is sure of one of them is not louder for it
        elif isinstance(module, DynamicConv2d):
            first = module.weight.data[:1].clone()
            module.weight.data.mul_(0.4).add_(0.9 * first)
    for block in model.blocks:
        if block.has_residual:  # a small addition to what it is added to
            block.project.norm.weight.data.mul_(0.2)
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.mul_(0.2)
        for module in block.attention.modules():
            if isinstance(module, nn.Conv2d):  # loud clips are not made louder by weights that open for them
                module.weight.data.mul_(0.2)
    hooks = [norm.register_forward_pre_hook(_fit) for norm in norms]
    with torch.no_grad():
        model.eval()(log_mel)
        for hook in hooks:
            hook.remove()
        _spread(model, log_mel)
    return model


def _fit(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
    """Set the statistics of a norm to those of what is about to enter it.

    Channels that are nearly still are not blown up.
    """
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance.clamp(min=max(1e-2, 0.3 * float(variance.mean()))))


def _spread(model: MobileNet, log_mel: Tensor) -> None:
    """Scale and shift the last layer so that each logit has mean 0 and standard deviation `SPREAD` over the clips.

    Of a frame-wise network, it is both last layers, over the frames of all clips.
    """
    head = model.head
    if isinstance(head, FrameHead):
        vectors = head.vectors(model.features(log_mel)).flatten(0, 1)
        layers = {layer: layer(vectors) for layer in (head.frame, head.clip)}
    else:
        layers = {getattr(head, "norm", head.classifier): model(log_mel).logits}
    for layer, logits in layers.items():
        scale, mean = SPREAD / logits.std(dim=0).clamp(min=1e-3), logits.mean(dim=0)
        layer.weight.mul_(scale[:, None] if layer.weight.ndim == 2 else scale)
        layer.bias.sub_(mean).mul_(scale)


def clips(n_clips: int, n_mels: int = 128, n_frames: int = 1000, seed: int = 0) -> Tensor:
    """Return log-mel-like inputs [B, 1, n_mels, n_frames].

    Each clip has its own loudness, spectral tilt, and events in time.

    As with the front end, nothing is below what silence gives. Without that floor a clip of 32 lay half below it, and a
    network fitted to all of them was three times as loud for it inside, with three times the round-off.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(n_clips, 1, *shape, generator=generator)

    tilt = torch.linspace(1, -1, n_mels)[:, None] * draw(1, 1)
    events = torch.nn.functional.interpolate(draw(4, max(2, n_frames // 50)), size=(n_mels, n_frames), mode="bilinear")
    return (0.3 * draw(n_mels, n_frames) + events + 0.5 * (tilt + draw(1, 1))).clamp(min=SILENCE)
