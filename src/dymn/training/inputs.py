"""The inputs of a run: data, loaders, the teacher's table, checkpoints, and their digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.architectures import MODELS
from dymn.data import (
    BalancedSampler,
    Dataset,
    Loader,
    PlainSampler,
    Resident,
    Source,
    Streamed,
    TaskSpec,
    TeacherTable,
    WeightedSampler,
    cached,
    class_counts,
    published,
    select,
)
from dymn.data.samplers import MOST
from dymn.errors import ConfigError, DataError
from dymn.evaluation.score import evaluation_loader
from dymn.models.mobilenet import MobileNet
from dymn.system.files import read_bounded
from dymn.training.settings import TrainConfig
from dymn.training.start import check_start
from dymn.weights import open_checkpoint
from dymn.weights.files import DownloadProgress
from dymn.weights.format import BEST_FILE, shorten

MAX_CONFIG = 2**24  # bytes of a run's config.json


class Inputs(NamedTuple):
    """The datasets of a run; `val` and `test` may be absent."""

    task: TaskSpec
    train: Source
    val: Source | None
    test: Source | None
    table: TeacherTable | None
    seconds: float


def open_inputs(config: TrainConfig, data: Dataset, sample_rate: int) -> Inputs:
    """Return the configured splits of an open dataset, and the teacher's table; create the cache if needed.

    Raises:
        ConfigError: if no split to train on is named, or epochs are to be evaluated on test clips and there are none.
        DataError: if the dataset has no such split, or the table is missing or damaged.
    """
    settings, task = config.data, data.task
    if settings.test_epochs and not settings.test:
        raise ConfigError(
            f"data.test_epochs is {settings.test_epochs}, but there are no test clips to evaluate these epochs on. Add "
            "test clips and name their split in data.test, or set data.test_epochs=0."
        )
    whole = data.source.at(sample_rate)
    if settings.cache:
        whole = cached(whole, settings.cache, workers=settings.workers)

    def part(split: str) -> Source | None:
        return select(whole, split, fold=settings.fold or None, holdout=settings.holdout) if split else None

    train = part(settings.train)
    if train is None:
        raise ConfigError("data.train is empty; it must be the split to train on.")
    return Inputs(
        task, train, part(settings.val), part(settings.test), open_table(config), settings.seconds or task.seconds
    )


def check_classes(inputs: Inputs, has_teacher: bool) -> list[str]:
    """Return which classes have no clips to learn from, or none to be validated with, in a sentence for each part.

    Raises:
        DataError: if there is nothing to tell apart, so that any network is right.
    """
    counts, n = class_counts(inputs.train), len(inputs.train)
    if len(counts) == 1 and not has_teacher and (inputs.task.loss == "ce" or int(counts[0]) == n):
        raise DataError(
            f"All {n} training clips have the same class, {inputs.train.labels[0]!r}, so there is nothing to learn. "
            "Add clips of another class or, in a CSV table, clips without a label."
        )
    parts = {"training": counts} | ({} if inputs.val is None else {"validation": class_counts(inputs.val)})
    notes = []
    for part, found in parts.items():
        absent = [label for label, count in zip(inputs.train.labels, found, strict=True) if count == 0]
        if absent and found.any():
            notes.append(f"{len(absent)} of {len(found)} classes have no {part} clip: {shorten(absent)}.")
    return notes


def check_table(inputs: Inputs, fill: str, label_weight: float) -> list[str]:
    """Return sentences on what a teacher's table lacks, and on how its clips differ from those of the run."""
    notes = []
    if inputs.table is not None:
        without = int((inputs.table.match(inputs.train, partial=True) < 0).sum())
        if without:
            use = f"only their labels are used, whose loss counts {label_weight:g} (teacher.label_weight)"
            if label_weight == 0:
                use = "they have no effect, because teacher.label_weight is 0"
            notes.append(f"{without} of {len(inputs.train)} training clips have no logits; {use}.")
        notes += [f"{inputs.table.path} has {n} {what}." for what, n in inputs.table.skipped.items()]
    taught = {} if inputs.table is None else inputs.table.settings
    if taught.get("exclusive") is True:
        check_independent(inputs.task)
    mine = {"seconds": float(inputs.seconds), "fill": fill}
    if all(taught.get(name, value) == value for name, value in mine.items()):
        return notes
    return [
        *notes,
        f"The teacher's logits are for clips of {taught.get('seconds', 0):g} s (fill: {taught.get('fill')}), but this "
        f"run uses clips of {inputs.seconds:g} s (fill: {fill}). They may not fit: create the table again with dymn "
        f"teach --seconds {inputs.seconds:g} --fill {fill}, or set data.seconds and data.fill.",
    ]


