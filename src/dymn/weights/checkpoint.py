"""From a name or a path to a model: one door for the registry, files, folders and the Hub."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from dymn.config import FrontEndConfig, ModelCard, ModelConfig
from dymn.errors import ConfigError, WeightsError
from dymn.models import pretrained
from dymn.models.mobilenet import MODELS, MobileNet, model_config
from dymn.system.devices import resolve_device
from dymn.weights.download import Progress, sha256_of
from dymn.weights.efficientat import import_efficientat
from dymn.weights.find import SAFETENSORS, fetch_published, file_in
from dymn.weights.hub import fetch_hub
from dymn.weights.labels import audioset_labels, labels_for, numbered_labels
from dymn.weights.registry import REGISTRY, PublishedModel, unknown_model

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
DEFAULT_STRIDES = (2, 2, 2, 2)


def load_model(name_or_path: str | Path, *, device: str | torch.device | None = "cpu", progress: Progress | None = None) -> MobileNet:
    """Load a model with its weights, in evaluation mode; `.card` tells front end, labels, metrics and the file's SHA-256.

    Args:
        name_or_path: the name of a model with weights (see `dymn.list_models(pretrained=True)`), a `.safetensors` file of dymn,
            a folder with one, a state dict that EfficientAT published (`.pt`), or "user/repo" or "user/repo@revision" on the
            Hugging Face Hub. A name in the registry comes first, then what is on this machine.
        device: where the model goes, such as "cpu" or "cuda:0"; the first CUDA device if there is one, for None.
        progress: told how a download goes: bytes done, and bytes in all or None.

    Raises:
        WeightsError: if there is no such model, or it cannot be downloaded, read or fitted to its network.
        ConfigError: if the device cannot be used.
    """
    place = resolve_device(device)
    return _load(name_or_path, progress).eval().to(place)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    licence: str | None = None,
    front_end: FrontEndConfig | None = None,
    temperature: float | None = None,
    strides: Sequence[int] | None = None,
    half: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write anything that `load_model` reads in dymn's own format; return the SHA-256 of the weights file.

    Args:
        source: see `load_model`.
        destination: a `.safetensors` file, or a folder to be filled for the Hub.
        name, labels, licence, front_end: replace what the card says.
        temperature: of the kernel attention in a published state dict that the registry does not know.
        strides: of blocks 2, 4, 7 and 13 in such a file.
        half: store matrices and kernels in half precision.
        progress: told how a download goes.

    Raises:
        WeightsError: if the source cannot be loaded or the destination not be written.
        ConfigError: if a setting does not fit, or the destination is neither.
    """
    path = Path(destination)
    if path.suffix not in ("", SAFETENSORS) and not path.is_dir():
        raise ConfigError(f"{destination} is neither a {SAFETENSORS} file nor a folder. Write to {path.with_suffix(SAFETENSORS)} instead.")
    known = strides is None and temperature is None
    if not known and not Path(source).is_file():
        raise ConfigError(f"{source} is no file. Only a state dict in a file is told its temperature and strides; leave them out.")
    model = _load(source, progress) if known else _from_state_dict(Path(source), strides, temperature)
    card = model.card
    model.card = dataclasses.replace(
        card,
        name=card.name if name is None else name,
        labels=card.labels if labels is None else tuple(labels),
        licence=card.licence if licence is None else licence,
        front_end=front_end or card.front_end,
    )
    dtype = torch.float16 if half else torch.float32
    if path.suffix == SAFETENSORS and not path.is_dir():
        return pretrained.save(model, path, dtype=dtype)
    model.save_pretrained(path, dtype=dtype)
    return sha256_of(path / pretrained.WEIGHTS_FILE)


