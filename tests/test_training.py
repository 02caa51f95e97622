"""The training loop: it learns, from labels and teachers; what it leaves behind; what it refuses."""

import contextlib
import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest
import torch

from dymn import Tagger, load_model
from dymn.config import FrontEndConfig, ModelCard
from dymn.data import Catalog, Source, open_source
from dymn.data.stores import Store
from dymn.data.teacher import write_table
from dymn.errors import ConfigError, DataError, MissingExtraError, WeightsError
from dymn.evaluation.score import Predictions, deciding_metric, figures, is_better
from dymn.models.mobilenet import create_model
from dymn.training import loop, train
from dymn.training.loop import Run
from dymn.training.report import Reporter, write_history, write_json
from dymn.training.settings import parse
from dymn.training.start import has_fresh_head, prior_logits, set_prior, with_temperature
from dymn.training.state import load_state
from dymn.training.step import Step
from tiny_runs import FRONT_END, NETWORK, run, write_clips

ONE_EPOCH = {"epochs": 1, "warm_up": 0}
LABELS = ("high", "low")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "data", 14)


@pytest.fixture
def curves():
    """Asks for the curves, which the other tests do without: drawing takes longer than training."""


@pytest.fixture(autouse=True)
def _no_curves(request, monkeypatch):
    if "curves" not in request.fixturenames:
        monkeypatch.setattr(loop, "plot_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A static network of the same width, front end and classes, which says "high" rather than "low"."""
    model = create_model(
        "mn04",
        2,
        width=0.1,
        generator=torch.Generator().manual_seed(1),
        dynamic_blocks="none",
        attention="se",
        attention_blocks="se",
    )
    set_prior(model, torch.tensor([1.0, -2.0]))
    model.card = ModelCard(name="teacher", front_end=FrontEndConfig(**FRONT_END), labels=LABELS)
    path = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(path)
    return str(path)


def log_of(folder):
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / "log.jsonl").read_text().splitlines()]


def last_bias(model):
    return model.head.classifier.bias.detach()


class Watching(Reporter):
    """Calls something after each step."""

    def __init__(self, call):
        self.call = call

    def batch(self, loss):
        self.call()


# It learns


def test_a_handful_of_clips_is_learned_by_heart(clips, tmp_path):
    everything = {"holdout": 0.0, "val": ""}
    train(
        run(
            clips,
            tmp_path,
            data=everything,
            optim={"lr": 1e-2, "batch_size": 14},
            schedule={"epochs": 9, "warm_up": 1, "ramp_start": 6},
        )
    )
    log = log_of(tmp_path)
    assert log[0]["loss"] > 0.6 and log[-1]["loss"] < 0.05


@pytest.mark.parametrize(
    "optim",
    [{"name": "adam"}, {"name": "adamw", "weight_decay": 0.1}, {"precision": "bf16"}, {"clip_norm": 0.5}],
    ids=str,
)
def test_optimisers_and_precisions(clips, tmp_path, optim):
    train(run(clips, tmp_path, optim=optim, schedule=ONE_EPOCH))
    model = load_model(tmp_path / "last.safetensors")
    assert all(parameter.dtype == torch.float32 and torch.isfinite(parameter).all() for parameter in model.parameters())
    assert 0 < log_of(tmp_path)[0]["loss"] < 5


