"""Models of the registry: their files are fetched, verified and imported, and get a card."""

from __future__ import annotations

import dataclasses

from dymn.architectures import model_config
from dymn.config import ModelCard, ModelConfig
from dymn.errors import WeightsError
from dymn.weights.download import fetch
from dymn.weights.efficientat import Imported, read_efficientat
from dymn.weights.files import DownloadProgress, WeightsFile
from dymn.weights.labels import audioset_labels, numbered_labels
from dymn.weights.registry import PublishedModel


def fetch_published(published: PublishedModel, progress: DownloadProgress | None = None) -> WeightsFile:
    """Return the verified file of a model of the registry, downloaded if need be.

    Raises:
        WeightsError: if it cannot be downloaded, verified or written.
    """
    return fetch(published, lambda file: import_published(file, published), progress)


def import_published(file: WeightsFile, published: PublishedModel) -> Imported:
    """Read a file of the registry, and refuse it unless it holds exactly the network that the registry says.

    Raises:
        WeightsError: if the file does not fit any network, or another one; the message names the difference.
    """
    imported = read_efficientat(file, temperature=published.temperature, strides=published.strides)
    expected = model_config(published.architecture, **published.settings)
    if published.dataset != "AudioSet":  # how many classes the others have is not published
        expected = dataclasses.replace(expected, num_classes=imported.config.num_classes)
    if imported.config != expected:
        raise WeightsError(f"{file.path} is not {published.name}: {_difference(imported.config, expected)}.")
    return imported


def published_card(published: PublishedModel) -> ModelCard:
    """Return the card of a model in the registry.

    The labels of ImageNet models are not published: they are numbered.
    """
    return ModelCard(
        name=published.name,
        front_end=published.front_end,
        labels=audioset_labels() if published.dataset == "AudioSet" else numbered_labels(published.num_classes),
        licence=published.licence,
        metrics={} if published.mean_ap is None else {"mAP": published.mean_ap},
        provenance={"source": published.url, "file": published.file, "dataset": published.dataset},
    )


def _difference(found: ModelConfig, expected: ModelConfig) -> str:
    for field in dataclasses.fields(ModelConfig):
        have, want = getattr(found, field.name), getattr(expected, field.name)
        if have != want and field.name != "blocks":
            return f"its {field.name} is {have} instead of {want}"
    for i, (block, other) in enumerate(zip(found.blocks, expected.blocks, strict=True), start=1):
        for field in dataclasses.fields(block):
            have, want = getattr(block, field.name), getattr(other, field.name)
            if have != want:
                return f"{field.name} of its block {i} is {have} instead of {want}"
    return "its settings differ"
