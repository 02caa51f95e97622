"""Evaluation of a model on a dataset, as in `dymn evaluate`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dymn.config import ModelCard, check, check_choice, from_dict
from dymn.data import Source, TaskSpec, open_dataset, select
from dymn.data.batch import FILLS
from dymn.data.catalog import NEGATIVES
from dymn.data.detect import detect
from dymn.data.tasks import is_length
from dymn.errors import ConfigError
from dymn.evaluation import metrics
from dymn.evaluation.score import Predictions, evaluation_loader, figures, probabilities, score
from dymn.models.ensemble import MeanOfLogits
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet, Output
from dymn.system.devices import computing
from dymn.system.files import write_csv

logger = logging.getLogger(__name__)

AUTO = "auto"


class Assessment(NamedTuple):
    """Metrics of a model on a dataset, in total and by class."""

    kind: str  # a key of `TASKS`
    split: str  # "train", "val", "test", or "all"
    figures: dict[str, Any]
    labels: tuple[str, ...]
    per_class: list[metrics.ClassResult]
    answers: list[metrics.ClassAnswers]
    # [C, C], clips by class (rows) and answer; None where clips may have several labels
    confusion: npt.NDArray[np.int64] | None
    bad: dict[str, str]  # reason by key of the clips that could not be read
    scores: Predictions  # of every clip


@dataclass(frozen=True)
class Learned:
    """A model's training data settings in its card: length and filling of clips, whole clips, held-out share, fold.

    Raises:
        ConfigError: if a value is not allowed; cards may come from untrusted files.
    """

    seconds: float = 0.0
    fill: str = "pad"
    whole: bool | None = None
    holdout: float | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        check(
            self.seconds == 0 or is_length(self.seconds),
            f"The card's data.seconds is {self.seconds!r}; it must be a number of seconds.",
        )
        check_choice("The card's data.fill", self.fill, FILLS)
        check(
            self.whole is None or isinstance(self.whole, bool),
            f"The card's data.whole is {self.whole!r}; it must be true or false.",
        )
        share = self.holdout is None or (isinstance(self.holdout, (int, float)) and 0 <= self.holdout < 1)
        check(type(self.fold) is int, f"The card's data.fold is {self.fold!r}; it must be a whole number.")
        check(share, f"The card's data.holdout is {self.holdout!r}; it must be a number in [0, 1).")


def assess(
    model: MobileNet,
    path: str | Path,
    *,
    kind: str = AUTO,
    split: str | None = None,
    fold: int | None = None,
    seconds: float | None = None,
    fill: str | None = None,
    whole: bool | None = None,
    batch_size: int = 16,
    workers: int = 0,
    precision: str = "float32",
    max_bad: float = 0.05,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Assessment:
    """Compare the predictions of a model on the clips of a dataset with the annotation.

    Whole recordings are evaluated, in windows whose probabilities are averaged by duration. The probabilities are those
    of the model, over all of its classes; the data decide which of them are compared, and with which metrics.

    Args:
        model: the model, on its device. Its classes are matched with those of the data by name, and it may have more.
        path: location of the dataset.
        kind: a key of `TASKS`, or "auto" to detect the kind from the files.
        split: "train", "val", "test" or "all". By default, "test" if there is such a split or a fold is given,
            otherwise "all".
        fold: the fold that is the test set, for datasets with folds.
        seconds: length of a window; by default, as in the model's training, otherwise the dataset's clip length.
        fill: "pad" or "repeat", for shorter clips; by default, as in the model's training, otherwise "pad".
        whole: whether clips of up to a minute are evaluated in one window; by default, as in the model's training,
            otherwise according to the dataset's protocol (true for FSD50K).
        batch_size: number of clips per batch.
        workers: number of processes that decode clips.
        precision: number format of the network's arithmetic, one of `dymn.system.devices.COMPUTE_PRECISIONS`.
        max_bad: maximum share of clips that cannot be read.
        options: options of the dataset's reader.
        progress: called with the number of processed clips and their total.

    Raises:
        ConfigError: if the model does not have all classes of the data, an argument is not allowed, or the models of an
            ensemble were trained with different windows, which are not given as arguments.
        DataError: if the dataset is missing or damaged, has no such split, or too many clips cannot be read.
        ResourceError: if a batch does not fit the device's memory.
    """
    given = {"seconds": seconds, "fill": fill, "whole": whole}
    learned = learned_from(model, [name for name, value in given.items() if value is None])
    if kind == AUTO:
        kind, path = detect(path)
    wanted = dict(options or {})
    if kind == "shards":
        wanted.setdefault("labels", model.card.labels)
    task, everything = open_dataset(kind, path, sample_rate=model.card.front_end.sample_rate, **wanted)
    task, everything = without_background(task, everything, model.card)
    if split is None:
        split = "test" if fold or "test" in everything.catalog.splits else "all"
    if split in ("train", "val") and "val" not in everything.catalog.splits:  # which depends on what was held out
        learned_from(model, ["holdout"])
    if split != "all" and everything.catalog.folds:
        warn_of_folds(model, fold)
    source = everything if split == "all" else select(everything, split, fold=fold, holdout=learned.holdout)
    device, chosen = next(model.parameters()).device, columns(model.card.labels, source)
    answers = "ce" if model.card.exclusive else "bce"  # by the model; the data only decide what is measured

    def answered(logits: Tensor) -> Tensor:
        return probabilities(logits, answers)[:, chosen]

    length, at_once = seconds or learned.seconds or task.seconds, learned.whole if whole is None else whole
    loader = evaluation_loader(
        source, task, length, fill or learned.fill, batch_size, at_once, workers=workers, max_bad=max_bad
    )
    done = 0

    def advance(clips: int) -> None:
        nonlocal done
        done += clips
        if progress is not None:
            progress(done, len(source))

    network, front_end = cast(MobileNet, InPrecision(model, precision)), LogMel(model.card.front_end).to(device)
    scores = score(network, front_end, loader, task.loss, answered=answered, progress=advance)
    return assessed(scores, source, kind, split, task.loss)


def assessed(scores: Predictions, source: Source, kind: str, split: str, loss: str) -> Assessment:
    """Return the metrics of the scores of a source's clips: in total, by class and by recording device."""
    values = scores.probabilities, scores.targets, scores.mask
    found, exclusive = figures(scores, loss), loss == "ce"
    answers = metrics.class_answers(*values, "classification" if exclusive else "tagging")
    if "accuracy" in found or "mAP" in found:
        found["f1"] = float(np.nanmean([answer.f1 for answer in answers]))
    if exclusive and len(set(source.catalog.groups)) > 1:
        found["accuracy_by_device"] = by_group(scores, dict(zip(source.keys, source.catalog.groups, strict=True)))
    confusion = metrics.confusion(scores.probabilities, scores.targets) if exclusive else None
    by_class = metrics.per_class(*values)
    return Assessment(kind, split, found, source.labels, by_class, answers, confusion, scores.bad, scores)


