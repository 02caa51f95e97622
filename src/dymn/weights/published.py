"""Models of the registry: download, verification, import, and card."""

from __future__ import annotations

import dataclasses

from dymn.architectures import model_config
from dymn.config import ModelCard, ModelConfig
from dymn.errors import WeightsError
from dymn.weights.download import fetch
from dymn.weights.efficientat import Imported, read_efficientat
from dymn.weights.efficientsed import read_efficientsed
from dymn.weights.files import DownloadProgress, WeightsFile
from dymn.weights.labels import labels_for, numbered_labels
from dymn.weights.registry import PublishedModel


def fetch_published(published: PublishedModel, progress: DownloadProgress | None = None) -> WeightsFile:
    """Return the verified file of a model of the registry, downloaded if need be; errors are those of `fetch`."""
    return fetch(published, lambda file: import_published(file, published), progress)


def import_published(file: WeightsFile, published: PublishedModel) -> Imported:
    """Read a file of the registry, and reject it unless it contains exactly the network of the registry.

    Raises:
        WeightsError: if the file does not fit any network, or another one; the message names the difference.
    """
    expected = model_config(published.architecture, **published.settings)
    if published.is_framewise:
        imported = read_efficientsed(file, scores=published.scores)
        expected = _with_classes(expected, imported.config, published)
    else:
        imported = read_efficientat(file, temperature=published.temperature, strides=published.strides)
        if published.dataset != "AudioSet":  # how many classes the others have is not published
            expected = dataclasses.replace(expected, num_classes=imported.config.num_classes)
    if imported.config != expected:
        raise WeightsError(f"{file.path} is not {published.name}: {_difference(imported.config, expected)}.")
    return imported


def _with_classes(expected: ModelConfig, found: ModelConfig, published: PublishedModel) -> ModelConfig:
    """Return a configuration with the number of classes of a file's head that is not trained, which is not published.

    The files of AudioSet without strong labels may have any number in both heads.
    """
    assert expected.sequence is not None and found.sequence is not None
    clips = dataclasses.replace(expected.sequence, n_clip_classes=found.sequence.n_clip_classes)
    if published.scores == "frames":
        return dataclasses.replace(expected, sequence=clips)
    both = dataclasses.replace(clips, n_frame_classes=found.sequence.n_frame_classes)
    return dataclasses.replace(expected, sequence=both, num_classes=both.n_classes)


def published_card(published: PublishedModel) -> ModelCard:
    """Return the card of a model in the registry; ImageNet labels, which are not published, are numbered."""
    n_classes, is_audioset = published.num_classes, published.dataset.startswith("AudioSet")
    metrics = {"mAP": published.mean_ap, "PSDS1": published.psds}
    return ModelCard(
        name=published.name,
        front_end=published.front_end,
        labels=labels_for(n_classes, published.is_framewise) if is_audioset else numbered_labels(n_classes),
        licence=published.licence,
        metrics={name: value for name, value in metrics.items() if value is not None},
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
