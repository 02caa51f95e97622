"""Settings that a recipe leaves open, which are determined once the data are open.

These are the kind of the dataset, whether there is a test set, and the length of clips.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from dymn.data import BadClip, Dataset, Source, open_dataset, select
from dymn.data.detect import detect
from dymn.data.packed import is_packed
from dymn.errors import ConfigError, DataError
from dymn.training.settings import AUTO, DataSettings, TrainConfig

LOOKED_AT = 24  # clips whose length decides
SHORTEST = 1.0  # seconds


class Resolved(NamedTuple):
    """A run with nothing left open, and its data."""

    config: TrainConfig
    data: Dataset


def resolve(config: TrainConfig) -> Resolved:
    """Open the data of a run and settle what its config leaves open; a config with nothing open stays as it is.

    Raises:
        ConfigError: if no data are named, or splits are left open and no fold of data with folds is named.
        DataError: if there are none, or their kind cannot be determined.
    """
    return settle(*open_data(config))


def open_data(config: TrainConfig) -> Resolved:
    """Open the data of a run and settle their kind.

    `data.kind` "auto" becomes the kind of the files, and any kind becomes "packed" for shards with an index.

    Raises:
        ConfigError: if no data are named.
        DataError: if there are none, or their kind cannot be determined.
    """
    data = config.data
    if not data.path:
        raise ConfigError("data.path is not set. Give the dataset with --data PATH, or with data.path in the recipe.")
    changes: dict[str, Any] = {}
    if data.kind == AUTO or is_packed(Path(data.path)):
        layout = detect(data.path)
        changes |= {"data.kind": layout.kind, "data.path": str(layout.path)}
    config = config.replace(changes)
    data = config.data
    return Resolved(config, open_dataset(data.kind, data.path, **data.options))


def settle(config: TrainConfig, opened: Dataset) -> Resolved:
    """Settle what a config leaves open about its open data.

    `data.val` and `data.test` "auto" become "val" and "test", or "" where there are no such clips. If neither config
    nor dataset defines the length of a training clip, it is that of the longest of some clips, within the kind's
    length.

    Raises:
        ConfigError: if splits are left open and no fold of data with folds is named.
    """
    data, (task, whole) = config.data, opened
    changes: dict[str, Any] = {
        f"data.{name}": name if _has(whole, name, data) else ""
        for name in ("val", "test")
        if getattr(data, name) == AUTO
    }
    if data.seconds == 0 and task.classes is None:
        changes["data.seconds"] = min(task.seconds, max(SHORTEST, round(_longest(whole), 1)))
    return Resolved(config.replace(changes), opened)


def _longest(whole: Source) -> float:
    """Return the seconds of the longest of some clips, spread over a dataset."""
    step = max(1, len(whole) // LOOKED_AT)
    clips = [clip for clip in (whole[i] for i in range(0, len(whole), step)) if not isinstance(clip, BadClip)]
    return max((len(clip.waveform) for clip in clips), default=0) / whole.sample_rate


def _has(whole: Source, split: str, data: DataSettings) -> bool:
    try:
        select(whole, split, fold=data.fold or None, holdout=data.holdout)
    except DataError:
        return False
    return True


def with_folder(config: TrainConfig) -> TrainConfig:
    """Return the run with a folder for its results: `runs/NAME`, where NAME is that of the run or of the model."""
    if config.run.out:
        return config
    folder = Path("runs") / (config.run.name or plain_name(config.model.name))
    return config.replace({"run.out": str(folder / f"fold{config.data.fold}" if config.data.fold else folder)})


def plain_name(model: str) -> str:
    """Return a model's name, or the name in its path: "mn04_as" for "mn04_as", "dog" for "models/dog.safetensors"."""
    path = Path(model)
    stem = path.stem if path.suffix in (".safetensors", ".pt", ".pth") else path.name
    if stem in ("best", "last", "model") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[^\w.-]", "_", stem) or "run"
