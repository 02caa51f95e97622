"""A run that is killed, interrupted or out of room at any moment continues to the very numbers it would have had (CPU:
bitwise).
"""

import dataclasses
import errno
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dymn import create_model
from dymn.config import FrontEndConfig, ModelCard
from dymn.data import PackSettings, open_source, pack
from dymn.errors import ConfigError, DataError
from dymn.training import loop, state, train
from dymn.training.report import Reporter, plot_curves
from dymn.training.state import load_state
from dymn.weights import format as weights_format
from tiny_runs import FRONT_END, run, settings, write_clips

TIMES = {"seconds", "clips_per_second"}  # not the same twice
MIXED = {
    "augment": {
        "roll_ms": 20,
        "gain_db": 6,
        "wave_mixup": 0.5,
        "padding": 0.5,
        "spec_mixup": 0.3,
        "jitter": True,
        "frequency_mask": 4,
        "time_mask": 6,
    },
    "optim": {"name": "adamw", "weight_decay": 0.01, "batch_size": 4, "accumulate": 2, "ema": 0.8, "clip_norm": 1.0},
    "schedule": {"epochs": 2, "warm_up": 2, "ramp_start": 4, "tau_start": 30.0, "tau_epochs": 2},
    "data": {"max_bad": 0.2},
}
"""Everything that has a state: both mixups, dropout, Adam's moments, averaged weights, a schedule, bad clips."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "data", 14, bad=1)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda *arguments: None)


def config(clips, out, **sections):
    merged = {name: MIXED.get(name, {}) | sections.get(name, {}) for name in MIXED.keys() | sections.keys()}
    return run(clips, out, **merged)


def outcome(folder):
    """Return all that must be the same: weights, state, log, list of bad clips; without times."""
    ended = load_state(folder / "state.pt")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(log) == ended.epoch
    return {
        **{name: weights_format.read(folder / f"{name}.safetensors").state for name in ("best", "last")},
        "state": [ended.model, ended.ema, ended.optimizer["state"], ended.best, ended.best_epoch],
        "log": [{key: value for key, value in record.items() if key not in TIMES} for record in log],
        "history": [{key: value for key, value in record.items() if key not in TIMES} for record in ended.history],
        "bad": (folder / "bad_clips.csv").read_text() if (folder / "bad_clips.csv").exists() else "",
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_curves", lambda *arguments: None)
        train(config(clips, folder))
    return outcome(folder)


def test_the_same_run_twice(clips, tmp_path, uninterrupted):
    train(config(clips, tmp_path / "run"))
    assert same(outcome(tmp_path / "run"), uninterrupted)
    before = (tmp_path / "run" / "state.pt").read_bytes()
    result = train(config(clips, tmp_path / "run"))  # all is done: nothing is trained again
    assert result["epochs"] == 2 and (tmp_path / "run" / "state.pt").read_bytes() == before


KILLER = """
import json, os, signal, sys
from pathlib import Path
import lightning_fabric, sklearn.metrics, torch  # once for all children
import dymn.system.files
from dymn.training import loop, state, train
from dymn.training.settings import parse
from dymn.training.report import Reporter

torch.set_num_threads(1)
loop.plot_curves = lambda *arguments: None
settings, moments = json.loads(Path(sys.argv[1]).read_text()), json.loads(sys.argv[2])

def die(*arguments, **more):
    os.kill(os.getpid(), signal.SIGKILL)

class Countdown(Reporter):
    def __init__(self, batches):
        self.left = batches
    def batch(self, loss):
        self.left -= 1
        if self.left < 0:
            die()

