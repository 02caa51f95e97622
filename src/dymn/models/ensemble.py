"""Several networks as one in PyTorch: the mean of their logits, for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dymn.config import check
from dymn.models.mobilenet import MobileNet, Output


class MeanOfLogits(nn.Module):
    """Networks of the same classes and front end, whose logits are averaged and whose embeddings are concatenated.

    Attributes:
        card: that of the first network, with the names of all and no metrics.
    """

    def __init__(self, networks: Sequence[MobileNet], name: str = "") -> None:
        """Check that the networks go together.

        Raises:
            ConfigError: if they differ in classes or front end.
        """
        super().__init__()
        check(len(networks) >= 2, f"An ensemble has {len(networks)} models; it needs at least two.")
        first = networks[0].card
        for network in networks[1:]:
            other = network.card
            same = (other.labels, other.exclusive, other.front_end) == (first.labels, first.exclusive, first.front_end)
            check(
                same,
                f"{first.name} and {other.name} differ in their classes or front ends; the models of an ensemble have "
                "the same.",
            )
        self.networks = nn.ModuleList(networks)
        self.card = dataclasses.replace(
            first, name=name or "+".join(network.card.name for network in networks), metrics={}
        )

    def check_clips(self) -> None:
        """Refuse an ensemble with a network whose scores of clips mean nothing, see `MobileNet.check_clips`."""
        for network in self.networks:
            network.check_clips()  # type: ignore[operator]

    def forward(self, log_mel: Tensor) -> Output:
        """Return mean logits [B, C] and all embeddings side by side [B, D] for [B, 1, F, T]."""
        outputs = [network(log_mel) for network in self.networks]
        logits = torch.stack([output.logits for output in outputs]).mean(dim=0)
        return Output(logits, torch.cat([output.embedding for output in outputs], dim=1))
