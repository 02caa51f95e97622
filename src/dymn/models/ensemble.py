"""Several networks as one in PyTorch: the mean of their logits, for evaluation and export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dymn.models.mobilenet import MobileNet, Output
from dymn.weights.ensembles import joint_card


class MeanOfLogits(nn.Module):
    """Networks of the same classes and front end, whose logits are averaged and whose embeddings are concatenated.

    Attributes:
        card: front end and labels of all, their names and no metrics.
    """

    def __init__(self, networks: Sequence[MobileNet], name: str = "") -> None:
        """Raise a `ConfigError` if the networks differ in classes or front end."""
        super().__init__()
        self.card = joint_card([network.card for network in networks], name, same_front_end=True)
        self.networks = nn.ModuleList(networks)

    def check_clips(self) -> None:
        """Reject an ensemble with a network whose scores of clips mean nothing, see `MobileNet.check_clips`."""
        for network in self.networks:
            network.check_clips()  # type: ignore[operator]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of classes [..., C], see `MobileNet.probabilities`."""
        return self.networks[0].probabilities(logits)  # type: ignore[operator,no-any-return]

    def forward(self, log_mel: Tensor) -> Output:
        """Return mean logits [B, C] and all embeddings side by side [B, D] for [B, 1, F, T]."""
        outputs = [network(log_mel) for network in self.networks]
        logits = torch.stack([output.logits for output in outputs]).mean(dim=0)
        return Output(logits, torch.cat([output.embedding for output in outputs], dim=1))
