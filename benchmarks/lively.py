"""Networks whose outputs depend on the clip, without training: what equality and speed are measured on.

A freshly drawn network is no good for that. Its linear layers are so small that all logits are 1e-20 and every dynamic part does the
same for every clip; forms of it that are wrong would agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dymn.model import MobileNet


def lively(model: MobileNet, log_mel: Tensor, seed: int = 0) -> MobileNet:
    """Draw larger weights, fit the norms to a batch of clips [B, 1, F, T], and scale the logits so that they spread by 1 over the clips.

    Returns the same network, in evaluation mode.
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
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of one batch
    with torch.no_grad():
        model.train()(log_mel)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var.clamp_(min=float(norm.running_var.mean()))  # a channel silent here must not explode for others
        model.eval()
        _spread(model, log_mel)
    return model


def _spread(model: MobileNet, log_mel: Tensor) -> None:
    """Scale and shift the last layer so that each logit has mean 0 and standard deviation 1 over the clips."""
    logits = model(log_mel).logits
    scale, mean = 1 / logits.std(dim=0).clamp(min=1e-3), logits.mean(dim=0)
    classifier = model.head.classifier
    if isinstance(classifier, nn.Linear):
        classifier.weight.mul_(scale[:, None])
        classifier.bias.sub_(mean).mul_(scale)
    else:
        norm = model.head.norm
        norm.weight.mul_(scale)
        norm.bias.sub_(mean).mul_(scale)


def clips(n_clips: int, n_mels: int = 128, n_frames: int = 1000, seed: int = 0) -> Tensor:
    """Return log-mel-like inputs [B, 1, n_mels, n_frames]: each clip has its own loudness, spectral tilt, and events in time."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(n_clips, 1, *shape, generator=generator)

    tilt = torch.linspace(1, -1, n_mels)[:, None] * draw(1, 1)
    events = torch.nn.functional.interpolate(draw(4, max(2, n_frames // 50)), size=(n_mels, n_frames), mode="bilinear")
    return 0.3 * draw(n_mels, n_frames) + events + tilt + 0.7 * draw(1, 1)