def check_independent(task: TaskSpec) -> None:
    """Reject data for which a teacher with exclusive classes says nothing: its logits have no common zero.

    Raises:
        ConfigError: if the classes of the data are not exclusive.
    """
    if task.loss == "bce":
        raise ConfigError(
            "The teacher has exclusive classes (a softmax), but those of the dataset are not. Use a teacher with "
            "independent classes."
        )


def check_calibration(inputs: Inputs) -> None:
    """Reject data with which `teacher.calibrate` has no effect.

    Raises:
        ConfigError: if the classes are exclusive, there are no validation clips, or the teacher's table lacks some.
    """
    remedy = "or set teacher.calibrate=false."
    if inputs.task.loss != "bce":
        raise ConfigError(
            f"teacher.calibrate needs classes that are not exclusive. Use a table of clips with labels, {remedy}"
        )
    if inputs.val is None:
        raise ConfigError(f"teacher.calibrate needs validation clips. Set data.val or data.holdout, {remedy}")
    if inputs.table is not None:
        known = {*inputs.table.keys, *inputs.table.settings.get("left_out", [])}  # left out: clips that are unreadable
        missing = [key for key in inputs.val.keys if key not in known]
        if missing:
            raise ConfigError(
                f"teacher.calibrate needs logits for all validation clips; {inputs.table.path} lacks {len(missing)} of "
                f"{len(inputs.val)}, such as {missing[0]!r}. Compute them with dymn teach, {remedy}"
            )


class BaseModels(NamedTuple):
    """The networks that a run builds on, each an object of its own, and the SHA-256 of every checkpoint."""

    start: MobileNet | None  # None where training starts from an architecture
    parent: MobileNet | None
    teachers: tuple[MobileNet, ...]
    digests: dict[str, str]


def open_models(config: TrainConfig) -> BaseModels:
    """Load the checkpoints of a run, each file once.

    Raises:
        ConfigError: if settings of an architecture are given with a checkpoint.
        WeightsError: if one cannot be loaded.
    """
    check_start(config.model)
    names = {"model": config.model.name, "parent": config.model.inherit}
    names |= {f"teacher {i}": name for i, name in enumerate(config.teacher.models, 1)}
    used = {role: name for role, name in names.items() if name and (name not in MODELS or role != "model")}
    checkpoints = {name: open_checkpoint(name) for name in dict.fromkeys(used.values())}
    networks = {role: MobileNet.from_stored(checkpoints[name]) for role, name in used.items()}
    for network in networks.values():
        network.check_clips()
    digests = {role: checkpoints[name].digest for role, name in used.items()}
    teachers = tuple(network for role, network in networks.items() if role.startswith("teacher"))
    return BaseModels(networks.get("model"), networks.get("parent"), teachers, digests)


def open_table(config: TrainConfig) -> TeacherTable | None:
    """Open the table of an offline teacher, if there is one.

    Its files are at the given paths, or else next to the data; those that EfficientAT published are downloaded.
    """
    teacher = config.teacher
    if not teacher.table:
        return None
    table, *index = find_table(config)
    return TeacherTable.published(table, index[0]) if index else TeacherTable.open(table)


def find_table(config: TrainConfig, progress: DownloadProgress | None = None) -> list[Path]:
    """Return the paths of the teacher's table and its index, as far as a run has them, downloaded if need be.

    Raises:
        DataError: if there is no such file.
    """
    data = Path(config.data.path)
    names = (config.teacher.table, config.teacher.index)
    return [published.find(name, data if data.is_dir() else data.parent, progress) for name in names if name]


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

    `weights` are those by which clips are drawn, if `data.sampling` uses any.
    """
    data, seed = config.data, config.run.seed
    n = len(inputs.train)
    if data.sampling == "balanced":
        sampler: BalancedSampler | PlainSampler | WeightedSampler = BalancedSampler(
            inputs.train, seed, draws=max(data.draws or min(n, MOST), data.least_draws)
        )
    elif weights is not None:
        sampler = WeightedSampler(weights, seed, draws=max(data.draws or n, data.least_draws))
    else:
        sampler = PlainSampler(n, seed, draws=max(data.draws or n, data.least_draws))
    batch_size = config.optim.batch_size // config.optim.accumulate
    if batch_size % world:
        raise ConfigError(
            f"A batch of {batch_size} clips cannot be divided among {world} processes. Set optim.batch_size to a "
            "multiple."
        )
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
    """Return a loader for evaluation, with the teacher's logits for clips that its table contains."""
    known = None if inputs.table is None or not set(inputs.table.keys) & set(source.keys) else inputs.table
    cut = resident is not None and int(resident.lengths.max()) >= int(source.max_seconds * source.sample_rate)
    return evaluation_loader(
        source,
        inputs.task,
        inputs.seconds,
        config.data.fill,
        min(config.optim.batch_size, 64),
        config.data.whole,
        teacher=known,
        partial_teacher=True,
        workers=config.data.workers,
        max_bad=config.data.max_bad,
        resident=None if cut else resident,  # long recordings are resident with their beginning only
    )


