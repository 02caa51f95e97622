"""The supported datasets, one entry each. A new dataset needs an entry here and, if its layout is new, a reader."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dymn.data.annotated import read_annotated
from dymn.data.archives import read_audioset_hdf5, read_fsd50k_hdf5, read_openmic_hdf5, read_shards
from dymn.data.audioset import read_audioset
from dymn.data.cache import Progress, cached
from dymn.data.catalog import SPLITS, Catalog
from dymn.data.manifest import read_csv
from dymn.data.packed import read_index, read_packed
from dymn.data.readers import read_esc10, read_esc50, read_folder, read_fsd50k, read_openmic, read_tau
from dymn.data.source import MAX_SECONDS, Source
from dymn.data.stores import Store
from dymn.errors import NOT_IMPORTED, ConfigError, DataError

Reader = Callable[..., tuple[Catalog, Store]]


def is_length(value: Any) -> bool:
    """Whether a value is a number of seconds that a clip may have."""
    return type(value) in (int, float) and 0 < value <= MAX_SECONDS


TASK_FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "loss": (lambda value: value in ("bce", "ce"), "bce, ce"),
    "metric": (lambda value: value in ("mAP", "accuracy"), "mAP, accuracy"),
    "seconds": (is_length, f"a number above 0 and at most {MAX_SECONDS:g}"),
    "whole": (lambda value: isinstance(value, bool), "true, false"),
}
"""The properties of its task that an index of shards may contain, and what is allowed, as a test and in words."""


@dataclass(frozen=True)
class TaskSpec:
    """The properties of a dataset in training and evaluation.

    Attributes:
        reader: reads the published layout: (path, **options) → catalog and store.
        classes: number of classes; None if it depends on the data.
        loss: "bce" (any number of classes at once) or "ce" (exactly one).
        metric: the main metric, a key of the result of `dymn.evaluation.metrics.evaluate`.
        seconds: length of a training clip.
        whole: whether whole clips of any length are evaluated (`seconds` then applies to training only).
    """

    reader: Reader
    classes: int | None
    loss: str
    metric: str
    seconds: float = 10.0
    whole: bool = False


TASKS: dict[str, TaskSpec] = {
    "folder": TaskSpec(read_folder, None, "ce", "accuracy"),
    "csv": TaskSpec(read_csv, None, "bce", "mAP"),
    "annotations": TaskSpec(read_annotated, None, "bce", "mAP"),
    "esc50": TaskSpec(read_esc50, 50, "ce", "accuracy", seconds=5.0),
    "esc10": TaskSpec(read_esc10, 10, "ce", "accuracy", seconds=5.0),
    "fsd50k": TaskSpec(read_fsd50k, 200, "bce", "mAP", whole=True),
    "fsd50k_hdf5": TaskSpec(read_fsd50k_hdf5, 200, "bce", "mAP", whole=True),
    "openmic": TaskSpec(read_openmic, 20, "bce", "mAP"),
    "openmic_hdf5": TaskSpec(read_openmic_hdf5, 20, "bce", "mAP"),
    "tau": TaskSpec(read_tau, 10, "ce", "accuracy"),
    "audioset": TaskSpec(read_audioset, 527, "bce", "mAP"),
    "audioset_hdf5": TaskSpec(read_audioset_hdf5, 527, "bce", "mAP"),
    "shards": TaskSpec(read_shards, None, "bce", "mAP"),
    "packed": TaskSpec(read_packed, None, "bce", "mAP"),  # changed by its index, see task_of
}


def task_of(kind: str, path: str | Path) -> TaskSpec:
    """Return the task of the dataset at `path`; packed shards have the task of the original data.

    Raises:
        ConfigError: if the kind is unknown.
        DataError: if the data do not contain their task.
    """
    _check_kind(kind)
    return _spec(kind, path, read_index(Path(path)).task if kind == "packed" else {})


def _check_kind(kind: str) -> None:
    if kind not in TASKS:
        raise ConfigError(f"kind is {kind!r}; allowed: auto, {', '.join(TASKS)}. {NOT_IMPORTED}")


def _spec(kind: str, path: str | Path, facts: Mapping[str, Any]) -> TaskSpec:
    """Return the task of a kind of data, changed by the facts that the data contain."""
    known = {name: facts[name] for name in TASK_FACTS if name in facts}
    for name, value in known.items():
        is_allowed, allowed = TASK_FACTS[name]
        if not is_allowed(value):
            raise DataError(
                f"{path} contains shards of a task whose {name} is {value!r:.100}; allowed: {allowed}. Pack the "
                "dataset again with dymn shards."
            )
    return dataclasses.replace(TASKS[kind], **known)


def task_facts(kind: str, path: str | Path) -> dict[str, Any]:
    """Return the properties of a dataset's task for the index of packed shards (see `task_of`)."""
    spec = task_of(kind, path)
    return {"kind": kind, **{name: getattr(spec, name) for name in TASK_FACTS}}


