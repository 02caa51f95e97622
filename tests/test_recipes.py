"""Every recipe and every variant.

What it sets, and that it trains, on a tiny dataset in its official layout with a narrow network.
"""

import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from dymn import create_model
from dymn.architectures import MODELS
from dymn.config import ModelCard
from dymn.data import TASKS
from dymn.errors import ConfigError
from dymn.models import pretrained
from dymn.training import load_recipe, recipe_names, train
from dymn.training.recipe import parse_assignment
from dymn.training.schedules import learning_rate_factor, temperature
from dymn.training.settings import TrainConfig
from dymn.training.start import with_temperature
from dymn.weights import REGISTRY, audioset_labels
from dymn.weights import format as weights_format
from layouts import (
    write_audio,
    write_audioset,
    write_corpus,
    write_esc50,
    write_fsd50k,
    write_hdf5,
    write_openmic,
    write_tau,
)

NAMES = recipe_names()
NARROW = {False: ("mn01", {}), True: ("dymn04", {"width": 0.1})}


def is_dynamic(name):
    return name.startswith("dymn")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Stand-ins for published checkpoints, by (dynamic, dataset): the networks of width 0.1, with their classes."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for dynamic, (name, settings) in NARROW.items():
        for dataset, labels in (
            ("AudioSet", audioset_labels()),
            ("ImageNet", tuple(f"class {i}" for i in range(1000))),
        ):
            network = create_model(name, len(labels), generator=torch.Generator().manual_seed(1), **settings)
            network.temperature = 30.0 if dataset == "ImageNet" else 1.0
            network.card = ModelCard(name=f"{name}_{dataset}", labels=labels)
            paths[dynamic, dataset] = folder / f"{name}_{dataset}.safetensors"
            pretrained.save(network, paths[dynamic, dataset])
    return paths


def write_fsd50k_hdf5(root):
    targets = np.packbits(np.eye(3, 200, dtype=np.uint8), axis=1)
    root.mkdir()
    for i, part in enumerate(("train", "val", "eval")):
        write_hdf5(root / f"FSD50K.{part}_mp3.hdf", [f"{i}.mp3"], targets[i : i + 1])


def write_openmic_hdf5(root):
    values = np.zeros((1, 40))
    values[0, [0, 20, 21]] = 1
    root.mkdir()
    for i, part in enumerate(("train", "test")):
        write_hdf5(root / f"openmic_{part}.csv_mp3.hdf", [f"00000{i}_0.mp3"], values)


def write_audioset_and_teacher(root):
    """AudioSet with the published logits beside it, in the published form; one clip is not among them."""
    write_audioset(root)
    keys = ["Ybbbbbbbbbb", "--aaaaaaaaa", "ccccccccccc"]
    logits = np.random.default_rng(0).normal(-4, 1, (3, 527)).astype(np.float32)
    np.save(root / "passt_enemble_logits_mAP_495.npy", logits)
    (root / "fname_to_index.pkl").write_bytes(pickle.dumps({key: i for i, key in enumerate(keys)}))


def write_folder(root):
    for name in ("knock", "whistle"):
        for i in range(4):
            write_audio(root / name / f"{i}.wav", 300 + 100 * i)


