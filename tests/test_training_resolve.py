"""What a recipe leaves open, and which layout a dataset has."""

import dataclasses
import json
import shutil

import pytest

from dymn.data import open_source
from dymn.data.detect import detect
from dymn.errors import ConfigError, DataError
from dymn.training import TrainConfig, folds, inputs, load_recipe
from dymn.training.inputs import differences, run_digest
from dymn.training.loop import Run
from dymn.training.report import Reporter
from dymn.training.resolve import plain_name, resolve, with_folder
from layouts import (
    write_audio,
    write_audioset,
    write_corpus,
    write_esc50,
    write_fsd50k,
    write_openmic,
    write_table,
    write_tau,
)
from tiny_runs import run, write_clips


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_esc50, "esc50"),
        (write_fsd50k, "fsd50k"),
        (write_openmic, "openmic"),
        (write_tau, "tau"),
        (write_audioset, "audioset_hdf5"),
        (write_corpus, "shards"),
    ],
)
def test_published_layouts_are_known(write, kind, tmp_path):
    write(tmp_path / "data")
    layout = detect(tmp_path / "data")
    assert layout == (kind, tmp_path / "data") and len(open_source(*layout)) > 0
    for file in (tmp_path / "data").iterdir():
        if file.suffix == ".hdf":
            assert detect(file) == (kind, file)


def test_esc10_by_itself(shared):
    assert detect(shared / "esc10").kind == "esc10"


def test_folders_tables_and_archives(tmp_path):
    write_audio(tmp_path / "data" / "a" / "x.wav")
    assert detect(tmp_path / "data") == ("folder", tmp_path / "data")
    write_table(tmp_path / "data" / "list.csv", [["path", "label"], ["a/x.wav", "a"]])
    assert (
        detect(tmp_path / "data") == detect(tmp_path / "data" / "list.csv") == ("csv", tmp_path / "data" / "list.csv")
    )
    write_table(tmp_path / "data" / "more.csv", [["path"]])
    with pytest.raises(DataError, match=r"list\.csv, more\.csv"):
        detect(tmp_path / "data")
    (tmp_path / "x.tar").touch()
    assert detect(tmp_path / "x.tar").kind == "shards"
    with pytest.raises(DataError, match="specify the kind"):
        detect(tmp_path / "data" / "a" / "x.wav")
    with pytest.raises(DataError, match="There is no dataset"):
        detect(tmp_path / "nowhere")


def fine_tune(path, *assignments):
    return load_recipe("fine_tune", [f'data.path="{path}"', *assignments])


@pytest.mark.parametrize(("longest", "seconds"), [(0.3, 1.0), (2.4, 2.4), (12.0, 10.0)])
def test_length_of_clips_comes_from_the_clips(tmp_path, longest, seconds):
    write_audio(tmp_path / "a" / "x.wav", seconds=longest, rate=8_000)
    write_audio(tmp_path / "b" / "y.wav", seconds=0.2)
    assert resolve(fine_tune(tmp_path)).config.data.seconds == seconds
    assert resolve(fine_tune(tmp_path, "data.seconds=3")).config.data.seconds == 3