def test_weight_decay_is_decoupled_in_adamw_only(clips, tmp_path):
    kinds = {}
    for name in ("adam", "adamw"):
        made = Run(run(clips, tmp_path / name, optim={"name": name, "weight_decay": 0.1}), Reporter())
        kinds[name] = type(made.optimizer.optimizer)
        assert made.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert kinds == {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def test_schedules_reach_optimizer_and_network(clips, tmp_path):
    schedule = {"epochs": 3, "warm_up": 2, "ramp_start": 1, "ramp_length": 2, "tau_start": 30, "tau_epochs": 3}
    made = Run(run(clips, tmp_path, optim={"lr": 1e-3, "batch_size": 10}, schedule=schedule), Reporter())
    seen = []
    made.reporter = Watching(
        lambda: seen.append((made.optimizer.param_groups[0]["lr"], made.network.blocks[14].project.conv.temperature))
    )
    made.fit()
    rise = [math.exp(-5 * 0.75**2), math.exp(-5 * 0.25)]
    assert np.array(seen) == pytest.approx(np.array([(1e-3 * rise[0], 30), (1e-3 * rise[1], 15.5), (1e-3 * 0.505, 1)]))
    assert load_model(tmp_path / "last.safetensors").temperature == 1
    assert [record["temperature"] for record in log_of(tmp_path)] == [30, 15.5, 1]


def test_accumulated_parts_give_the_step_of_the_whole_batch(clips, tmp_path, monkeypatch):
    """Up to batch norm, which sees each part by itself (so it is frozen here), and the rounding of sums."""
    states = []
    for accumulate in (1, 2):
        made = Run(
            run(
                clips, tmp_path / str(accumulate), optim={"batch_size": 4, "accumulate": accumulate}, schedule=ONE_EPOCH
            ),
            Reporter(),
        )
        monkeypatch.setattr(
            made.network, "train", lambda mode=True, net=made.network: torch.nn.Module.train(net, False)
        )
        steps = []
        monkeypatch.setattr(made, "_update", lambda update=made._update, steps=steps: (steps.append(1), update()))
        made.fit()
        assert len(steps) == 2  # ten clips: the last two are left out, as one incomplete batch of four
        states.append(made.network.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-4, rtol=1e-3)


def test_averaged_weights(clips, tmp_path):
    made = Run(
        run(clips, tmp_path / "ema", optim={"ema": 0.75}, schedule={"tau_start": 30, "tau_epochs": 2}), Reporter()
    )
    trail = []
    made.reporter = Watching(lambda: trail.append(made.network.head.classifier.weight.detach().clone()))
    made.fit()
    average = trail[0]
    for weight in trail[1:]:
        average = 0.75 * average + 0.25 * weight
    saved = load_model(tmp_path / "ema" / "last.safetensors")
    torch.testing.assert_close(saved.head.classifier.weight.detach(), average)
    assert saved.temperature == made.network.temperature == 1
    train(run(clips, tmp_path / "plain", schedule={"tau_start": 30, "tau_epochs": 2}))
    one, two = (load_state(tmp_path / name / "state.pt").model for name in ("ema", "plain"))
    assert all(torch.equal(one[name], two[name]) for name in one)  # averaging does not change what is averaged


# Teachers


def table(path, source, logits):
    fingerprints = np.zeros(len(source), dtype=np.int64)
    write_table(path, source.keys, source.labels, logits.astype(np.float16), fingerprints)
    return str(path)


def test_an_offline_teacher(clips, tmp_path):
    source = open_source("folder", clips, sample_rate=8_000)
    logits = np.random.default_rng(0).normal(0, 1, (len(source), 2))
    path = table(tmp_path / "t.safetensors", source, logits)
    config = run(clips, tmp_path / "run", teacher={"table": path, "label_weight": 0.1})
    made = Run(config, Reporter())
    rows = [source.keys.index(key) for key in made.inputs.train.keys]
    assert last_bias(made.network).numpy() == pytest.approx(logits[rows].mean(axis=0), abs=1e-2)
    made.fit()
    log = log_of(tmp_path / "run")
    assert {"val_accuracy", "val_distillation", "val_top1_agreement"} <= set(log[-1])
    assert log[-1]["val_distillation"] > 0
    table(tmp_path / "t.safetensors", source, logits + 1)  # another teacher of the same clips
    with pytest.raises(ConfigError, match="other settings or data"):
        train(config)


def test_clips_that_the_teacher_has_not_heard(clips, tmp_path):
    source = open_source("folder", clips, sample_rate=8_000)
    path = table(tmp_path / "t.safetensors", source.where(range(5)), np.zeros((5, 2)))
    with pytest.raises(DataError, match="is missing"):
        train(run(clips, tmp_path / "strict", teacher={"table": path}))
    notes = []
    reporter = Reporter()
    reporter.note = notes.append
    sections = {"schedule": ONE_EPOCH, "augment": {"spec_mixup": 0.3}}
    without_labels = {"table": path, "partial": True, "label_weight": 0.0}
    train(run(clips, tmp_path / "none", teacher=without_labels, **sections), reporter)
    assert any("they have no effect" in note for note in notes)
    train(run(clips, tmp_path / "partial", teacher={"table": path, "partial": True}, **sections), reporter)
    assert any("have no logits" in note and "counts 0.1 (teacher.label_weight)" in note for note in notes)
    assert math.isfinite(log_of(tmp_path / "partial")[0]["loss"])


def test_an_online_teacher_is_followed(clips, tmp_path, teacher):
    """It hears the same augmented, mixed input; the student's bias begins at its prior, its embedding is a target."""
    models = {"models": [teacher], "label_weight": 0.0, "feature_weight": 0.1}
    augment = {"roll_ms": 20, "gain_db": 3, "wave_mixup": 0.5, "padding": 0.5, "spec_mixup": 0.3, "jitter": True}
    config = run(
        clips, tmp_path, teacher=models, augment=augment, schedule={"epochs": 2, "warm_up": 0}, optim={"lr": 3e-3}
    )
    made = Run(config, Reporter())
    assert last_bias(made.network).tolist() == pytest.approx([1.0, -2.0], abs=0.3)
    assert made.step.feature_scale > 0
    made.fit()
    log = log_of(tmp_path)
    assert all(record["val_top1_agreement"] == 1.0 and 0 <= record["val_distillation"] < 0.05 for record in log)


def test_the_student_hears_what_the_teacher_hears(clips, tmp_path, teacher, monkeypatch):
    made = Run(
        run(clips, tmp_path, teacher={"models": [teacher]}, augment={"spec_mixup": 0.3}, schedule=ONE_EPOCH), Reporter()
    )
    heard, real = [], made.teachers.teach
    monkeypatch.setattr(made.teachers, "teach", lambda log_mel, *more: (heard.append(log_mel), real(log_mel, *more))[1])
    hook = made.network.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    made.network.train()
    batch = next(iter(made.loader.epoch(0)))
    made.step(made.network, batch, np.random.default_rng(0))
    hook.remove()
    assert len(heard) == 2 and heard[0] is heard[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"front_end": FRONT_END | {"n_mels": 40}}}, "front end of the teacher"),
        (
            {"model": {"settings": NETWORK | {"width": 0.3}}, "teacher": {"feature_weight": 0.1}},
            "embeddings of the same size",
        ),
        ({"teacher": {"table": "somewhere"}}, "both set"),
    ],
)
def test_teachers_that_do_not_fit(clips, tmp_path, teacher, change, message):
    with pytest.raises(ConfigError, match=message):
        Run(
            run(clips, tmp_path, **(change | {"teacher": {"models": [teacher]} | change.get("teacher", {})})),
            Reporter(),
        )