def write_report(folder: Path, found: Assessment) -> None:
    """Write SPLIT_classes.csv, and SPLIT_confusion.csv for exclusive classes, to a folder."""
    metrics.write_per_class(folder / f"{found.split}_classes.csv", found.labels, found.per_class, found.answers)
    if found.confusion is not None:
        metrics.write_confusion(folder / f"{found.split}_confusion.csv", found.labels, found.confusion)


def without_background(task: TaskSpec, source: Source, card: ModelCard) -> tuple[TaskSpec, Source]:
    """Return data in which background is not a class, as for `dymn fit`; unchanged if the model has such a class.

    Background clips have none of the classes, which are then not exclusive. A softmax from `dymn fit` has one class for
    all background.
    """
    catalog, home = source.catalog, NEGATIVES[0]
    extra = [label for label in catalog.labels if label.lower() in NEGATIVES and label not in card.labels]
    if not extra or len(extra) == len(catalog.labels) or catalog.masks is not None:
        return task, source
    columns = dict(zip(catalog.labels, catalog.target_rows(slice(None)).T, strict=True))
    negative = np.max([columns.pop(label) for label in extra], axis=0)
    if card.exclusive and home in card.labels:
        columns[home] = np.maximum(columns.get(home, 0), negative)
    else:
        task = dataclasses.replace(task, loss="bce", metric="mAP")
    targets = np.stack(list(columns.values()), axis=1)
    catalog = dataclasses.replace(catalog, labels=tuple(columns), targets=targets, packed=False)
    return task, Source(catalog, source.store, name=source.name, sample_rate=source.sample_rate)


