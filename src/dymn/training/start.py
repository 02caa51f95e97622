"""The network that a run starts with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dymn.config import FrontEndConfig, from_dict
from dymn.data import Source, TeacherTable, class_counts
from dymn.inherit import inherit
from dymn.model import MODELS, MLPHead, MobileNet, create_model
from dymn.training.recipe import ModelSettings
from dymn.weights import load_model


def starting_model(settings: ModelSettings, labels: Sequence[str], generator: torch.Generator) -> MobileNet:
    """Build or load the network of a run, with one output for each label and a card that says so.

    Raises:
        ConfigError: if the architecture or a setting is unknown.
        WeightsError: if a checkpoint cannot be loaded.
    """
    if settings.name in MODELS:
        model = create_model(settings.name, len(labels), generator=generator, **settings.settings)
        front_end = FrontEndConfig()
    else:
        model = load_model(settings.name)
        front_end = model.card.front_end
        if model.card.labels != tuple(labels):
            model = with_classes(model, len(labels), generator)
    if settings.front_end:
        front_end = from_dict(FrontEndConfig, {**dataclasses.asdict(front_end), **settings.front_end})
    model.card = dataclasses.replace(model.card, labels=tuple(labels), front_end=front_end, metrics={}, provenance={})
    return model


def with_classes(model: MobileNet, num_classes: int, generator: torch.Generator) -> MobileNet:
    """Return a network with the same weights, but a fresh last layer for other classes."""
    fresh = MobileNet(dataclasses.replace(model.config, num_classes=num_classes)).initialise(generator)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(("head.classifier.", "head.norm."))}
    fresh.load_state_dict(kept, strict=False)
    fresh.card = dataclasses.replace(model.card, labels=tuple(f"class_{i}" for i in range(num_classes)))
    return fresh


def inherit_weights(model: MobileNet, settings: ModelSettings, log_mel: Tensor, generator: torch.Generator) -> None:
    """Give a fresh network the weights of `settings.inherit`, measured on a sample of the data [B, 1, F, T]."""
    parent = load_model(settings.inherit)
    if parent.card.labels != model.card.labels:
        parent = with_classes(parent, model.config.num_classes, generator)
    inherit(model, parent, log_mel, generator)


def is_fresh(settings: ModelSettings) -> bool:
    """Whether the run starts from random weights."""
    return settings.name in MODELS and not settings.inherit


@torch.no_grad()
def set_prior(model: MobileNet, logits: Tensor) -> None:
    """Set the last layer's bias to logits [C], so that training does not begin with learning how rare the classes are."""
    last = model.head.classifier if isinstance(model.head, MLPHead) else model.head.norm
    cast("nn.Linear | nn.BatchNorm2d", last).bias.copy_(logits)


def prior_logits(source: Source, table: TeacherTable | None, kind: str) -> Tensor | None:
    """Return the mean teacher logit of each class [C], or the logit ("ce": the log) of its frequency; None without labels."""
    if table is not None:
        rows = table.match(source, partial=True)
        return torch.from_numpy(np.asarray(table.logits[np.unique(rows[rows >= 0])], dtype=np.float32).mean(axis=0))
    counts = class_counts(source)
    if counts.sum() == 0:
        return None
    frequency = (counts + 0.5) / (len(source) + 1.0)
    return torch.tensor([math.log(p) if kind == "ce" else math.log(p / (1 - p)) if p < 1 else 5.0 for p in frequency])