def digests(inputs: Inputs) -> dict[str, str]:
    """Return what identifies the data: a SHA-256 of each part and of the teacher's table."""
    found = {name: source.digest for name in ("train", "val", "test") if (source := getattr(inputs, name)) is not None}
    if inputs.table is not None:
        found["teacher"] = _digest(inputs.table)
    return found


def _digest(table: TeacherTable) -> str:
    """Return a SHA-256 of a table's names and of some of its logits, spread over it: published tables are gigabytes."""
    digest = hashlib.sha256("\0".join(table.keys).encode())
    digest.update(b"" if table.rows is None else table.rows.tobytes())
    digest.update(np.ascontiguousarray(table.logits[:: max(1, len(table) // 1000)]).tobytes())
    return digest.hexdigest()


def run_digest(config: TrainConfig, data_digests: dict[str, str]) -> str:
    """Return a SHA-256 of all that decides a run's numbers; where it runs and writes does not.

    Settings at their defaults are left out: a version with more settings resumes the runs of one with fewer.
    """
    standard = _flat(portable(TrainConfig()))
    values = {name: value for name, value in _flat(portable(config)).items() if value != standard[name]}
    return hashlib.sha256(json.dumps([values, data_digests], sort_keys=True).encode()).hexdigest()


def portable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, as in a checkpoint's card: without places and machines."""
    values: dict[str, Any] = dataclasses.asdict(config)
    run = ("out", "device", "seeds", "threads", "trackers", "name", "licence", "save_steps")
    for section, names in (("run", run), ("data", ("path", "cache", "workers", "resident"))):
        for name in names:
            del values[section][name]
    if values["schedule"]["tau_start"] is None:
        values["schedule"]["tau_start"] = 1.0
    for name in ("table", "index"):  # the digest identifies the table, wherever it is
        values["teacher"][name] = bool(values["teacher"][name]) or ""
    for name in ("name", "inherit"):
        values["model"][name] = Path(values["model"][name]).name
    values["teacher"]["models"] = [Path(name).name for name in values["teacher"]["models"]]
    return values


def other_run(folder: Path, changed: list[str]) -> ConfigError:
    """Return the error for a folder with another run, given the names of the settings in which it differs.

    Of a longer run, these are the epochs and what is scaled with them.
    """
    remedy = "Use another folder (--output, run.out), or remove it to start over."
    if "schedule.epochs" in changed and all(name.startswith("schedule.") for name in changed):
        return ConfigError(
            f"{folder} contains a run with another number of epochs, which cannot be changed afterwards. To continue "
            f"training its result, use another folder: --model {folder / BEST_FILE} --output OTHER. To start over, "
            f"remove {folder}."
        )
    return ConfigError(
        f"{folder} contains a run with other settings or data{f' ({shorten(changed)})' if changed else ''}. {remedy}"
    )


def differences(path: Path, config: TrainConfig, data_digests: dict[str, str]) -> list[str]:
    """Return the names of the settings and data in which a run differs from the one that a `config.json` describes."""
    try:
        stored = json.loads(read_bounded(path, MAX_CONFIG))
        before = _flat({**stored["config"], "data digest": stored["data"]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    now = _flat(json.loads(json.dumps({**portable(config), "data digest": data_digests})))
    before = _flat(json.loads(json.dumps(portable(TrainConfig())))) | before
    before["schedule.tau_start"] = before.get("schedule.tau_start") or now["schedule.tau_start"]
    # compared by their digests
    places = ("model.name", "model.inherit", "teacher.table", "teacher.index", "teacher.models")
    names = now.keys() | {name for name in before if name.startswith("data digest.")}
    return sorted(name for name in names if now.get(name) != before.get(name) and name not in places)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, settings in values.items() for name, value in settings.items()}
