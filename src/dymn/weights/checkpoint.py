"""Opening checkpoints by name or path, from the registry, files, folders and the Hub, without PyTorch."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dymn.architectures import MODELS
from dymn.config import FrontEndConfig, ModelCard, check
from dymn.errors import ConfigError, UnknownModelError, WeightsError
from dymn.weights.efficientat import Imported, read_efficientat
from dymn.weights.efficientsed import is_efficientsed, read_efficientsed
from dymn.weights.files import DownloadProgress, WeightsFile, read_file
from dymn.weights.format import SAFETENSORS, Stored, check_finite, file_in, read
from dymn.weights.labels import audioset_labels, labels_for, numbered_labels
from dymn.weights.published import fetch_published, import_published, published_card
from dymn.weights.registry import (
    EFFICIENTSED_FRONT_END,
    REGISTRY,
    STANDARD_FRONT_END,
    WEIGHTS_ENDINGS,
    unknown_model,
)
from dymn.weights.shapes import check_state
from dymn.weights.torch_files import read_tensors

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
DEFAULT_STRIDES = (2, 2, 2, 2)


def open_checkpoint(source: str | Path, *, progress: DownloadProgress | None = None) -> Stored:
    """Open a checkpoint: configuration, card, weights (NumPy arrays) and digest.

    Args:
        source: the name of a model with weights (see `dymn.list_models(pretrained=True)`), a `.safetensors` file of
            dymn, a folder that contains one, a published state dict of EfficientAT or EfficientSED (`.pt`), or
            "user/repo" or "user/repo@revision" on the Hugging Face Hub. Names in the registry take precedence over
            local paths, and these over the Hub.
        progress: called during a download with the number of bytes received and the total, which is None if unknown.

    Raises:
        WeightsError: if there is no such model, or it cannot be downloaded or read, or does not fit its network.

    Example:
        >>> stored = open_checkpoint("dymn04_open")
        >>> stored.config.num_classes, stored.card.labels[0]
        (527, 'Speech')
    """
    name = os.fspath(source)
    if isinstance(source, str) and name in REGISTRY:
        published = REGISTRY[name]
        file = fetch_published(published, progress)
        if published.packaged:
            return _from_safetensors(file)
        return _stored(import_published(file, published), published_card(published), file.digest)
    if not name:
        raise unknown_model(name)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _from_safetensors(read_file(file_in(path)))
    if path.exists():
        if not path.is_file():
            raise WeightsError(
                f"{path} is neither a file nor a folder. Give the path of a checkpoint, or the name of a model."
            )
        if path.suffix.lower() == ".onnx":
            raise WeightsError(
                f"{path} is an ONNX file, which can be run (`dymn tag`), but not fitted, calibrated, trained or "
                "converted. Give the checkpoint that it was exported from, such as a .safetensors file."
            )
        file = read_file(path)
        return _from_safetensors(file) if _is_safetensors(file) else open_state_dict(file)
    if path.suffix in WEIGHTS_ENDINGS:
        raise unknown_model(name)
    if isinstance(source, str) and HUB_NAME.fullmatch(name):
        from dymn.weights.hub import fetch_hub

        return _from_safetensors(fetch_hub(name, progress))
    if name in MODELS:
        variants = [key for key, model in REGISTRY.items() if model.architecture == name]
        offer = f"Available with weights: {', '.join(variants)}. " if variants else ""
        raise UnknownModelError(
            f"{name} is an architecture without weights. {offer}`dymn.create_model` builds it with random weights."
        )
    raise unknown_model(name)


def open_state_dict(
    file: WeightsFile,
    strides: Sequence[int] | None = None,
    temperature: float | None = None,
    attention: str | None = None,
    dilated: bool = False,
) -> Stored:
    """Open a state dict of EfficientAT or EfficientSED.

    If no setting is given, settings that the file does not contain are taken from the registry or, for unknown files,
    assumed with a warning. `attention` "none" is for a DyMN trained without Coordinate Attention, `dilated` for an MN
    with dilated kernels (see `read_efficientat`).

    Raises:
        WeightsError: if the file cannot be read, or does not fit a network.
        ConfigError: if `temperature`, `strides`, `attention` or `dilated` are not allowed.
    """
    path, digest = file.path, file.digest
    assumed = strides is None and temperature is None and attention is None and not dilated
    if assumed:
        for published in REGISTRY.values():
            if published.sha256 == digest or (published.sha256 is None and published.file == path.name):
                try:
                    return _stored(import_published(file, published), published_card(published), digest)
                except WeightsError as error:
                    logger.warning("%s Its network is read from the file, and the standard front end is used.", error)
    state = read_tensors(file)
    if is_efficientsed(state):
        check(
            assumed,
            f"{path} is a network of EfficientSED, whose temperature, strides and attention are known. Leave them out.",
        )
        imported = read_efficientsed(state, name=str(path))
        return _stored(imported, _card(path, imported, EFFICIENTSED_FRONT_END), digest)
    imported = read_efficientat(
        state,
        temperature=1.0 if temperature is None else temperature,
        strides=strides or DEFAULT_STRIDES,
        attention=attention or "ca",
        dilated=dilated,
        name=str(path),
    )
    if assumed:
        dynamic = any(block.dynamic_convs for block in imported.config.blocks)
        named = labels_for(imported.config.num_classes) == audioset_labels()
        logger.warning(
            "%s is not a published file. It does not contain its strides, which are assumed to be 2,2,2,2%s%s. If "
            "it was trained with others, run: dymn convert %s OUT --strides S,S,S,S%s%s",
            path,
            ", nor its temperature, which is assumed to be 1" if dynamic else "",
            ", nor its labels, which are assumed to be AudioSet's because there are 527" if named else "",
            path,
            " --temperature T" if dynamic else "",
            " --labels FILE" if named else "",
        )
    return _stored(imported, _card(path, imported, STANDARD_FRONT_END), digest)


def _card(path: Path, imported: Imported, front_end: FrontEndConfig) -> ModelCard:
    labels = labels_for(imported.config.num_classes, imported.config.sequence is not None)
    return ModelCard(name=path.stem, front_end=front_end, labels=labels, provenance={"file": path.name})


def _from_safetensors(file: WeightsFile) -> Stored:
    path, stored = file.path, read(file)
    try:
        check_state(stored.state, stored.config, str(path))
    except ConfigError as error:
        raise WeightsError(f"{path} describes an invalid network: {error}") from error
    check_finite(stored.state, str(path))
    return stored._replace(card=_with_digest(stored.card, stored.digest))


def _stored(imported: Imported, card: ModelCard, digest: str) -> Stored:
    if len(card.labels) != imported.config.num_classes:  # an ImageNet model with another head than expected
        card = dataclasses.replace(card, labels=numbered_labels(imported.config.num_classes))
    return Stored(imported.config, _with_digest(card, digest), imported.state, digest)


def _with_digest(card: ModelCard, digest: str) -> ModelCard:
    return dataclasses.replace(card, provenance=card.provenance | {"sha256": digest})


def _is_safetensors(file: WeightsFile) -> bool:
    suffix = file.path.suffix
    return suffix == SAFETENSORS if suffix in WEIGHTS_ENDINGS else file.content[8:9] == b"{"
