"""Repetition of a run with several seeds, with mean and standard deviation of the results (Sec. IV-C)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dymn.errors import ConfigError
from dymn.training.report import Record, write_json
from dymn.training.resolve import with_folder
from dymn.training.settings import TrainConfig

REPEATS_FILE = "seeds.json"
PROTOCOLS: dict[str, dict[str, Any]] = {"paper": {"run.seeds": (0, 1, 2), "data.test_epochs": 10}}
"""Settings by the name of a protocol: the paper reports the mean over the last ten epochs of three runs."""


def train_repeats(config: TrainConfig, work: Callable[[TrainConfig], Record]) -> Record:
    """Do a run once for each of its `run.seeds`, into OUT/seed0 and so on.

    Return the figures of all runs with their mean and standard deviation (of the sample; None for one run), as in
    OUT/seeds.json. Nothing is chosen by them. Runs that are done are not done again. Of several processes only the
    first returns more than an empty mapping.

    Args:
        config: names the seeds.
        work: trains one run, such as `dymn.training.train` or `train_folds`, and returns its result.

    Raises:
        ConfigError: if there are no seeds.
        DataError, WeightsError: as for `train`.
    """
    config = with_folder(config)
    if not config.run.seeds:
        raise ConfigError("run.seeds is empty. Give the seeds of the runs, such as run.seeds=[0,1,2].")
    out = Path(config.run.out)
    results = [
        work(config.replace({"run.seeds": (), "run.seed": seed, "run.out": str(out / f"seed{seed}")}))
        for seed in config.run.seeds
    ]
    if not all(results):
        return {}
    summary: Record = {"seeds": list(config.run.seeds), "figures": summarised(results)}
    write_json(out / REPEATS_FILE, summary)
    return summary


def summarised(results: list[Record]) -> dict[str, dict[str, Any]]:
    """Return values, mean and standard deviation of each number that all results have.

    Numbers of groups, such as those of recording devices, are called "name.group".
    """
    flat = [_flat(result) for result in results]
    names = [name for name in flat[0] if all(_is_number(result.get(name)) for result in flat)]
    found = {}
    for name in names:
        values = [float(result[name]) for result in flat]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "std": spread, "values": values}
    return found


def _flat(result: Record) -> Record:
    found: Record = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{group}": number for group, number in value.items()}
        else:
            found[name] = value
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
