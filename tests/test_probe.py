"""Linear probes: what is learned from and tested on, how settings are chosen, and the command from end to end."""

import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn import Embedder, create_model
from dymn.cli import app
from dymn.config import FrontEndConfig, ModelCard
from dymn.data import Catalog, open_source
from dymn.errors import ConfigError, DataError
from dymn.evaluation.linear import GRID, Examples
from dymn.evaluation.probe import probe
from dymn.evaluation.rounds import parts, rounds_of
from dymn.models import pretrained
from layouts import write_openmic
from tiny_runs import FRONT_END, write_clips


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=("a", "b"), front_end=FrontEndConfig(**FRONT_END, f_max_range=1))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"), 20)


def catalog(n, **parts_of):
    targets = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    return Catalog(tuple(map(str, range(n))), ("a", "b"), targets, **parts_of)


def check_rounds(found, n):
    for part in found:
        assert not set(part.train) & set(part.test)
        assert len(part.inner) >= 1
        for learn, compare in part.inner:
            assert not set(learn) & set(compare)
            assert len(learn) and len(compare)
            assert set(learn) | set(compare) <= set(part.train), "settings are chosen among what is learned from"


def test_folds_of_the_data_are_left_out_one_after_the_other():
    found = rounds_of(catalog(12, folds=(1, 1, 2, 2, 5, 5) * 2))
    check_rounds(found, 12)
    assert [part.name for part in found] == ["fold 1", "fold 2", "fold 5"]
    assert sorted(np.concatenate([part.test for part in found])) == list(range(12))
    assert all(len(part.inner) == 2 for part in found)


def test_two_folds_leave_one_to_cross_validate_in():
    found = rounds_of(catalog(40, folds=(1, 1, 2, 2) * 10))
    check_rounds(found, 40)
    assert all(len(part.inner) == 5 for part in found)


def test_splits_of_the_data_count():
    splits = ("train", "train", "val", "test", "") * 4
    (found,) = rounds_of(catalog(20, splits=splits))
    check_rounds([found], 20)
    assert [splits[i] for i in found.test] == ["test"] * 4
    assert {splits[i] for i in found.train} == {"train", "val"}
    ((learn, compare),) = found.inner
    assert {splits[i] for i in learn} == {"train"} and {splits[i] for i in compare} == {"val"}
    (found,) = rounds_of(catalog(40, splits=("train", "train", "train", "val") * 10))
    assert found.name == "val" and len(found.inner) == 5
    check_rounds([found], 40)
    with pytest.raises(DataError, match="split"):
        rounds_of(catalog(4, splits=("train",) * 4))


@settings(max_examples=40, deadline=None)
@given(strata=st.lists(st.integers(0, 3), min_size=10, max_size=60), n=st.integers(2, 10))
def test_parts_are_equal_in_size_and_in_classes(strata, n):
    numbers = parts(np.array(strata), n)
    sizes = np.bincount(numbers, minlength=n + 1)[1:]
    assert sizes.max() - sizes.min() <= 1
    for stratum in set(strata):
        counts = np.bincount(numbers[np.array(strata) == stratum], minlength=n + 1)[1:]
        assert counts.max() - counts.min() <= 1


def test_too_few_clips():
    with pytest.raises(DataError, match="folds"):
        rounds_of(catalog(3), folds=5)
    with pytest.raises(ConfigError, match="folds"):
        rounds_of(catalog(30), folds=1)
    with pytest.raises(DataError, match="one fold"):
        rounds_of(catalog(4, folds=(1,) * 4))


