"""Conversion of checkpoints to dymn's own format, in NumPy."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from dymn.config import FrontEndConfig
from dymn.errors import ConfigError
from dymn.weights.checkpoint import open_checkpoint, open_state_dict
from dymn.weights.files import DownloadProgress, read_file
from dymn.weights.format import SAFETENSORS, save, save_folder
from dymn.weights.labels import audioset_labels

logger = logging.getLogger(__name__)


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
    attention: str | None = None,
    dilated: bool = False,
    half: bool = False,
    int8: bool = False,
    progress: DownloadProgress | None = None,
) -> str:
    """Convert a checkpoint to dymn's own format; return the SHA-256 of the weights file.

    Args:
        source: a checkpoint, as for `open_checkpoint`.
        destination: a `.safetensors` file, or a folder in the Hub's layout.
        name, labels, licence, front_end: replace those of the card.
        temperature: temperature of the kernel attention of a state dict that is not in the registry.
        strides: strides of blocks 2, 4, 7 and 13 of such a file.
        attention: attention of the dynamic blocks of such a file: "ca", or "none" for a DyMN trained with `no_ca`.
        dilated: whether such a file belongs to an MN whose last three blocks are dilated.
        half: store matrices and kernels in half precision.
        int8: store them in 8 bits, with a scale for each output channel.
        progress: called during a download with the number of bytes received and the total, which is None if unknown.

    Raises:
        WeightsError: if the source cannot be loaded, or the destination cannot be written.
        ConfigError: if a setting is not allowed, or the destination is neither a `.safetensors` file nor a folder.
    """
    path = Path(destination)
    check_destination(path)
    known = strides is None and temperature is None and attention is None and not dilated
    if not known and not Path(source).is_file():
        raise ConfigError(
            f"{source} is not a file. Temperature, strides, attention and dilated are settings of a state dict in a "
            "file; leave them out."
        )
    if known:
        stored = open_checkpoint(source, progress=progress)
    else:
        stored = open_state_dict(read_file(Path(source)), strides, temperature, attention, dilated)
    card = stored.card
    if not known and labels is None and card.labels == audioset_labels():
        logger.warning(
            "%s does not name its 527 classes; they are assumed to be AudioSet's. If they are not, pass their names "
            "with --labels.",
            source,
        )
    replaced = dataclasses.replace(
        card,
        name=card.name if name is None else name,
        labels=card.labels if labels is None else tuple(labels),
        licence=card.licence if licence is None else licence,
        front_end=front_end or card.front_end,
    )
    n_labels, n_classes = len(replaced.labels), stored.config.num_classes
    if n_labels != n_classes:
        raise ConfigError(
            f"The card has {n_labels} labels for a network with {n_classes} classes; there must be one for each."
        )
    if half and int8:
        raise ConfigError("half and int8 are both set; weights are stored in one precision.")
    dtype = {(True, False): "float16", (False, True): "int8"}.get((half, int8), "float32")
    if path.suffix == SAFETENSORS and not path.is_dir():
        return save(stored._replace(card=replaced), path, dtype)
    return save_folder(stored._replace(card=replaced), path, dtype)


def check_destination(path: Path) -> None:
    """Raise a ConfigError if a path is neither that of a `.safetensors` file nor that of a folder."""
    if path.suffix not in ("", SAFETENSORS) and not path.is_dir():
        raise ConfigError(
            f"{path} is neither a {SAFETENSORS} file nor a folder. Write to {path.with_suffix(SAFETENSORS)} instead."
        )
