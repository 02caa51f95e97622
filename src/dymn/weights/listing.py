"""Lists of models, as names and as table rows, without PyTorch."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from dymn.weights.download import is_local, known_digest
from dymn.weights.registry import REGISTRY, PublishedModel


class ModelRow(NamedTuple):
    """One line of `dymn models`."""

    name: str
    parameters: int
    macs: int  # multiply-adds for 10 s of audio
    mean_ap: float | None  # mAP on AudioSet's evaluation set from 0 to 1; None where it is not published
    classes: str  # such as "527 (AudioSet)"
    front_end: str  # such as "128 mels, hop 10 ms"
    licence: str
    cached: bool  # whether the file is on this machine
    digest: str  # how the file's SHA-256 is known: published, pinned, recorded (at the first download), or none
    url: str  # empty for a model that comes with dymn
    psds: float | None = None  # PSDS1 on AudioSet Strong from 0 to 1, of frame-wise networks


def list_models(pattern: str | None = None, pretrained: bool = False) -> list[str]:
    """Return the names of architectures and of models with weights, or only those of models with weights.

    Args:
        pattern: a shell-style pattern such as "dymn*_as"; by default, all names.
        pretrained: leave out architectures, which have no weights.
    """
    names = list(REGISTRY)
    if not pretrained:
        from dymn.architectures import architectures

        names = [*architectures(), *names]
    return [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def model_rows(pattern: str | None = None) -> list[ModelRow]:
    """Return a row for each model with weights whose name matches a shell-style pattern; by default, for all."""
    return [_row(REGISTRY[name]) for name in list_models(pattern, pretrained=True)]


def _row(model: PublishedModel) -> ModelRow:
    front_end = model.front_end
    return ModelRow(
        name=model.name,
        parameters=model.parameters,
        macs=model.macs,
        mean_ap=model.mean_ap,
        classes=f"{model.num_classes} ({model.dataset})",
        front_end=f"{front_end.n_mels} mels, hop {1000 * front_end.hop_length / front_end.sample_rate:g} ms",
        licence=model.licence,
        cached=is_local(model),
        digest=known_digest(model).origin,
        url=model.url,
        psds=model.psds,
    )