def test_a_teacher_of_other_classes(tmp_path, teacher):
    write_clips(tmp_path / "data", 8)
    (tmp_path / "data" / "low").rename(tmp_path / "data" / "bass")
    with pytest.raises(ConfigError, match="lacks 1 of the dataset's 2 classes, such as 'bass'"):
        Run(run(tmp_path / "data", tmp_path / "run", teacher={"models": [teacher]}), Reporter())


def test_classes_of_a_teacher_are_found_by_name(clips, tmp_path, teacher):
    """A teacher with more classes, in another order: online, and as a table."""
    narrow = load_model(teacher)
    order = [1, 0, 1]
    state = narrow.state_dict()
    for name in ("head.classifier.weight", "head.classifier.bias"):
        state[name] = state[name][order]
    wide = create_model("mn04", 3, width=0.1, dynamic_blocks="none", attention="se", attention_blocks="se")
    wide.load_state_dict(state)
    wide.card = dataclasses.replace(narrow.card, labels=("low", "high", "more"))
    wide.save_pretrained(tmp_path / "wide")
    made = Run(run(clips, tmp_path / "run", teacher={"models": [str(tmp_path / "wide"), teacher]}), Reporter())
    log_mel = torch.randn(2, 1, 32, 50)
    same = Run(run(clips, tmp_path / "same", teacher={"models": [teacher]}), Reporter())
    assert torch.allclose(made.teachers.teach(log_mel).logits, same.teachers.teach(log_mel).logits, atol=1e-5)
    with pytest.raises(ConfigError, match="with the dataset's classes, in the same order"):
        made._check_heads(wide)

    source = open_source("folder", clips, sample_rate=8_000)
    logits = np.random.default_rng(0).normal(0, 1, (len(source), 3)).astype(np.float16)
    marks = np.zeros(len(source), np.int64)
    write_table(tmp_path / "t.safetensors", source.keys, wide.card.labels, logits, marks)
    offline = Run(run(clips, tmp_path / "run2", teacher={"table": str(tmp_path / "t.safetensors")}), Reporter())
    batch = next(iter(offline.loader.epoch(0)))
    rows = [source.keys.index(key) for key in batch.keys]
    assert np.array_equal(batch.teacher.numpy(), logits[rows][:, [1, 0]].astype(np.float32))