WRITERS = {
    "folder": write_folder,
    "esc50": write_esc50,
    "esc10": write_esc50,
    "fsd50k": write_fsd50k,
    "fsd50k_hdf5": write_fsd50k_hdf5,
    "openmic": write_openmic,
    "openmic_hdf5": write_openmic_hdf5,
    "tau": write_tau,
    "audioset_hdf5": write_audioset_and_teacher,
    "shards": write_corpus,
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "data"
            WRITERS[kind](made[kind])
        return made[kind]

    return get


def tiny(config, data, weights, out):
    """The run as it is, but for the size: narrow networks, short clips, small batches, one epoch of two steps."""

    def stand_in(name):
        if name in MODELS:
            return NARROW[is_dynamic(name)][0]
        return str(weights[is_dynamic(name), REGISTRY[name].dataset])

    changes = {
        "model.name": stand_in(config.model.name),
        "model.settings": NARROW[is_dynamic(config.model.name)][1] if config.model.name in MODELS else {},
        "model.inherit": stand_in(config.model.inherit) if config.model.inherit else "",
        "teacher.models": [stand_in(name) for name in config.teacher.models],
        "data.path": str(data),
        "data.seconds": 0.2,
        "data.draws": 4,
        "data.least_draws": 0,
        "data.workers": 0,
        "data.fold": 1 if config.data.kind.startswith("esc") else 0,
        "optim.batch_size": 2,
        "schedule.epochs": 1,
        "run.out": str(out),
        "run.device": "cpu",
    }
    return config.replace(changes)


@pytest.fixture
def no_curves(monkeypatch):
    monkeypatch.setattr("dymn.training.loop.plot_curves", lambda *_: None)


def check_run(config, out):
    result = train(config)
    task = TASKS[config.data.kind]
    assert result["epochs"] == 1 and (out / "best.safetensors").exists()
    record = result["checkpoint"]
    card = weights_format.read(record).card
    assert card.exclusive == (task.loss == "ce") and card.provenance["config"]["optim"]["batch_size"] == 2
    if config.data.test:
        assert result["test_clips"] > 0
    if config.data.test and config.data.kind != "openmic":  # whose tiny test set has no positive
        assert math.isfinite(result[f"test_{task.metric}"])
    if config.data.val and task.metric != "mAP":
        assert f"val_{task.metric}" in result
    return result


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains(name, datasets, weights, tmp_path, no_curves):
    config = load_recipe(name)
    kind = "folder" if config.data.kind == "auto" else config.data.kind
    config = config.replace(
        {"data.kind": kind} | {f"data.{part}": "" for part in ("val", "test") if getattr(config.data, part) == "auto"}
    )
    config = tiny(config, datasets(kind), weights, tmp_path / "run")
    result = check_run(config, tmp_path / "run")
    if name in ("dymn02_open", "dymn04_open"):
        assert math.isfinite(result["val_distillation"])


@pytest.mark.parametrize(
    ("name", "kind"), [("fsd50k:mn04", "fsd50k_hdf5"), ("openmic:dymn04", "openmic_hdf5"), ("esc50:mn04", "esc10")]
)
def test_recipes_take_other_layouts(name, kind, datasets, weights, tmp_path, no_curves):
    config = tiny(load_recipe(name, [f'data.kind="{kind}"']), datasets(kind), weights, tmp_path / "run")
    check_run(config, tmp_path / "run")


# What the paper says, written down once more


TABLE_III = ("mn04", "mn10", "mn20", "mn30", "dymn04", "dymn10", "dymn20")
RATES = {"esc50": (6e-5, 4e-5), "fsd50k": (7e-5, 4e-5), "openmic": (1e-5, 2e-5), "dcase20": (8e-4, 3e-4)}
BATCHES = {"esc50": (128, 64), "fsd50k": (64, 32), "openmic": (64, 32), "dcase20": (64, 32)}


def test_every_run_of_the_paper_is_there():
    wanted = {f"{task}:{model}" for task in RATES for model in TABLE_III}
    wanted |= {
        f"audioset_kd:{model}"
        for model in ("mn04", "mn05", "mn10", "mn20", "mn30", "mn40", "dymn04", "dymn06", "dymn10", "dymn20")
    }
    wanted |= {
        f"audioset_ablation:{a}_{k}_{p}" for a in ("dymn", "mn") for k in ("kd", "no_kd") for p in ("pt", "no_pt")
    }
    assert set(NAMES) == wanted | {"fine_tune", "esc10", "dymn02_open", "dymn04_open"}


@pytest.mark.parametrize("task", RATES)
@pytest.mark.parametrize("model", TABLE_III)
def test_fine_tuning_as_in_section_v_b(task, model):
    run = load_recipe(f"{task}:{model}")
    assert run.model.name == f"{model}_as" and run.optim.lr == RATES[task][is_dynamic(model)]
    assert run.optim.batch_size == BATCHES[task][is_dynamic(model)]
    assert (run.optim.name, run.optim.weight_decay, run.schedule.epochs) == ("adam", 0.0, 80)
    augment = run.augment
    assert (augment.roll_ms, augment.gain_db, augment.wave_mixup, augment.spec_mixup, augment.jitter) == (
        125,
        7,
        0.5,
        0.3,
        True,
    )
    assert augment.frequency_mask == augment.time_mask == 0 and not run.teacher.is_present
    fresh = with_temperature(run.replace({"model.name": model}), None).schedule
    expected = (30.0, 1.0, 12) if is_dynamic(model) else (1.0, 1.0, 1)  # published weights keep theirs
    assert run.schedule.tau_start is None and (fresh.tau_start, fresh.tau_end, fresh.tau_epochs) == expected
    assert run.data.test == "test" and run.data.val == ("val" if task == "fsd50k" else "")
    factors = [rate_factor(run, epoch) for epoch in (0, 5, 10, 42, 75, 79)]
    assert factors == pytest.approx([math.exp(-5 * 0.95**2), math.exp(-5 / 4), 1.0, 1 - 0.99 * 32 / 65, 0.01, 0.01])


def rate_factor(run, epoch):
    schedule = dataclasses.asdict(run.schedule)
    return learning_rate_factor(
        epoch, **{name: schedule[name] for name in ("warm_up", "ramp_start", "ramp_length", "floor")}
    )


@pytest.mark.parametrize("model", ["mn04", "mn05", "mn10", "mn20", "mn30", "mn40", "dymn04", "dymn10", "dymn20"])
def test_distillation_as_in_section_iv(model):
    run = load_recipe(f"audioset_kd:{model}")
    assert run.model.name == f"{model}_im"
    assert run.optim.lr == {"dymn04": 2e-3, "dymn10": 1e-3, "dymn20": 5e-4}.get(model, 8e-4)
    assert (run.optim.name, run.optim.batch_size, run.optim.weight_decay) == ("adam", 120, 0)
    assert (run.data.sampling, run.data.draws, run.data.val) == ("balanced", 100_000, "")
    assert (run.teacher.label_weight, run.teacher.partial) == (0.1, True) and run.teacher.table.endswith(".npy")
    assert run.augment == dataclasses.replace(type(run.augment)(), spec_mixup=0.3)
    assert run.schedule.epochs == 200
    factors = [rate_factor(run, epoch) for epoch in (8, 80, 175, 199)]
    assert factors == pytest.approx([1, 1, 0.01, 0.01])
    taus = [
        temperature(e, start=run.schedule.tau_start, end=run.schedule.tau_end, epochs=run.schedule.tau_epochs)
        for e in (0, 1, 29, 199)
    ]
    assert taus == ([30, 29, 1, 1] if is_dynamic(model) else [1, 1, 1, 1])


@pytest.mark.parametrize("architecture", ["dymn10", "mn10"])
@pytest.mark.parametrize("start", ["pt", "no_pt"])
def test_ablation_as_in_section_vi_a(architecture, start):
    short = architecture.removesuffix("10")
    plain, taught = (
        load_recipe(f"audioset_ablation:{short}_no_kd_{start}"),
        load_recipe(f"audioset_ablation:{short}_kd_{start}"),
    )
    assert taught.model.name == plain.model.name == (f"{architecture}_im" if start == "pt" else architecture)
    assert dataclasses.replace(taught, model=None) == dataclasses.replace(
        load_recipe(f"audioset_kd:{architecture}"), model=None
    )
    assert not plain.teacher.is_present and plain.optim.lr == 5e-4
    augment = plain.augment
    assert (augment.roll_ms, augment.gain_db, augment.wave_mixup, augment.frequency_mask, augment.time_mask) == (
        125,
        7,
        0.5,
        48,
        192,
    )
    for section in ("data", "schedule"):
        assert getattr(plain, section) == getattr(taught, section)


# Recipes as files


def test_other_numbers_of_epochs_scale_the_schedule():
    run = load_recipe("audioset_kd:dymn10").with_epochs(20)
    assert dataclasses.astuple(run.schedule)[:4] == (20, 0.8, 8.0, 9.5) and run.schedule.tau_epochs == 3
    assert load_recipe("esc50:mn04").with_epochs(1).schedule.tau_epochs == 1
    with pytest.raises(ConfigError, match=r"schedule.epochs is 0"):
        run.with_epochs(0)


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[optim]\nlr = 1e-3\n[variants.big.model]\nname = "mn40"\n[variants.big.optim]\nlr = 1e-4\n')
    big = load_recipe(f"{path}:big", ["optim.name=adamw", "run.seed=3", 'model.settings={"n_kernels"=2}'])
    assert (big.model.name, big.optim.lr, big.optim.name, big.run.seed, big.model.settings) == (
        "mn40",
        1e-4,
        "adamw",
        3,
        {"n_kernels": 2},
    )
    with pytest.raises(ConfigError, match="it has big"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fine_tuna", "Did you mean fine_tune"),
        ("esc50", "mn04, mn10"),
        ("esc50:mn99", "mn04, mn10"),
        ("fine_tune:big", "it has none"),
        ("missing.toml", "no recipe or file"),
    ],
)
def test_unknown_recipes_and_variants(name, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(name)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=1", r"\[optim\] has no setting lrr"),
        ("optimiser.lr=1", r"no section \[optimiser\]"),
        ("optim.lr=fast", "must be of type float"),
        ("optim.lr=-1", "from 1e-12 to 1000"),
        ("optim.batch_size=2.5", "must be of type int"),
        ("data.holdout=half", "holdout"),
        ("data.fold=-1", "from 0 to"),
        ("lr=1", "is not a setting"),
        ("optim.lr", "is not an assignment"),
        ("teacher.models=mn04_as", "must be of type tuple"),
        ("teacher.models=[3]", "a list of names"),
        ("optim.weight_decay=-1", "from 0 to"),
        ("schedule.warm_up=-1", "from 0 to"),
        ("run.seed=-1", "from 0 to"),
        ("run.threads=-1", "from 0 to"),
    ],
)
def test_wrong_settings(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("fine_tune", [assignment])


def test_assignments_are_toml_or_text():
    values = [parse_assignment(f"a.b={value}")[1] for value in ("1e-3", "true", '["x"]', "mn04_as", "a b")]
    assert values == [1e-3, True, ["x"], "mn04_as", "a b"]


NUMBERS = [
    f"{section}.{name}"
    for section, kind in TrainConfig.NESTED.items()
    for name, default in vars(kind()).items()
    if isinstance(default, (int, float)) and not isinstance(default, bool)
]


@pytest.mark.parametrize("name", [*NUMBERS, "data.holdout"])
def test_numbers_that_no_run_could_use_are_refused_by_name(name):
    for value in ("1e300", "1" + "0" * 40, "0x" + "f" * 5000, "inf", "nan", "-1e300", "true", "''", "[]"):
        with pytest.raises(ConfigError, match=name):
            load_recipe("fine_tune", [f"{name}={value}"])


def test_recipes_are_listed_without_pytorch():
    code = (
        "import sys, atexit, dymn.cli\nsys.argv = ['dymn', 'train', '--recipes']\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code + "dymn.cli.main()"], capture_output=True, text=True)
    assert "esc50:mn10" in done.stdout and done.stdout.endswith("False\n"), done.stdout + done.stderr
