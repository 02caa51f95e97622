"""Online teachers: they hear the same augmented, mixed input as the student (consistent teaching; Beyer et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dymn.errors import ConfigError
from dymn.models.mobilenet import MobileNet
from dymn.runtime.accelerate import accelerate
from dymn.weights import load_model


class Lesson(NamedTuple):
    """What teachers say of a batch."""

    logits: Tensor  # [B, C], the mean over the ensemble
    embedding: Tensor  # [B, D], of the first teacher


class OnlineTeachers:
    """An ensemble of models with the student's front end and classes.

    Args:
        models: the teachers, or what `load_model` takes; they are set to evaluation mode.
        student: the network that learns from them.
        device: where they run.

    Raises:
        ConfigError: if a model's front end or classes are others.
    """

    def __init__(self, models: Sequence[str | MobileNet], student: MobileNet, device: torch.device) -> None:
        networks = [(load_model(model) if isinstance(model, str) else model).to(device).eval() for model in models]
        for model in networks:
            name = model.card.name or "in memory"
            if model.card.front_end != student.card.front_end:
                raise ConfigError(f"The teacher {name} has another front end than the student; both must hear the same log-mel.")
            if model.card.labels != student.card.labels:
                raise ConfigError(f"The teacher {name} has other classes than the data. Use a teacher of the same classes.")
        self.networks = [accelerate(model) if device.type == "cpu" else model for model in networks]
        self.embedding_size = networks[0].config.c_last  # D of the first teacher

    @torch.no_grad()
    def teach(self, log_mel: Tensor) -> Lesson:
        """Listen to [B, 1, F, T]."""
        answers = [network(log_mel) for network in self.networks]
        return Lesson(torch.stack([answer.logits for answer in answers]).mean(dim=0), answers[0].embedding)