class Dataset(NamedTuple):
    """An open dataset: its task and all of its clips. `select` returns a split."""

    task: TaskSpec
    source: Source


def open_source(
    kind: str,
    path: str | Path,
    split: str | None = None,
    *,
    fold: int | None = None,
    holdout: float | None = None,
    **options: Any,
) -> Source:
    """Open a dataset, or one split of it.

    Args:
        kind: a key of `TASKS`.
        path: location of the dataset, in its published layout.
        split: "train", "val" or "test"; None for all clips.
        fold: for datasets in folds: "test" is this fold, "train" the others.
        holdout: share of the training clips of every class that form the split "val" if the dataset has none. They are
            selected by a digest of their names, so the selection never changes. By default, 0.2 if there are neither
            splits nor folds, otherwise 0.
        options: options of `open_dataset`.

    Raises:
        ConfigError: if an argument is not allowed.
        DataError: if the dataset is missing, damaged, or has no such split.
    """
    return select(open_dataset(kind, path, **options).source, split, fold=fold, holdout=holdout)


def open_dataset(
    kind: str,
    path: str | Path,
    *,
    sample_rate: int = 32_000,
    max_seconds: float = MAX_SECONDS,
    cache: str | Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Dataset:
    """Open a dataset with all of its clips.

    Args:
        kind: a key of `TASKS`.
        path: location of the dataset, in its published layout.
        sample_rate: sample rate of the waveforms, in Hz.
        max_seconds: maximum length of a clip; longer recordings are cut.
        cache: folder for decoded clips (see `dymn.data.cache`); by default, clips are decoded at each access.
        workers: number of processes that decode clips for the cache.
        progress: called with the number of clips decoded for the cache and their total.
        options: options of the reader (`csv`: root, labels, separator, ignore; `annotations`: root, labels,
            label_column; `shards`: labels; `audioset`: report).

    Raises:
        ConfigError: if an argument is not allowed.
        DataError: if the dataset is missing or damaged.
    """
    _check_kind(kind)
    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no dataset at {path}.")
    try:
        catalog, store = TASKS[kind].reader(path, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"The reader of {kind!r} does not have these options: {', '.join(options)}.") from error
    source = Source(catalog, store, name=kind, sample_rate=sample_rate, max_seconds=max_seconds)
    if cache is not None:
        source = cached(source, cache, workers=workers, progress=progress)
    return Dataset(_spec(kind, path, catalog.task), source)


def select(source: Source, split: str | None, *, fold: int | None = None, holdout: float | None = None) -> Source:
    """Return one split of a source with all clips (see `open_source` for the arguments)."""
    if split is None:
        return source
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; allowed: {', '.join(SPLITS)}, or None for all clips.")
    part = _parts(source, fold)
    share = holdout if holdout is not None else (0.0 if source.catalog.splits or fold is not None else 0.2)
    if not 0 <= share < 1:
        raise ConfigError(f"holdout is {share}; it must be in [0, 1).")
    if share > 0 and "val" not in part:
        held = _held_out(source, [i for i, name in enumerate(part) if name == "train"], share)
        part = ["val" if i in held else name for i, name in enumerate(part)]
    chosen = [i for i, name in enumerate(part) if name == split]
    if not chosen:
        there = [name for name in SPLITS if name in part]
        remedy = "Choose one of these, or all clips" if there else "Choose all clips"
        remedy += ", or set holdout to keep a share of the training clips for validation." if split == "val" else "."
        raise DataError(
            f"{source.name} has no clips for the split {split!r}; it has "
            f"{', '.join(f'{part.count(name)} for {name!r}' for name in there) or 'no splits'}. {remedy}"
        )
    return source.where(chosen)


def _parts(source: Source, fold: int | None) -> list[str]:
    catalog = source.catalog
    if fold is not None:
        if fold not in catalog.folds:
            raise ConfigError(f"fold is {fold}; {source.name} has {sorted(set(catalog.folds)) or 'no folds'}.")
        return ["test" if number == fold else "train" for number in catalog.folds]
    if catalog.splits:
        return list(catalog.splits)
    if catalog.folds:
        raise ConfigError(
            f"{source.name} has the folds {sorted(set(catalog.folds))}. Choose the test set: fold=… (--fold)."
        )
    return ["train"] * len(source)


def _held_out(source: Source, candidates: list[int], share: float) -> set[int]:
    """Return a share of the candidates of every class (the first class of a clip counts): those with the first digests.

    Every class keeps at least one clip; what rounding leaves over in one class is made up for in the next.
    """
    groups: dict[int, list[int]] = {}
    for i in candidates:
        groups.setdefault(int(np.argmax(source.catalog.target_rows(slice(i, i + 1))[0])), []).append(i)
    held: set[int] = set()
    due = 0.0
    for _, members in sorted(groups.items()):
        due += len(members) * share
        taken = max(0, min(len(members) - 1, round(due)))
        due -= taken
        members.sort(key=lambda i: hashlib.sha256(source.keys[i].encode()).digest())
        held.update(members[:taken])
    return held
