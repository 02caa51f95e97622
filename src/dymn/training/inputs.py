"""The data of a run: its parts, their loaders, the teacher's table, and what all of it is known by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.data import (
    BalancedSampler,
    Loader,
    PlainSampler,
    Resident,
    Source,
    Streamed,
    TaskSpec,
    TeacherTable,
    WeightedSampler,
    open_source,
    task_of,
)
from dymn.errors import ConfigError
from dymn.model import MODELS
from dymn.training.evaluation import evaluation_loader
from dymn.training.recipe import TrainConfig
from dymn.weights import load_model


class Inputs(NamedTuple):
    """The datasets of a run; `val` and `test` may be absent."""

    task: TaskSpec
    train: Source
    val: Source | None
    test: Source | None
    table: TeacherTable | None
    seconds: float


def open_inputs(config: TrainConfig, sample_rate: int) -> Inputs:
    """Open what the config names.

    Raises:
        ConfigError: if the kind of dataset is unknown, or no path is given.
        DataError: if a dataset or table is missing, damaged, or has no such split.
    """
    data = config.data
    if not data.path:
        raise ConfigError("data.path is not set. Say where the dataset lies: --data PATH, or data.path in the recipe.")
    task = task_of(data.kind, data.path)

    def part(split: str) -> Source | None:
        if not split:
            return None
        return open_source(
            data.kind,
            data.path,
            split,
            fold=data.fold or None,
            holdout=data.holdout,
            sample_rate=sample_rate,
            cache=data.cache or None,
            workers=data.workers,
            **data.options,
        )

    train = part(data.train)
    if train is None:
        raise ConfigError("data.train is empty; name the split to train on.")
    return Inputs(task, train, part(data.val), part(data.test), open_table(config), data.seconds or task.seconds)


def open_table(config: TrainConfig) -> TeacherTable | None:
    """Open the table of an offline teacher, if there is one; its files lie where their names say, or else beside the data."""
    teacher = config.teacher
    if not teacher.table:
        return None
    table = _beside(config.data.path, teacher.table)
    if teacher.index:
        return TeacherTable.published(table, _beside(config.data.path, teacher.index))
    return TeacherTable.open(table)


def _beside(data: str, name: str) -> Path:
    """Return the path of a file: `name` itself, or if there is no such file, the one in the folder of the data."""
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    return folder / name if not Path(name).exists() and (folder / name).exists() else Path(name)


def training_loader(
    inputs: Inputs,
    config: TrainConfig,
    rank: int,
    world: int,
    pin_memory: bool,
    resident: Resident | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Loader:
    """Return the loader of training batches: each is a part of an accumulated batch, shared by `world` processes.

    `weights` are those by which clips are drawn, where `data.sampling` asks for some.
    """
    data, seed = config.data, config.run.seed
    if data.sampling == "balanced":
        sampler: BalancedSampler | PlainSampler | WeightedSampler = BalancedSampler(inputs.train, seed, draws=data.draws or 100_000)
    elif weights is not None:
        sampler = WeightedSampler(weights, seed, draws=max(data.draws or len(inputs.train), data.least_draws))
    else:
        sampler = PlainSampler(len(inputs.train), seed, draws=max(data.draws or len(inputs.train), data.least_draws))
    batch_size = config.optim.batch_size // config.optim.accumulate
    if batch_size % world:
        raise ConfigError(f"A batch of {batch_size} clips cannot be shared by {world} processes. Set optim.batch_size to a multiple.")
    parts = inputs.train.parts
    return Loader(
        inputs.train,
        sampler if parts is None else Streamed(sampler, parts, batch_size, seed),
        batch_size,
        seconds=inputs.seconds,
        fill=data.fill,
        seed=seed,
        teacher=inputs.table,
        partial_teacher=config.teacher.partial,
        workers=data.workers,
        rank=rank,
        world=world,
        drop_last=len(sampler) >= batch_size,
        max_bad=data.max_bad,
        pin_memory=pin_memory,
        resident=resident,
    )


def quiet_loader(source: Source, inputs: Inputs, config: TrainConfig, resident: Resident | None = None) -> Loader:
    """Return a loader for evaluation, with the teacher's logits for clips that it knows."""
    known = None if inputs.table is None or not set(inputs.table.keys) & set(source.keys) else inputs.table
    return evaluation_loader(
        source,
        inputs.task,
        inputs.seconds,
        config.data.fill,
        min(config.optim.batch_size, 64),
        teacher=known,
        partial_teacher=True,
        workers=config.data.workers,
        max_bad=config.data.max_bad,
        resident=resident,
    )


def digests(inputs: Inputs) -> dict[str, str]:
    """Return what identifies the data: a SHA-256 of each part and of the teacher's table."""
    found = {name: source.digest for name in ("train", "val", "test") if (source := getattr(inputs, name)) is not None}
    if inputs.table is not None:
        found["teacher"] = _digest(inputs.table)
    return found


def model_digests(config: TrainConfig) -> dict[str, str]:
    """Return the SHA-256 of every checkpoint that a run builds on: two files of one name are two models."""
    names = {"model": config.model.name, "parent": config.model.inherit}
    names |= {f"teacher {i}": name for i, name in enumerate(config.teacher.models, 1)}
    used = {role: name for role, name in names.items() if name and name not in MODELS}
    return {role: str(load_model(name).card.provenance.get("sha256", "")) for role, name in used.items()}


def _digest(table: TeacherTable) -> str:
    """Return a SHA-256 of a table's names and of some of its logits, spread over it: published tables are gigabytes."""
    digest = hashlib.sha256("\0".join(table.keys).encode())
    digest.update(np.ascontiguousarray(table.logits[:: max(1, len(table) // 1000)]).tobytes())
    return digest.hexdigest()


def fingerprint(config: TrainConfig, data_digests: dict[str, str]) -> str:
    """Return a SHA-256 of all that decides a run's numbers; where it runs and writes does not."""
    values = portable(config)
    return hashlib.sha256(json.dumps([values, data_digests], sort_keys=True).encode()).hexdigest()


def portable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, without names of places and machines (a checkpoint's card shows them)."""
    values: dict[str, Any] = dataclasses.asdict(config)
    run = ("out", "device", "threads", "trackers", "name", "licence", "save_steps")
    for section, names in (("run", run), ("data", ("path", "cache", "workers", "resident"))):
        for name in names:
            del values[section][name]
    for name in ("table", "index"):  # the digest tells which table it is, wherever it lies
        values["teacher"][name] = bool(values["teacher"][name]) or ""
    for name in ("name", "inherit"):
        values["model"][name] = Path(values["model"][name]).name
    values["teacher"]["models"] = [Path(name).name for name in values["teacher"]["models"]]
    return values


def differences(path: Path, config: TrainConfig, data_digests: dict[str, str]) -> list[str]:
    """Return the names of the settings and data in which a run differs from the one that a `config.json` describes."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before = _flat({**stored["config"], "data digest": stored["data"]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    now = _flat(json.loads(json.dumps({**portable(config), "data digest": data_digests})))
    places = ("model.name", "model.inherit", "teacher.table", "teacher.index", "teacher.models")  # told apart by their digests
    return sorted(name for name in now if now[name] != before.get(name) and name not in places)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, settings in values.items() for name, value in settings.items()}
