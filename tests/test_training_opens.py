"""How often a run opens its data and checkpoints, counted by the interpreter's audit events."""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from dymn import create_model
from dymn.config import FrontEndConfig, ModelCard, from_dict
from dymn.data import PackSettings, open_source, pack
from dymn.evaluation.assess import assess
from dymn.models import pretrained
from dymn.training import train
from dymn.training.folds import train_folds
from dymn.weights import load_model
from layouts import write_table
from tiny_runs import FRONT_END, NETWORK, run, write_clips

LABELS = ("high", "low")
_opened: list[Counter[str]] = []


def _count(event, arguments):
    if _opened and event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], (str, bytes, Path)):
        _opened[-1][str(arguments[0])] += 1


sys.addaudithook(_count)  # one for the process: hooks cannot be removed


@contextmanager
def opens():
    """Count by path what is opened or listed."""
    _opened.append(Counter())
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("opens"), 12)


@pytest.fixture(scope="module")
def checkpoint(clips):
    network = create_model("mn04", 2, **NETWORK)
    network.card = ModelCard(name="tiny", labels=LABELS, front_end=from_dict(FrontEndConfig, FRONT_END))
    path = clips.parent / "tiny.safetensors"
    pretrained.save(network, path)
    return path


def test_packed_shards_are_opened_once(clips, tmp_path):
    pack(open_source("folder", clips), tmp_path / "packed", PackSettings(clips=100))
    with opens() as counted:
        train(
            run(
                tmp_path / "packed",
                tmp_path / "run",
                data={"kind": "auto", "holdout": 0.3, "val": "auto", "test": "auto", "seconds": 0.0},
            )
        )
    found = {Path(path).name: n for path, n in counted.items() if path.startswith(str(tmp_path / "packed"))}
    shard = next(name for name in found if name.endswith(".tar"))
    assert (found["index.json"], found["clips.npz"], found[shard]) == (1, 1, 1), found


def test_a_manifest_is_read_once_and_a_folder_walked_once(clips, tmp_path):
    rows = [["path", "label", "fold"]]
    rows += [
        [str(path.relative_to(clips)), path.parent.name, 1 + i // 2 % 2]
        for i, path in enumerate(sorted(clips.rglob("*.wav")))
    ]
    write_table(tmp_path / "clips.csv", rows)
    data = {"kind": "csv", "options": {"root": str(clips)}, "holdout": 0.0, "val": "", "fold": 1, "test": "test"}
    with opens() as counted:
        train(run(tmp_path / "clips.csv", tmp_path / "csv", data=data))
    assert counted[str(tmp_path / "clips.csv")] == 1
    with opens() as counted:
        train_folds(run(tmp_path / "clips.csv", tmp_path / "folds", data=data | {"fold": 0}))
    assert counted[str(tmp_path / "clips.csv")] == 1
    with opens() as counted:
        train(run(clips, tmp_path / "folder", data={"kind": "auto", "val": "auto", "test": "auto", "seconds": 0.0}))
    walked = {path: n for path, n in counted.items() if path in (str(clips / "high"), str(clips / "low"))}
    assert set(walked.values()) == {1}, counted


def test_a_checkpoint_is_loaded_once_whatever_it_is_used_for(clips, checkpoint, tmp_path):
    model = {"name": str(checkpoint), "settings": {}, "front_end": {}}
    with opens() as counted:
        train(
            run(
                clips,
                tmp_path,
                model=model,
                teacher={"models": (str(checkpoint), str(checkpoint)), "feature_weight": 0.5},
            )
        )
    assert counted[str(checkpoint)] == 1, counted[str(checkpoint)]


def test_evaluation_opens_the_data_once(clips, checkpoint, tmp_path):
    pack(open_source("folder", clips), tmp_path / "packed", PackSettings(clips=100))
    with opens() as counted:
        assess(load_model(checkpoint), tmp_path / "packed")
    found = {Path(path).name: n for path, n in counted.items() if path.startswith(str(tmp_path / "packed"))}
    assert (found["index.json"], found["clips.npz"]) == (1, 1), found