def examples(exclusive, n=60, seed=0):
    """Three classes on three of twelve axes, with noise."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, 3, n)
    targets = np.eye(3, dtype=np.float32)[classes]
    vectors = random.normal(0, 0.7, (n, 12)) + 2 * np.pad(targets, ((0, 0), (0, 9)))
    return Examples(vectors, targets, np.ones_like(targets), exclusive)


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_is_linear_is_found(exclusive):
    data = examples(exclusive)
    train, test = np.arange(40), np.arange(40, 60)
    metric = "accuracy" if exclusive else "mAP"
    assert data.evaluate(data.scores(train, test, 1.0), test)[metric] > 0.9


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_test_has_no_say_in_what_is_chosen(exclusive):
    data = examples(exclusive)
    train, test = np.arange(40), np.arange(40, 60)
    inner = [(train[:20], train[20:]), (train[20:], train[:20])]
    metric = "accuracy" if exclusive else "mAP"
    chosen, scores = data.choose(inner, metric), data.scores(train, test, 1.0)
    data.targets = data.targets.copy()
    data.targets[test] = 1 - data.targets[test]
    assert data.choose(inner, metric) == chosen
    np.testing.assert_array_equal(data.scores(train, test, 1.0), scores)


def test_of_equal_settings_the_strongest_regularisation_is_taken(monkeypatch):
    data = examples(True)
    monkeypatch.setattr(Examples, "evaluate", lambda *_: {"accuracy": 0.5})
    assert data.choose([(np.arange(30), np.arange(30, 60))], "accuracy") == GRID[0]


def test_masked_annotations_do_not_count():
    data = examples(False)
    train, test = np.arange(40), np.arange(40, 60)
    wrong = data.targets.copy()
    wrong[30:40, 0] = 1 - wrong[30:40, 0]
    masks = np.ones_like(wrong)
    masks[30:40, 0] = 0
    masked = Examples(data.vectors, wrong, masks, False)
    changed = Examples(data.vectors, data.targets, masks, False)
    np.testing.assert_array_equal(masked.scores(train, test, 1.0)[:, 0], changed.scores(train, test, 1.0)[:, 0])


def test_a_class_that_was_never_heard_gets_nothing():
    data = examples(True)
    train = np.flatnonzero(data.targets[:, 2] == 0)
    assert (data.scores(train, np.arange(60), 1.0)[:, 2] == 0).all()
    only = np.flatnonzero(data.targets[:, 1] == 1)
    assert (data.scores(only, np.arange(60), 1.0).argmax(axis=1) == 1).all()


def run(*arguments):
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


def test_the_command_tells_by_fold_and_draws(model, clips, tmp_path):
    done = run(clips, "-m", model, "-l", "mels", "--folds", 4, "--plot", tmp_path / "confusion.png", "-q")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "data       folder, 20 clips, 2 classes"
    assert lines[1] == "embedding  tiny, mels: 32 values"
    assert [line.split("  ")[0] for line in lines[4:8]] == ["fold 1", "fold 2", "fold 3", "fold 4"]
    assert lines[8].startswith("mean") and "100.00 ± 0.00 %" in lines[8]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_json_has_everything(model, clips):
    document = json.loads(run(clips, "-m", model, "-l", "mels,last", "-f", "json").stdout)
    assert (document["kind"], document["metric"], document["mean"], document["std"]) == ("folder", "accuracy", 1.0, 0.0)
    assert document["layers"] == ["mels", "last"]
    assert document["confusion"] == [[10, 0], [0, 10]]
    assert sum(result["tested_on"] for result in document["results"]) == document["clips"] == 20
    assert all(result["C"] in GRID for result in document["results"])
    assert document["bad"] == {}


def test_labels_of_all_kinds(model, tmp_path):
    """A manifest in which clips have several labels, with a test set of its own."""
    clips = write_clips(tmp_path / "clips", 16)
    rows = ["path,labels,split"]
    for i, path in enumerate(sorted(clips.rglob("*.wav"))):
        labels = path.parent.name + (";odd" if i % 2 else "")
        rows.append(f"{path.relative_to(tmp_path)},{labels},{'test' if i % 4 == 3 else 'train'}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    document = json.loads(run(tmp_path / "all.csv", "-m", model, "-l", "mels", "-f", "json").stdout)
    assert document["metric"] == "mAP" and document["confusion"] is None
    assert [result["test"] for result in document["results"]] == ["test"]
    refused = run(tmp_path / "all.csv", "-m", model, "-l", "mels", "--plot", tmp_path / "x.png")
    assert refused.exit_code == 2 and "several labels" in refused.stderr


def test_bad_clips_are_left_out_and_too_many_are_an_error(model, tmp_path):
    clips = write_clips(tmp_path / "one", 20, bad=1)
    done = run(clips, "-m", model, "-l", "mels", "-f", "json", "--workers", 0)
    assert done.exit_code == 1 and "dymn: low/bad0.wav: " in done.stderr
    document = json.loads(done.stdout)
    assert document["clips"] == 20 and list(document["bad"]) == ["low/bad0.wav"]
    assert "left out   1 clips" in run(clips, "-m", model, "-l", "mels").stdout
    refused = run(write_clips(tmp_path / "many", 20, bad=3), "-m", model, "-l", "mels")
    assert refused.exit_code == 1 and "3 of 23 clips are bad" in refused.stderr


def test_longer_clips_can_be_cut(model, tmp_path):
    """The classes differ only after a tenth of a second."""
    rate, random = FRONT_END["sample_rate"], np.random.default_rng(0)
    for i in range(20):
        name = ("early", "late")[i % 2]
        samples = 0.1 * random.standard_normal(rate // 2)
        samples[rate // 10 :] *= i % 2
        (tmp_path / name).mkdir(exist_ok=True)
        soundfile.write(tmp_path / name / f"{i}.wav", samples.astype(np.float32), rate, subtype="FLOAT")
    accuracy = [
        json.loads(run(tmp_path, "-m", model, "-l", "mels", "-f", "json", *cut).stdout)["mean"]
        for cut in ([], ["--seconds", "0.09"])
    ]
    assert accuracy[0] == 1.0 and accuracy[1] < 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        ["--layer", "first"],
        ["--plot", "x.txt"],
        ["--folds", "1"],
        ["--kind", "moon"],
        ["--seconds", "0"],
        ["-m", "no_such_model"],
    ],
)
def test_wrong_use_gives_exit_code_2(model, clips, arguments):
    done = run(clips, "-m", model, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr and "Traceback" not in done.stderr
    assert run(clips / "nothing", "-m", model).exit_code == 2


def test_esc10_is_tested_by_its_own_folds(shared):
    found = rounds_of(open_source("esc10", shared / "esc10").catalog)
    check_rounds(found, 400)
    assert [part.name for part in found] == [f"fold {i}" for i in range(1, 6)]
    assert [(len(part.train), len(part.test), len(part.inner)) for part in found] == [(320, 80, 4)] * 5


def test_openmic_masks_reach_the_probe(model, tmp_path):
    write_openmic(tmp_path / "openmic")
    from dymn.weights import load_model

    with pytest.raises(DataError):  # two clips to learn from are too few to cross-validate in
        probe(Embedder(load_model(model), "mels"), tmp_path / "openmic")