# How a network begins


class Nothing(Store):
    def read(self, i):
        return b""

    def sizes(self):
        return []

    def stamps(self):
        return []


def source_of(targets, masks=None):
    targets = np.asarray(targets, dtype=np.float32)
    keys, labels = tuple(map(str, range(len(targets)))), tuple("abcdef"[: targets.shape[1]])
    return Source(Catalog(keys, labels, targets, None if masks is None else np.asarray(masks)), Nothing())


def test_prior_of_labels():
    source = source_of([[1, 0], [1, 0], [1, 1], [0, 0]])
    assert prior_logits(source, None, "bce").tolist() == pytest.approx([math.log(3.5 / 1.5), math.log(1.5 / 3.5)])
    assert prior_logits(source, None, "ce").tolist() == pytest.approx([math.log(3.5 / 5), math.log(1.5 / 5)])
    assert prior_logits(source_of([[0, 0], [0, 0]]), None, "bce") is None


def test_prior_of_annotated_labels_only():
    source = source_of([[1, 0], [1, 0], [0, 0.9], [0, 0]], [[1, 0], [1, 1], [0, 0], [1, 0]])
    assert prior_logits(source, None, "bce").tolist() == pytest.approx([math.log(2.5 / 1.5), math.log(0.5 / 1.5)])


def test_a_fresh_last_layer_begins_at_the_prior(clips, tmp_path, teacher):
    fresh = Run(run(clips, tmp_path / "a"), Reporter()).network
    assert last_bias(fresh).tolist() == pytest.approx(
        prior_logits(open_source("folder", clips, "train", holdout=0.3), None, "ce").tolist()
    )
    assert not last_bias(Run(run(clips, tmp_path / "b", model={"prior": False}), Reporter()).network).any()
    kept = Run(run(clips, tmp_path / "c", model={"name": teacher, "settings": {}, "front_end": {}}), Reporter()).network
    assert last_bias(kept).tolist() == [1.0, -2.0] and not has_fresh_head(kept)


def test_other_classes_replace_the_last_layer_alone(tmp_path, teacher):
    write_clips(tmp_path / "data", 10)
    (tmp_path / "data" / "low").rename(tmp_path / "data" / "bass")
    made = Run(
        run(tmp_path / "data", tmp_path / "run", model={"name": teacher, "settings": {}, "front_end": {}}), Reporter()
    )
    old = load_model(teacher)
    assert made.network.card.labels == ("bass", "high") and not has_fresh_head(made.network)  # it has its prior
    assert torch.equal(made.network.head.hidden.weight, old.head.hidden.weight)
    assert made.inputs.train.sample_rate == 8_000 and made.front_end.config == old.card.front_end


def test_inherits_from_a_static_network(clips, tmp_path, teacher):
    made = Run(run(clips, tmp_path, model={"inherit": teacher}), Reporter())
    assert last_bias(made.network).tolist() == [1.0, -2.0]
    with pytest.raises(ConfigError, match="front end of teacher"):
        Run(run(clips, tmp_path / "b", model={"inherit": teacher, "front_end": FRONT_END | {"n_mels": 40}}), Reporter())