def replace_and_count(left):
    real = os.replace
    def replace(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            die()
        real(*arguments)
    return replace

def half_a_state(values, file):
    file.write(b"half a state")
    file.flush()
    die()

for i, (kind, count) in enumerate(moments):
    settings["run"]["out"] = str(Path(sys.argv[3]) / f"{kind}{count}")
    child = os.fork()
    if child == 0:  # before any use of autograd, so that the child may have its own
        reporter = None
        if kind == "batch":
            reporter = Countdown(count)
        elif kind == "replace":
            dymn.system.files.os.replace = replace_and_count(count)
        else:
            real, calls = torch.save, iter(range(100))
            torch.save = lambda values, file: real(values, file) if next(calls) < count else half_a_state(values, file)
        train(parse(settings), reporter)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, (kind, count)
"""
MOMENTS = [
    ("batch", 5),  # in the second epoch
    ("replace", 1),  # between the files of the first epoch; the first of all is config.json
    ("replace", 5),  # the state of the first epoch is not in its place yet
    ("save", 1),  # in the middle of writing the second state
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to be killed at many moments in little time")
def test_a_run_killed_at_any_time_resumes(clips, tmp_path, uninterrupted):
    (tmp_path / "config.json").write_text(json.dumps(settings(clips, tmp_path, **MIXED)))
    (tmp_path / "killer.py").write_text(KILLER)
    arguments = [str(tmp_path / "killer.py"), str(tmp_path / "config.json"), json.dumps(MOMENTS), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for kind, count in MOMENTS:
        folder = tmp_path / f"{kind}{count}"
        left = sorted(folder.glob(".*.part"))
        assert bool(left) == (kind != "batch"), (kind, count, left)
        train(config(clips, folder))
        assert same(outcome(folder), uninterrupted), (kind, count)
        assert not list(folder.glob(".*.part"))


class Interrupting(Reporter):
    """Ctrl-C after some batches."""

    def __init__(self, batches):
        self.left = batches

    def batch(self, loss):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_interrupted_from_the_keyboard(clips, tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(config(clips, tmp_path / "run"), Interrupting(6))
    assert load_state(tmp_path / "run" / "state.pt").epoch == 1
    notes = []
    reporter = Reporter()
    reporter.note = notes.append
    train(config(clips, tmp_path / "run"), reporter)
    assert same(outcome(tmp_path / "run"), uninterrupted)
    assert notes == [f"Resuming {tmp_path / 'run'} after epoch 1."]


def interrupt_and_go_on(moments, make):
    """Interrupt a run again and again, each time after so many batches more, and then let it end; return the notes."""
    notes = []
    for batches in moments:
        reporter = Interrupting(batches)
        reporter.note = notes.append
        with pytest.raises(KeyboardInterrupt):
            train(make(batches), reporter)
    train(make(0))
    return notes


def test_interrupted_within_an_epoch(clips, tmp_path, uninterrupted):
    def every_step(workers):
        return config(clips, tmp_path / "run", run={"save_steps": 1}, data=MIXED["data"] | {"workers": min(workers, 1)})

    notes = interrupt_and_go_on((2, 1, 4, 1), every_step)
    assert same(outcome(tmp_path / "run"), uninterrupted)
    after = "after epoch {} and 1 steps of the next."
    assert [note.partition("run ")[2] for note in notes] == [after.format(0), after.format(0), after.format(1)]


def test_shards_are_gone_on_with_within_an_epoch(clips, tmp_path):
    pack(open_source("folder", clips), tmp_path / "shards", PackSettings(clips=3))

    def streamed(name, **data):
        data = MIXED["data"] | {"kind": "packed", "sampling": "balanced", "draws": 8} | data
        return config(tmp_path / "shards", tmp_path / name, run={"save_steps": 1}, data=data)

    train(streamed("whole"))
    interrupt_and_go_on((2, 3), lambda batches: streamed("parts", workers=min(batches, 2)))
    assert same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("target", ["state", "log"])
def test_a_full_disk_keeps_the_previous_state(clips, tmp_path, uninterrupted, monkeypatch, target):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls = []
    real_save, real_history = torch.save, loop.write_history

    def save(values, file):
        if target == "state" and values["epoch"] == 2:
            file.write(b"as much as there was room for")
            raise RuntimeError("unexpected pos 704 vs 598")  # as torch reports it
        real_save(values, file)

    def write_history(path, history):
        calls.append(path)
        if target == "log" and len(history) == 2:
            raise full
        real_history(path, history)

    with monkeypatch.context() as patch:
        patch.setattr(state.torch, "save", save)
        patch.setattr(loop, "write_history", write_history)
        with pytest.raises(DataError, match=r"cannot be written.*[Ff]ree some space and run the command again"):
            train(config(clips, tmp_path / "run"))
    assert load_state(tmp_path / "run" / "state.pt").epoch == 1 and not list((tmp_path / "run").glob(".*.part"))
    if target == "state":
        train(config(clips, tmp_path / "run"))
        assert same(outcome(tmp_path / "run"), uninterrupted)


def test_workers_do_not_change_the_numbers(clips, tmp_path, uninterrupted):
    train(config(clips, tmp_path / "run", data={"workers": 2}))
    assert same(outcome(tmp_path / "run"), uninterrupted)


class Compiled(torch.nn.Module):
    """Renames the parameters as torch.compile does."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return self._orig_mod(x)


def test_a_compiled_network_is_saved_under_its_own_names(clips, tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(torch, "compile", Compiled)
    with pytest.raises(KeyboardInterrupt):
        train(config(clips, tmp_path / "run", optim=MIXED["optim"] | {"compile": True}), Interrupting(6))
    train(config(clips, tmp_path / "run", optim=MIXED["optim"] | {"compile": True}))
    assert same(outcome(tmp_path / "run"), uninterrupted)


def test_another_run_in_the_same_folder_is_refused(clips, tmp_path):
    short = {"schedule": {"epochs": 1, "tau_epochs": 1}}
    train(config(clips, tmp_path / "run", **short))
    for change in (
        {"optim": {"lr": 2e-3}},
        {"run": {"seed": 1}},
        {"data": {"holdout": 0.2}},
    ):
        with pytest.raises(ConfigError, match=r"other settings or data.*run\.out"):
            train(config(clips, tmp_path / "run", **(short | change)))
    (tmp_path / "run").rename(tmp_path / "moved")  # where a run lies and how it is called is not a part of it
    moved = {"run": {"name": "other", "licence": "MIT"}}
    assert train(config(clips, tmp_path / "moved", **(short | moved)))["epochs"] == 1


def test_a_damaged_state_is_reported(clips, tmp_path):
    short = {"schedule": {"epochs": 1, "tau_epochs": 1}}
    train(config(clips, tmp_path / "run", **short))
    path = tmp_path / "run" / "state.pt"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no state"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            train(config(clips, tmp_path / "run", **short))
    torch.save({"format": "dymn-run/0"}, path)
    with pytest.raises(DataError, match="not the state of a run"):
        load_state(path)


def test_a_flipped_bit_in_the_state_is_noticed_or_changes_nothing(tmp_path):
    path, rng = tmp_path / "state.pt", np.random.default_rng(0)
    saved = state.RunState(epoch=2, model={"a": torch.randn(50)}, history=[{"epoch": 1}], best_epoch=1, digest="x")
    state.save_state(saved, path)
    content = path.read_bytes()
    noticed = 0
    for at in rng.permutation(len(content))[:300]:
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            loaded = load_state(path)
        except DataError:
            noticed += 1
            continue
        assert torch.equal(loaded.model.pop("a"), saved.model["a"])
        assert dataclasses.replace(loaded, model={}) == dataclasses.replace(saved, model={})
    assert noticed > 150


def test_a_run_of_a_version_with_other_defaults_is_not_resumed(tmp_path):
    write_clips(tmp_path / "data", 8)
    made = functools.partial(run, tmp_path / "data", tmp_path / "run", schedule={"epochs": 3, "warm_up": 0})
    with pytest.raises(KeyboardInterrupt):
        train(made(), StopAfter(1))
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    stored["config"]["optim"]["weight_decay"] = 0.5  # the default of the earlier version
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"other settings or data \(optim.weight_decay"):
        train(made())


def test_a_resumed_run_does_not_inherit_again(tmp_path, monkeypatch):
    write_clips(tmp_path / "data", 8)
    wide = create_model("mn04", 2, width=0.3)
    wide.card = ModelCard(name="wide", front_end=FrontEndConfig(**FRONT_END), labels=("high", "low"))
    wide.save_pretrained(tmp_path / "wide")
    model = {"inherit": str(tmp_path / "wide"), "settings": {"width": 0.2}}
    made = functools.partial(
        run, tmp_path / "data", tmp_path / "run", model=model, schedule={"epochs": 2, "warm_up": 0}
    )
    with pytest.raises(KeyboardInterrupt):
        train(made(), StopAfter(1))
    monkeypatch.setattr("dymn.training.prepare.inherit_weights", lambda *arguments: pytest.fail("inherited again"))
    train(made())


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_clip_that_changed_at_the_same_size_is_noticed_when_a_run_continues(tmp_path, part):
    for name, n in (("train", 8), ("val", 4)):
        write_clips(tmp_path / "data" / name, n)
    made = functools.partial(run, tmp_path / "data", tmp_path / "run", data={"holdout": 0.0})
    with pytest.raises(KeyboardInterrupt):
        train(made(schedule={"epochs": 3, "warm_up": 0}), StopAfter(1))
    path = next((tmp_path / "data" / part / "low").iterdir())
    content = bytearray(path.read_bytes())
    content[-4:] = b"\0\0\0\x3f"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{part}/low/{path.name} has changed since this run read it"):
        train(made(schedule={"epochs": 3, "warm_up": 0}))


class StopAfter(Reporter):
    def __init__(self, epochs):
        self.epochs = epochs

    def epoch(self, record):
        if record["epoch"] == self.epochs:
            raise KeyboardInterrupt


def test_curves_count_whole_epochs(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = [], figure.savefig
    monkeypatch.setattr(
        figure, "savefig", lambda self, *given, **options: (drawn.append(self), save(self, *given, **options))
    )
    plot_curves(tmp_path / "curves.png", [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}], "accuracy")
    ticks = drawn[0].axes[0].get_xticks()
    assert len(ticks) >= 2 and all(tick == round(tick) for tick in ticks)