def by_group(scores: Predictions, groups: Mapping[str, str]) -> dict[str, float]:
    """Return the accuracy on the clips of each group, such as a recording device, by the groups of the clips' names."""
    is_right = scores.probabilities.argmax(axis=1) == scores.targets.argmax(axis=1)
    group = np.array([groups[key] for key in scores.keys])
    return {name: float(is_right[group == name].mean()) for name in sorted(set(group.tolist()))}


def as_ensemble(networks: Sequence[MobileNet], name: str = "") -> MobileNet:
    """Return several networks as one for `assess`, which returns the mean of their logits; see `MeanOfLogits`."""
    return cast(MobileNet, MeanOfLogits(networks, name))


def write_predictions(path: str | Path, found: Assessment) -> None:
    """Write a CSV table of clips: name, labels (separated by ";"), most probable class, all probabilities."""
    scores = found.scores
    rows = []
    for key, row, target, mask in zip(scores.keys, scores.probabilities, scores.targets, scores.mask, strict=True):
        true = ";".join(label for label, value in zip(found.labels, target * mask, strict=True) if value > 0.5)
        rows.append((key, true, found.labels[int(row.argmax())], *(f"{value:.6g}" for value in row)))
    write_csv(path, [("clip", "labels", "likeliest", *found.labels), *rows])


def learned_from(model: MobileNet, compared: Sequence[str] = ("seconds", "fill", "whole")) -> Learned:
    """Return the data settings of a model's training according to its card; of an ensemble, those of its first model.

    Raises:
        ConfigError: if a value is not allowed, or the models of an ensemble differ in a setting that is `compared`.
    """
    if isinstance(model, MeanOfLogits):
        networks = [cast(MobileNet, network) for network in model.networks]
        return agreed([network.card.name for network in networks], [learned_from(each) for each in networks], compared)
    config = model.card.provenance.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict):
        return Learned()
    names = ("seconds", "fill", "whole", "holdout", "fold")
    return from_dict(Learned, {name: data[name] for name in names if data.get(name) is not None})


def warn_of_folds(model: MobileNet, fold: int | None) -> None:
    """Log a warning for each network whose training had another fold as its test set: it learned from this one."""
    networks = [cast(MobileNet, network) for network in getattr(model, "networks", [model])]
    for network in networks:
        own = learned_from(network).fold
        if own not in (0, fold):
            logger.warning(
                "%s was trained with fold %d as the test set, so it was trained on the clips of all other folds, if "
                "these are the same data. Test it on fold %d.",
                network.card.name or "The model",
                own,
                own,
            )


REMEDIES = {
    "seconds": "Set seconds (--seconds).",
    "fill": "Set fill (--fill).",
    "whole": "Set whole (--whole or --no-whole).",
    "holdout": "Use the test clips or all clips: clips that one model held out may have trained another.",
}


def agreed(names: Sequence[str], learned: Sequence[Learned], compared: Sequence[str]) -> Learned:
    """Return the settings of the first of several models.

    Raises:
        ConfigError: if the models differ in a setting that is `compared`.
    """
    for setting in compared:
        values = [getattr(one, setting) for one in learned]
        if len(set(values)) > 1:
            listed = ", ".join(
                f"{'unknown' if value is None or (value == 0 and setting == 'seconds') else value} ({name})"
                for name, value in zip(names, values, strict=True)
            )
            raise ConfigError(
                f"The models were trained with different values of data.{setting}: {listed}. {REMEDIES[setting]}"
            )
    return learned[0]


def columns(labels: Sequence[str], source: Source) -> Tensor:
    """Return the index of each class of the data among the model's labels [C]; a `ConfigError` if one is missing."""
    place = {label: i for i, label in enumerate(labels)}
    missing = [label for label in source.labels if label not in place]
    if missing:
        raise ConfigError(
            f"The model does not have {len(missing)} of the dataset's {len(source.labels)} classes, such as "
            f"{missing[0]!r}; its own classes are {'; '.join(labels[:3])} and so on. Evaluate a model that was trained "
            "for these classes, or rename the classes."
        )
    return torch.tensor([place[label] for label in source.labels])


class InPrecision(nn.Module):
    """A model computed in a precision."""

    def __init__(self, model: MobileNet, precision: str) -> None:
        super().__init__()
        model.check_clips()
        self.model = model
        self.precision = precision

    def forward(self, log_mel: Tensor) -> Output:
        """Return the output for [B, 1, F, T]."""
        with computing(log_mel.device, len(log_mel), self.precision):
            output: Output = self.model(log_mel)
        return output
