"""Runs on all folds of a dataset with the same recipe, and the mean of their results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dymn.data import Dataset
from dymn.errors import ConfigError
from dymn.evaluation import metrics
from dymn.training.loop import train
from dymn.training.report import Record, Reporter, write_json
from dymn.training.resolve import open_data, settle, with_folder
from dymn.training.settings import TrainConfig

FOLDS_FILE = "folds.json"


def train_folds(config: TrainConfig, reporter: Callable[[int], Reporter] | None = None) -> Record:
    """Train once for each fold, into OUT/fold1 and so on.

    Return the task's metric for each fold and its mean, as in OUT/folds.json; with `data.test_epochs`, also the means
    over the last epochs, as `last_epochs`. All runs have the same settings. Completed folds are not trained again. With
    several processes, all but the first return an empty mapping.

    Args:
        config: settings of the runs; `data.fold` is ignored.
        reporter: returns the reporter of a fold's run.

    Raises:
        ConfigError: if the dataset has no folds.
        DataError, WeightsError: as for `train`.
    """
    config, data = open_data(with_folder(config.replace({"data.fold": 0})).replace({"data.test": "test"}))
    numbers, out = fold_numbers(config, data), Path(config.run.out)
    config, data = settle(config.replace({"data.fold": numbers[0]}), data)  # splits only exist for a fold
    results = []
    for fold in numbers:
        run = config.replace({"data.fold": fold, "run.out": str(out / f"fold{fold}")})
        results.append(train(run, reporter(fold) if reporter is not None else None, data))
    if not all(results):  # of several processes only the first has a result
        return {}
    values = metrics.fold_mean(results, f"test_{data.task.metric}")
    summary: dict[str, Any] = {"metric": data.task.metric, "fold_numbers": numbers, **values}
    last = f"test_{data.task.metric}_last_{config.data.test_epochs}"
    if all(last in result for result in results):
        summary["last_epochs"] = metrics.fold_mean(results, last)
    summary["train_seconds"] = float(sum(result["train_seconds"] for result in results))
    write_json(out / FOLDS_FILE, summary)
    return summary


def fold_numbers(config: TrainConfig, data: Dataset) -> list[int]:
    """Return the numbers of the folds of a run's dataset, or raise a `ConfigError` if it has none."""
    folds = sorted(set(data.source.catalog.folds))
    if not folds:
        raise ConfigError(
            f"{config.data.path} ({config.data.kind}) has no folds. Leave --fold out; only ESC-10, ESC-50 and tables "
            "with a column fold have folds."
        )
    return folds