def import_published(path: Path, published: PublishedModel) -> MobileNet:
    """Import a file of the registry, and refuse it unless it holds exactly the network that the registry says.

    Raises:
        WeightsError: if the file does not fit any network, or another one; the message names the difference.
    """
    model = import_efficientat(path, temperature=published.temperature, strides=published.strides)
    expected = model_config(published.architecture, **published.settings)
    if published.dataset != "AudioSet":  # how many classes the others have is not published
        expected = dataclasses.replace(expected, num_classes=model.config.num_classes)
    if model.config != expected:
        raise WeightsError(f"{path} is not {published.name}: {_difference(model.config, expected)}.")
    return model


def _load(name_or_path: str | Path, progress: Progress | None) -> MobileNet:
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and name in REGISTRY:
        published = REGISTRY[name]
        file = fetch_published(published, progress)
        if published.packaged:
            return _from_safetensors(file.path)
        return _with_card(import_published(file.path, published), published_card(published), file.digest)
    if not name:
        raise unknown_model(name)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _from_safetensors(file_in(path))
    if path.exists():
        return _from_safetensors(path) if _is_safetensors(path) else _from_state_dict(path)
    if path.suffix in (SAFETENSORS, ".pt", ".pth"):
        raise WeightsError(f"There is no file {path}. Give the path of a checkpoint, or the name of a model with weights.")
    if isinstance(name_or_path, str) and HUB_NAME.fullmatch(name):
        return _from_safetensors(fetch_hub(name, progress).path)
    if name in MODELS:
        variants = [key for key, model in REGISTRY.items() if model.architecture == name]
        offer = f"With weights there are: {', '.join(variants)}. " if variants else ""
        raise WeightsError(f"{name} is an architecture without weights. {offer}`dymn.create_model` builds it without.")
    raise unknown_model(name)


def _from_safetensors(path: Path) -> MobileNet:
    stored = pretrained.read(path)
    try:
        model = MobileNet.skeleton(stored.config)
    except ConfigError as error:
        raise WeightsError(f"{path} describes a network that cannot be: {error}") from error
    return _with_card(model.fill(stored.state, str(path)), stored.card, stored.digest)


def _from_state_dict(path: Path, strides: Sequence[int] | None = None, temperature: float | None = None) -> MobileNet:
    """Import an EfficientAT file; take from the registry what the file does not say, if it is known there."""
    digest = sha256_of(path)
    if strides is None and temperature is None:
        for published in REGISTRY.values():
            if published.sha256 == digest or (published.sha256 is None and published.file == path.name):
                try:
                    return _with_card(import_published(path, published), published_card(published), digest)
                except WeightsError as error:
                    logger.warning("%s The file is taken for what it holds, with the standard front end.", error)
    model = import_efficientat(path, temperature=1.0 if temperature is None else temperature, strides=strides or DEFAULT_STRIDES)
    card = ModelCard(name=path.stem, labels=labels_for(model.config.num_classes), provenance={"file": path.name})
    return _with_card(model, card, digest)


def published_card(published: PublishedModel) -> ModelCard:
    """Return the card of a model in the registry. The labels of ImageNet models are not published: they are numbered."""
    return ModelCard(
        name=published.name,
        front_end=published.front_end,
        labels=audioset_labels() if published.dataset == "AudioSet" else numbered_labels(published.num_classes),
        licence=published.licence,
        metrics={} if published.mean_ap is None else {"mAP": published.mean_ap},
        provenance={"source": published.url, "file": published.file, "dataset": published.dataset},
    )


def _with_card(model: MobileNet, card: ModelCard, digest: str) -> MobileNet:
    if len(card.labels) != model.config.num_classes:  # an ImageNet model with another head than expected
        card = dataclasses.replace(card, labels=numbered_labels(model.config.num_classes))
    model.card = dataclasses.replace(card, provenance=card.provenance | {"sha256": digest})
    return model


def _is_safetensors(path: Path) -> bool:
    if path.suffix in (SAFETENSORS, ".pt", ".pth"):
        return path.suffix == SAFETENSORS
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error


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