@pytest.mark.parametrize("labels", [("high", "low"), ("bark", "meow", "moo")])
def test_inherits_from_a_wider_network(clips, tmp_path, labels):
    wide = create_model("mn04", len(labels), width=0.3, generator=torch.Generator().manual_seed(1))
    wide.card = ModelCard(name="wide", front_end=FrontEndConfig(**FRONT_END), labels=labels)
    wide.save_pretrained(tmp_path / "wide")
    settings = {"inherit": str(tmp_path / "wide"), "settings": {"width": 0.2}}
    made = Run(run(clips, tmp_path / "run", model=settings), Reporter()).network
    assert made.config.width == 0.2 and made.head.hidden.bias.any()  # random ones begin at zero
    prior = prior_logits(open_source("folder", clips, "train", holdout=0.3), None, "ce").tolist()
    assert (last_bias(made).tolist() == pytest.approx(prior)) == (labels != ("high", "low"))  # of other classes


@pytest.mark.parametrize("setting", [{"settings": {"n_kernels": 2}}, {"settings": {}, "inherit": "mn04_as"}])
def test_settings_of_an_architecture_do_not_go_with_weights(clips, tmp_path, teacher, setting):
    with pytest.raises(ConfigError, match="start from an architecture"):
        Run(run(clips, tmp_path, model={"name": teacher, "front_end": {}} | setting), Reporter())


# What a run leaves


@pytest.mark.usefixtures("curves")
def test_what_a_run_leaves(clips, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(loop, "keeping_all_memory", lambda wanted: contextlib.nullcontext(kept.append(wanted)))
    result = train(run(clips, tmp_path / "run", run={"name": "tones", "licence": "CC0"}))
    assert kept == [True]  # on a CPU
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = log_of(folder)
    assert [record["epoch"] for record in log] == [1, 2]
    assert {"loss", "lr", "temperature", "seconds", "clips_per_second", "bad_clips", "val_accuracy"} <= set(log[0])
    written = json.loads((folder / "config.json").read_text())
    assert written["config"]["optim"]["batch_size"] == 4 and set(written["data"]) == {"train", "val"}
    assert set(written["versions"]) == {"dymn", "python", "torch", "numpy"}
    for name in ("best", "last"):
        model = load_model(folder / f"{name}.safetensors")
        card = model.card
        assert (card.name, card.licence, card.labels, card.front_end.sample_rate) == ("tones", "CC0", LABELS, 8_000)
        assert card.provenance["config"]["schedule"]["epochs"] == 2 and card.provenance["data"] == written["data"]
        assert card.provenance["versions"]["torch"] == torch.__version__ and str(tmp_path) not in json.dumps(
            card.provenance
        )
    best = load_model(folder / "best.safetensors").card
    assert best.provenance["epoch"] == result["best_epoch"]
    assert best.metrics["accuracy"] == result["val_accuracy"] == max(record["val_accuracy"] for record in log)
    tags = Tagger(model).tag(str(next((clips / "low").iterdir())), top_k=2)
    assert {tag.label for tag in tags} == set(LABELS)


def test_the_test_set_is_measured_once_at_the_end(tmp_path, monkeypatch):
    for part, n in (("train", 10), ("val", 6), ("test", 6)):
        write_clips(tmp_path / "data" / part, n)
    made = Run(run(tmp_path / "data", tmp_path / "run", data={"test": "test", "holdout": 0.0}), Reporter())
    heard, real = [], loop.quiet_loader
    monkeypatch.setattr(
        loop,
        "quiet_loader",
        lambda source, *rest: (heard.append((made.state.epoch, source.keys[0][:4])), real(source, *rest))[1],
    )
    result = made.fit()
    assert heard == [(0, "val/"), (1, "val/"), (2, "test")]
    assert {"test_accuracy", "test_f1", "val_accuracy"} <= set(result)
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "test_confusion.csv").read_text().splitlines())
    counts = [[int(count) for count in row[1:]] for row in rows]
    assert header == ["class", "high", "low"] and [row[0] for row in rows] == ["high", "low"]
    assert sum(map(sum, counts)) == 6 and (counts[0][0] + counts[1][1]) / 6 == pytest.approx(result["test_accuracy"])
    classes = (tmp_path / "run" / "test_classes.csv").read_text().splitlines()
    assert classes[0].endswith("precision,recall,f1") and len(classes) == 3
    for part in ("val", "train"):
        with pytest.raises(ConfigError, match=r"data\.(val|train) is"):
            run(tmp_path / "data", tmp_path / "run", data={part: "test", "test": "test"})