def test_a_test_set_is_taken_where_there_is_one(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_audio(tmp_path / "split" / split / name / "x.wav")
            write_audio(tmp_path / "plain" / name / f"{split}.wav")
    write_esc50(tmp_path / "esc")
    assert resolve(fine_tune(tmp_path / "split")).config.data.test == "test"
    plain = resolve(fine_tune(tmp_path / "plain")).config.data
    assert (plain.val, plain.test) == ("val", "")
    for name in ("a", "b"):
        write_audio(tmp_path / "single" / name / "x.wav")
    assert resolve(fine_tune(tmp_path / "single")).config.data.val == ""
    config = resolve(fine_tune(tmp_path / "esc", "data.fold=2")).config
    assert (config.data.kind, config.data.test, config.data.fold, config.data.seconds) == ("esc50", "test", 2, 0.0)


@pytest.mark.parametrize(("holdout", "val"), [(0.0, ""), (0.2, "val")])
def test_splits_are_left_open_for_all_folds(tmp_path, monkeypatch, holdout, val):
    write_esc50(tmp_path / "esc")
    runs = []
    monkeypatch.setattr(folds, "train", lambda config, reporter, data: runs.append(config) or {})
    folds.train_folds(fine_tune(tmp_path / "esc", f'run.out="{tmp_path}"', f"data.holdout={holdout}"))
    assert [run.data.fold for run in runs] == [1, 2, 3, 4, 5]
    assert {(run.data.kind, run.data.val, run.data.test) for run in runs} == {("esc50", val, "test")}


def test_nothing_open_means_no_change(tmp_path):
    write_esc50(tmp_path)
    config = load_recipe("esc50:mn04", [f'data.path="{tmp_path}"'])
    assert resolve(config).config == config
    with pytest.raises(ConfigError, match="--data"):
        resolve(load_recipe("esc50:mn04"))
    with pytest.raises(ConfigError, match="auto, folder"):
        resolve(config.replace({"data.kind": "esc"}))


def test_folders_of_runs():
    config = load_recipe("fine_tune", ["model.name=mn04_as"])
    assert with_folder(config).run.out == "runs/mn04_as"
    assert with_folder(config.replace({"data.fold": 3})).run.out == "runs/mn04_as/fold3"
    assert with_folder(config.replace({"run.out": "here"})).run.out == "here"
    names = ("mn04_as", "models/dog.safetensors", "runs/dogs/best.safetensors", "user/repo", "my model")
    assert [plain_name(name) for name in names] == ["mn04_as", "dog", "dogs", "repo", "my_model"]


def test_names_what_differs_from_a_run(tmp_path):
    config = TrainConfig()
    stored = {"config": dataclasses.asdict(config), "data": {"train": "a"}, "versions": {}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    changed = config.replace({"schedule.epochs": 3, "optim.lr": 0.5, "run.out": "elsewhere", "data.path": "there"})
    assert differences(tmp_path / "config.json", changed, {"train": "b"}) == [
        "data digest.train",
        "optim.lr",
        "schedule.epochs",
    ]
    assert differences(tmp_path / "config.json", config, {"train": "a"}) == []
    assert differences(tmp_path / "absent.json", config, {}) == []


def test_runs_of_versions_with_fewer_settings_keep_their_digest(tmp_path, monkeypatch):
    """The earlier version is simulated: it does not have the setting `optim.freeze`."""
    config, standard = load_recipe("esc50:mn10"), TrainConfig()
    new, frozen = run_digest(config, {}), config.replace({"optim.freeze": 2})
    assert run_digest(frozen, {}) != new != run_digest(config, {"train": "a"})
    portable = inputs.portable

    def earlier(config):
        values = portable(config)
        del values["optim"]["freeze"]
        return values

    monkeypatch.setattr(inputs, "portable", earlier)
    assert run_digest(config, {}) == new
    (tmp_path / "config.json").write_text(json.dumps({"config": earlier(standard), "data": {}, "versions": {}}))
    monkeypatch.undo()
    assert differences(tmp_path / "config.json", standard, {}) == []
    assert differences(tmp_path / "config.json", standard.replace({"optim.freeze": 2}), {}) == ["optim.freeze"]


class Notes(Reporter):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def test_one_class_is_refused(tmp_path):
    write_clips(tmp_path / "clips", 8)
    shutil.rmtree(tmp_path / "clips" / "low")
    with pytest.raises(DataError, match=r"the same class, 'high', so there is nothing to learn"):
        Run(run(tmp_path / "clips", tmp_path / "run"), Notes())
    rows = [
        ["path", "label"],
        *([f"clips/high/{path.name}", "high"] for path in sorted((tmp_path / "clips" / "high").iterdir())),
    ]
    write_table(tmp_path / "all.csv", rows)
    with pytest.raises(DataError, match="Add clips of another class"):
        Run(run(tmp_path / "all.csv", tmp_path / "run", data={"kind": "csv", "holdout": 0.0, "val": ""}), Notes())
    rows[1][1] = ""
    write_table(tmp_path / "some.csv", rows)
    Run(run(tmp_path / "some.csv", tmp_path / "run", data={"kind": "csv", "holdout": 0.0, "val": ""}), Notes())


def test_a_class_without_validation_clips_is_named(tmp_path):
    write_clips(tmp_path / "clips" / "train", 8)
    write_clips(tmp_path / "clips" / "val", 4)
    notes = Notes()
    Run(run(tmp_path / "clips", tmp_path / "run", data={"holdout": 0.0}), notes)
    assert notes.said == []
    shutil.rmtree(tmp_path / "clips" / "val" / "low")
    Run(run(tmp_path / "clips", tmp_path / "other", data={"holdout": 0.0}), notes)
    assert notes.said == ["1 of 2 classes have no validation clip: low."]
