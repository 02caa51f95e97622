"""The paper's protocol: repeated runs, the last epochs on the test set, the terms of eq. 8, apart from model choice."""

import json
import math
import statistics

import numpy as np
import pytest
from typer.testing import CliRunner

from dymn.cli import app
from dymn.commands.epochs import figure
from dymn.data import open_source
from dymn.data.teacher import write_table
from dymn.errors import ConfigError
from dymn.training import loop, train
from dymn.training.loop import last_epochs
from dymn.training.repeats import summarised, train_repeats
from dymn.training.settings import parse
from dymn.training.state import PartialEpoch
from tiny_runs import run, settings, write_clips

LABELS = ("high", "low")
SPLITS = {"holdout": None, "test": "test"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "data"
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        write_clips(folder / split, n)
    return folder


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda *arguments: None)


def history(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def test_the_last_epochs_are_measured_and_choose_nothing(clips, tmp_path):
    plain = train(run(clips, tmp_path / "plain", schedule={"epochs": 3}, data=SPLITS))
    found = train(run(clips, tmp_path / "last", schedule={"epochs": 3}, data=SPLITS | {"test_epochs": 2}))
    records = history(tmp_path / "last")
    assert ["test_accuracy" in record for record in records] == [False, True, True]
    assert found["test_accuracy_last_2"] == statistics.fmean(record["test_accuracy"] for record in records[1:])
    assert found["best_epoch"] == plain["best_epoch"] and found["test_accuracy"] == plain["test_accuracy"]
    for mine, other in zip(records, history(tmp_path / "plain"), strict=True):
        assert mine["loss"] == other["loss"] and mine["val_accuracy"] == other["val_accuracy"]
    assert last_epochs(records, 3) == last_epochs(records, 0) == {}  # not measured in all of them
    with pytest.raises(ConfigError, match=r"test_epochs cannot be combined with schedule\.seconds"):
        parse({"data": {"test_epochs": 1}, "schedule": {"seconds": 9.0}})
    with pytest.raises(ConfigError, match=r"data\.test_epochs is 4, but the run has 3 epochs"):
        parse({"data": {"test_epochs": 4}, "schedule": {"epochs": 3}})
    with pytest.raises(ConfigError, match=r"data\.test_epochs is 1, but there are no test clips"):
        train(
            run(clips, tmp_path / "none", schedule={"epochs": 1}, data={"holdout": None, "test": "", "test_epochs": 1})
        )


def test_means_over_epochs_of_groups_and_of_metrics_that_are_infinite(caplog):
    """A d-prime is infinite where all clips are ranked right."""
    rows = [(math.inf, 0.5, {"a": 1.0, "b": 0.0}), (2.0, 0.7, {"a": 0.5, "b": 0.5})]
    for order in (rows, rows[::-1]):
        records = [{"test_d_prime": d, "test_mAP": m, "test_accuracy_by_device": g, "loss": 1.0} for d, m, g in order]
        found = last_epochs(records, 2)
        assert found == {
            "test_mAP_last_2": pytest.approx(0.6),
            "test_accuracy_by_device_last_2": {"a": 0.75, "b": 0.25},
        }
    assert sum("test_d_prime has no finite value" in line for line in caplog.messages) == 2
    assert last_epochs(records[:1], 2) == {}  # fewer epochs
    assert figure("test_accuracy_last_10", 0.3333) == figure("test_accuracy_by_device.s1", 0.3333) == "33.33 %"
    assert figure("test_mAP_last_10", 0.3333) == "0.3333"


def test_the_terms_of_the_loss_are_logged(clips, tmp_path):
    source = open_source("folder", clips)
    logits = np.where(source.targets > 0.5, 2.0, -2.0).astype(np.float16)
    path = tmp_path / "teacher.safetensors"
    write_table(path, source.keys, LABELS, logits, np.zeros(len(source), np.int64))
    teacher = {"table": str(path), "label_weight": 0.25}
    train(run(clips, tmp_path / "taught", schedule={"epochs": 2}, data=SPLITS, teacher=teacher))
    for record in history(tmp_path / "taught"):
        assert record["loss"] == pytest.approx(0.25 * record["label_loss"] + 0.75 * record["teacher_loss"], rel=1e-5)
    train(run(clips, tmp_path / "alone", schedule={"epochs": 1}, data=SPLITS))
    assert "label_loss" not in history(tmp_path / "alone")[0]  # the loss is the label's


def test_terms_that_an_older_state_did_not_count_stay_out():
    part = PartialEpoch(steps=2, batches=2, loss=4.0, clips=4)
    part.add(4, 1.0, {"label_loss": 1.0})
    assert (part.loss, part.clips, part.terms) == (8.0, 8, {})
    part = PartialEpoch()
    part.add(2, 1.0, {"label_loss": 3.0})
    part.add(4, 1.0, {"label_loss": 1.0})
    assert part.terms == {"label_loss": 10.0}


def test_repeated_runs(clips, tmp_path):
    config = run(clips, tmp_path / "three", schedule={"epochs": 1}, data=SPLITS, run={"seeds": [3, 4]})
    found = train_repeats(config, train)
    assert found == json.loads((tmp_path / "three/seeds.json").read_text())
    results = [json.loads((tmp_path / f"three/seed{seed}/result.json").read_text()) for seed in (3, 4)]
    values = [result["val_accuracy"] for result in results]
    assert found["figures"]["val_accuracy"]["values"] == values and "checkpoint" not in found["figures"]
    one = run(clips, tmp_path / "one", schedule={"epochs": 1}, data=SPLITS, run={"seed": 4})
    assert train(one)["val_accuracy"] == values[1]  # a repeated run is the run of its seed
    with pytest.raises(ConfigError, match=r"run\.seeds is .* Use dymn\.training\.repeats\.train_repeats"):
        train(config)
    spread = summarised([{"mAP": 0.1, "name": "x"}, {"mAP": 0.4, "name": "x"}])
    devices = summarised([{"by_device": {"a": 0.1}}, {"by_device": {"a": 0.3, "b": 1.0}}])
    assert list(devices) == ["by_device.a"] and devices["by_device.a"]["mean"] == pytest.approx(0.2)
    assert spread == {"mAP": {"mean": 0.25, "std": pytest.approx(0.3 / 2**0.5), "values": [0.1, 0.4]}}
    for seeds, problem in (([1, 1], "contains a seed twice"), ([-1], r"run\.seeds is -1")):
        with pytest.raises(ConfigError, match=problem):
            parse({"run": {"seeds": seeds}})


def as_toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {as_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


def test_the_command(clips, tmp_path):
    sections = settings(clips, tmp_path / "out", schedule={"epochs": 1})
    words = [
        f"--set={section}.{name}={as_toml(value)}"
        for section in ("model", "optim", "schedule")
        for name, value in sections[section].items()
    ]
    words += ["--set=data.seconds=0.5", "--set=data.least_draws=0", "--set=run.seeds=[0,1]", "--set=data.test_epochs=1"]
    words += ["--data", str(clips), "--output", str(tmp_path / "out"), "--protocol", "paper"]
    found = CliRunner().invoke(app, ["train", *words])
    assert found.exit_code == 0, found.output
    assert "2 runs, mean and standard deviation:" in found.output and "test_accuracy_last_1" in found.output
    refused = CliRunner().invoke(app, ["train", "--data", str(clips), "--protocol", "other"])
    assert "--protocol is 'other'; allowed: paper" in str(refused.exception) + refused.output