def test_without_validation_the_last_epoch_is_the_best(clips, tmp_path):
    result = train(run(clips, tmp_path, data={"val": "", "holdout": 0.0}))
    assert result["best_epoch"] == 2 and not any(key.startswith("val_") for key in result)
    best, last = (load_model(tmp_path / f"{name}.safetensors").state_dict() for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_a_validation_part_without_clips_is_refused(clips, tmp_path):
    with pytest.raises(DataError, match="no clips for the split 'val'"):
        train(run(clips, tmp_path, data={"holdout": 0.0}))


def scores(targets, mask=None, teacher=None):
    targets = np.asarray(targets, dtype=np.float32)
    said = np.random.default_rng(0).random(targets.shape).astype(np.float32)
    return Predictions(
        list(map(str, range(len(targets)))),
        said,
        targets,
        np.ones_like(targets) if mask is None else np.asarray(mask),
        teacher,
        0.1,
        {},
    )


def test_classes_missing_in_validation():
    from dymn.data import TASKS

    task = TASKS["csv"]
    found = figures(scores([[1, 0, 0], [1, 0, 1], [0, 0, 0]]), "bce")
    assert found["classes"] == 2 and deciding_metric(found, task) == "mAP"
    none = figures(scores(np.zeros((3, 3)), teacher=np.full((3, 3), 0.6, dtype=np.float32)), "bce")
    assert "mAP" not in none and deciding_metric(none, task) == "distillation" and none["distillation"] == 0.1
    unannotated = figures(scores([[1, 0]], mask=[[0, 1]]), "bce")
    assert "mAP" not in unannotated


def test_which_figure_is_better():
    assert (
        is_better("mAP", 0.5, 0.4)
        and is_better("mAP", 0.4, 0.4)
        and not is_better("mAP", 0.3, 0.4)
        and is_better("mAP", 0.1, None)
    )
    assert is_better("distillation", 0.3, 0.4) and not is_better("distillation", 0.5, 0.4)
    assert is_better("mAP", 0.1, float("nan")) and not is_better("mAP", float("nan"), 0.1)


def test_what_is_written_is_strict_json(tmp_path):
    write_history(tmp_path / "log.jsonl", [{"d_prime": math.inf, "loss": 0.5, "roc": math.nan}])
    write_json(tmp_path / "result.json", {"a": [math.nan, (1, -math.inf)], "path": tmp_path})
    assert log_of(tmp_path) == [{"d_prime": None, "loss": 0.5, "roc": None}]
    assert json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)["a"] == [None, [1, None]]


# What can go wrong


def test_a_bad_clip_is_skipped_counted_and_listed(tmp_path):
    write_clips(tmp_path / "data", 10, bad=1)
    where = {"holdout": 0.0, "val": ""}
    train(run(tmp_path / "data", tmp_path / "run", data=where | {"max_bad": 0.2}))
    assert [record["bad_clips"] for record in log_of(tmp_path / "run")] == [1, 1]
    rows = (tmp_path / "run" / "bad_clips.csv").read_text().splitlines()
    assert rows[0] == "key,reason" and rows[1].startswith("low/bad0.wav,") and len(rows) == 2
    with pytest.raises(DataError, match=r"1 bad clips in epoch 1, more than 5\.0%"):
        train(run(tmp_path / "data", tmp_path / "strict", data=where))
    assert not (tmp_path / "strict" / "state.pt").exists()


