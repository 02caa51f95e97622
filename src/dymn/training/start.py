"""The initial network of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dymn.architectures import MODELS, model_config
from dymn.config import FrontEndConfig, check, from_dict
from dymn.data import Source, TeacherTable, class_counts
from dymn.errors import ConfigError
from dymn.models.inflate import have_same_channels, inherit
from dymn.models.mobilenet import MobileNet, create_model
from dymn.models.narrow import narrow
from dymn.training.settings import ModelSettings, TrainConfig

ROWS = 65_536  # read at a time
ANNEAL_FROM, ANNEAL_EPOCHS, ANNEAL_SHARE = 30.0, 30, 0.15  # of the temperature of fresh dynamic convolutions


def check_start(settings: ModelSettings) -> None:
    """Raise a `ConfigError` if settings of an architecture do not fit it, or are given together with a checkpoint."""
    if settings.name in MODELS:
        sequence = model_config(settings.name, **settings.settings).sequence
        check(
            sequence is None or sequence.scores == "clip",
            "model.settings.scores is 'frames', but dymn train trains the head for clips. Leave the setting out.",
        )
        check(
            sequence is None or not settings.inherit,
            f"model.inherit is {settings.inherit!r}, but {settings.name} is a frame-wise network, which cannot inherit "
            "weights. Leave the setting out.",
        )
        return
    for name in ("settings", "inherit"):
        if getattr(settings, name):
            raise ConfigError(
                f"model.{name} is set, but {settings.name} has weights. Remove the setting, or start from an "
                f"architecture: {', '.join(MODELS)}."
            )


def front_end_of(settings: ModelSettings, pretrained: MobileNet | None) -> FrontEndConfig:
    """Return the front end of a run: that of the checkpoint, or the standard one, changed by the settings."""
    front_end = FrontEndConfig() if pretrained is None else pretrained.card.front_end
    return from_dict(FrontEndConfig, {**dataclasses.asdict(front_end), **settings.front_end})


def with_temperature(config: TrainConfig, pretrained: MobileNet | None) -> TrainConfig:
    """Return the run with the temperatures that its schedule leaves open.

    A dynamic network from fresh weights anneals from `ANNEAL_FROM` to 1 (Sec. III-D) over 30 epochs, or 15 % of a run
    of fewer than 200, unless `model.settings` name a temperature. A checkpoint keeps its own, and so does a network
    that inherits its kernels.
    """
    schedule, model = config.schedule, config.model
    if schedule.tau_start is not None:
        return config
    start = end = 1.0
    n_epochs = 1
    if pretrained is not None:
        start = end = pretrained.temperature
    elif "temperature" in model.settings:
        start = end = model.settings["temperature"]
    elif not model.inherit:
        network = model_config(model.name, **model.settings)
        if any(block.is_dynamic and block.dynamic_convs for block in network.blocks):
            start, n_epochs = ANNEAL_FROM, max(1, min(ANNEAL_EPOCHS, round(ANNEAL_SHARE * schedule.epochs)))
    values = {"tau_start": start, "tau_end": end, "tau_epochs": n_epochs}
    return config.replace({f"schedule.{name}": value for name, value in values.items()})


def starting_model(
    settings: ModelSettings,
    pretrained: MobileNet | None,
    labels: Sequence[str],
    front_end: FrontEndConfig,
    generator: torch.Generator,
) -> MobileNet:
    """Return the network of a run, newly built or `pretrained`, with one output for each label and a matching card.

    Raises:
        ConfigError: if a setting of the architecture is unknown.
    """
    if pretrained is None:
        model = create_model(settings.name, len(labels), generator=generator, **settings.settings)
    else:
        model = pretrained
        if pretrained.card.labels != tuple(labels):
            model.reset_classifier(labels, generator=generator)
    model.card = dataclasses.replace(model.card, labels=tuple(labels), front_end=front_end, metrics={}, provenance={})
    return model


def inherit_weights(model: MobileNet, parent: MobileNet, log_mel: Tensor, generator: torch.Generator) -> None:
    """Give a fresh network the weights of a static one, measured on a sample of the data [B, 1, F, T].

    A wider parent is narrowed with its own classes, and gets others afterwards.

    Raises:
        ConfigError: if the parent has another front end, is narrower, or is dynamic.
    """
    if parent.card.front_end != model.card.front_end:
        name = parent.card.name or "model.inherit"
        raise ConfigError(
            f"The front end of {name} differs from the run's, so its weights do not fit. Set model.front_end."
        )
    parent = parent.to(log_mel.device)
    if not have_same_channels(model, parent):
        config = dataclasses.replace(model.config, num_classes=parent.config.num_classes)
        parent = narrow(parent, config, log_mel, generator)
    if parent.card.labels != model.card.labels:
        parent.reset_classifier(model.card.labels, generator=generator)
    inherit(model, parent, log_mel, generator)


def has_fresh_head(model: MobileNet) -> bool:
    """Whether the last layer has not been trained: its bias is zero, as it is initialised."""
    return not bool(model.head.last_bias.any())


@torch.no_grad()
def set_prior(model: MobileNet, logits: Tensor) -> None:
    """Set the last layer's bias to logits [C], so that training need not start by learning class frequencies."""
    model.head.last_bias.copy_(logits)


def prior_logits(source: Source, table: TeacherTable | None, kind: str) -> Tensor | None:
    """Return the mean teacher logit of each class [C], or the logit ("ce": the log) of its frequency, if any."""
    if table is not None:
        rows = table.match(source, partial=True)
        rows = np.unique(rows[rows >= 0])
        columns = table.columns(source.labels)
        parts = [
            table.take(rows[start : start + ROWS], columns).astype(np.float64).sum(axis=0)
            for start in range(0, len(rows), ROWS)
        ]
        return torch.from_numpy(np.sum(parts, axis=0) / len(rows)).float()
    counts = class_counts(source)
    if counts.sum() == 0:
        return None
    annotated = sum(
        source.catalog.mask_rows(slice(start, start + ROWS)).sum(axis=0) for start in range(0, len(source), ROWS)
    )
    frequency = torch.from_numpy((counts + 0.5) / (annotated + 1.0))
    return (frequency.log() if kind == "ce" else frequency.logit()).float()