def test_a_loss_that_is_no_number_ends_the_run(clips, tmp_path, monkeypatch):
    real, calls = Step.__call__, []

    def step(self, *arguments):
        calls.append(1)
        return real(self, *arguments) * (math.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(Step, "__call__", step)
    with pytest.raises(DataError, match=r"loss became nan in epoch 2, batch 2.*lower optim\.lr"):
        train(run(clips, tmp_path))
    assert load_state(tmp_path / "state.pt").epoch == 1


def test_diverged_weights_are_not_saved(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("dymn.training.settings.check_number", lambda *_, **__: None)  # which would refuse such a rate
    with pytest.raises((DataError, WeightsError), match=r"loss became|not finite"):
        train(run(clips, tmp_path, optim={"lr": 1e30}))


def test_fewer_clips_than_a_batch(clips, tmp_path):
    assert (
        train(
            run(
                clips, tmp_path, optim={"batch_size": 64}, schedule=ONE_EPOCH, augment={"spec_mixup": 0.3, "gain_db": 3}
            )
        )["epochs"]
        == 1
    )


def test_a_clock_that_stands_still(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.time, "monotonic", lambda: 5.0)
    assert train(run(clips, tmp_path, schedule=ONE_EPOCH))["train_seconds"] >= 0


def test_the_caller_s_random_numbers_are_left_alone(clips, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train(run(clips, tmp_path, schedule=ONE_EPOCH))
    assert torch.equal(torch.rand(3), expected)


def test_half_precision_needs_a_gpu(clips, tmp_path):
    with pytest.raises(ConfigError, match="fp16, which needs a CUDA device"):
        train(run(clips, tmp_path, optim={"precision": "fp16"}))


# Trackers


def test_tensorboard(clips, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run(clips, tmp_path, run={"trackers": ["tensorboard"]}, schedule=ONE_EPOCH))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "lr", "val_accuracy"} <= set(events.Tags()["scalars"])
    assert events.Scalars("loss")[0].value == pytest.approx(log_of(tmp_path)[0]["loss"])


def test_weights_and_biases(clips, tmp_path, monkeypatch):
    """Against a stand-in for the client, which needs an account: a run that continues is the same run there."""
    begun, logged, ended = [], [], []
    writer = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: ended.append(1)
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: (begun.append(settings), writer)[1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        train(run(clips, tmp_path, run={"trackers": ["wandb"], "name": "tones"}))
    assert begun[0]["id"] == begun[1]["id"] and begun[0]["resume"] == "allow"
    assert (begun[0]["project"], begun[0]["name"], begun[0]["config"]["optim"]["batch_size"]) == ("dymn", "tones", 4)
    assert [step for step, _ in logged] == [1, 2, 2, 2] and ended == [1, 1]
    assert logged[0][1]["loss"] > 0 and logged[2][1]["best_epoch"] in (1, 2)


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed(clips, tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"dymn\[{tracker}\]"):
        train(run(clips, tmp_path, run={"trackers": [tracker]}, schedule=ONE_EPOCH))


@pytest.mark.parametrize(
    ("epochs", "model", "schedule", "expected"),
    [
        (200, {}, {}, (30, 1, 30)),
        (80, {}, {}, (30, 1, 12)),
        (3, {}, {}, (30, 1, 1)),
        (80, {"name": "mn04"}, {}, (1, 1, 1)),
        (80, {"settings": {"dynamic_convs": []}}, {}, (1, 1, 1)),
        (80, {"settings": {"temperature": 10.0}}, {}, (10, 10, 1)),
        (80, {"inherit": "mn04_as"}, {}, (1, 1, 1)),
        (80, {}, {"tau_start": 1.0}, (1, 1, 1)),
    ],
)
def test_fresh_dynamic_networks_anneal(epochs, model, schedule, expected):
    config = parse({"model": {"name": "dymn04"} | model, "schedule": {"epochs": epochs} | schedule})
    found = with_temperature(config, None).schedule
    assert (found.tau_start, found.tau_end, found.tau_epochs) == expected


def test_a_checkpoint_keeps_its_temperature(clips, tmp_path):
    network = create_model("dymn04", 2, temperature=7.0, **NETWORK)
    config = with_temperature(parse({"model": {"name": "some.safetensors"}}), network)
    assert (config.schedule.tau_start, config.schedule.tau_end) == (7.0, 7.0)
    with pytest.raises(ConfigError, match=r"tau_end is 3\.0, and schedule\.tau_start is not set"):
        parse({"schedule": {"tau_end": 3.0}})
    train(run(clips, tmp_path / "fresh", schedule={"epochs": 14, "ramp_start": 4}, data={"least_draws": 0}))
    temperatures = [json.loads(line)["temperature"] for line in (tmp_path / "fresh/log.jsonl").open()]
    assert temperatures == [30.0, *[1.0] * 13]
