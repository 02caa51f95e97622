"""What an online teacher makes possible: draws by what it hears, blocks compared, calibrated logits.

And runs that follow the clock.
"""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from dymn import create_model, load_model
from dymn.config import FrontEndConfig, ModelCard
from dymn.data import TASKS, WeightedSampler, heard_weights, open_dataset, select
from dymn.data.teacher import write_table
from dymn.errors import ConfigError, DataError
from dymn.evaluation.teachers import OnlineTeachers
from dymn.models import pretrained
from dymn.models.mobilenet import MobileNet
from dymn.native import libraries
from dymn.training import loop, train
from dymn.training.inputs import Inputs, check_calibration
from dymn.training.loop import Run
from dymn.training.report import Reporter
from dymn.training.teach import teach
from tiny_runs import FRONT_END, run, write_clips

EVERYTHING = {
    "data": {"kind": "csv", "sampling": "teacher", "draws": 12, "resident": True},
    "augment": {
        "jitter": True,
        "roll_ms": 20,
        "gain_db": 3,
        "speed": 0.2,
        "colour_db": 6,
        "room": 0.5,
        "blend": 0.5,
        "wave_mixup": 0.3,
        "padding": 0.3,
    },
    "optim": {"name": "adamw", "batch_size": 4, "ema": 0.5, "norm_clips": 8},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of two classes, as a table: each may have both."""
    folder = write_clips(tmp_path_factory.mktemp("clips") / "data", 14)
    table = folder / "clips.csv"
    with table.open("w", newline="") as file:
        paths = sorted(folder.rglob("*.wav"))
        rows = [
            (path.relative_to(folder), path.parent.name, "val" if i % 4 == 0 else "train")
            for i, path in enumerate(paths)
        ]
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return table


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    model = create_model(
        "mn04",
        2,
        width=0.1,
        generator=torch.Generator().manual_seed(1),
        dynamic_blocks="none",
        attention="se",
        attention_blocks="se",
    )
    model.card = ModelCard(name="teacher", front_end=FrontEndConfig(**FRONT_END), labels=("high", "low"))
    path = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda *arguments: None)


def taught(clips, out, parent, /, **sections):
    settings = {name: EVERYTHING.get(name, {}) | sections.get(name, {}) for name in {**EVERYTHING, **sections}}
    lesson = {"models": [parent], "label_weight": 0.0, "feature_weight": 0.1, "block_weight": 0.1, "calibrate": True}
    settings["model"] = {"inherit": parent} | sections.get("model", {})
    settings["teacher"] = lesson | sections.get("teacher", {})
    return run(clips, out, **settings)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_teacher_that_is_heard_in_every_way(clips, tmp_path, teacher):
    result = train(taught(clips, tmp_path, teacher))
    assert {"val_distillation", "val_top1_agreement"} <= set(result)
    weights = np.load(tmp_path / "draws.npy")
    assert len(weights) == 10 and weights.sum() == pytest.approx(1.0)
    best, last = (load_model(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    assert set(best.card.provenance["calibration"]) == {"slope", "offset"} and "calibration" not in last.card.provenance
    assert best.card.metrics["distillation"] <= min(record["val_distillation"] for record in log_of(tmp_path)) + 1e-6


def test_such_a_run_goes_on_as_if_it_had_not_been_ended(clips, tmp_path, teacher):
    train(taught(clips, tmp_path / "whole", teacher))

    class Ends(Reporter):
        def epoch(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(taught(clips, tmp_path / "ended", teacher), Ends())
    train(taught(clips, tmp_path / "ended", teacher))
    one, other = (load_model(tmp_path / name / "last.safetensors").state_dict() for name in ("whole", "ended"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_draws_of_another_run_are_not_used(clips, tmp_path, teacher):
    """A run that is killed before its first state leaves the draws of its own data in the folder."""
    before = Run(taught(clips, tmp_path, teacher), Reporter())
    mark = np.arange(1.0, 11.0)
    np.save(tmp_path / "draws.npy", mark)
    assert np.array_equal(Run(before.config, Reporter()).weights, mark)  # the same run resumes

    other = clips.with_name("other.csv")
    header, *rows = clips.read_text().splitlines()
    other.write_text("\n".join([header, *reversed(rows)]))  # as many clips, in another order
    made = Run(taught(other, tmp_path, teacher), Reporter())
    assert len(made.weights) == len(mark) and not np.array_equal(made.weights, mark)

    second = tmp_path / "second.safetensors"
    pretrained.save(load_model(teacher), second)
    two = taught(other, tmp_path, teacher, teacher={"models": (str(teacher), str(second))})
    Run(two, Reporter())
    np.save(tmp_path / "draws.npy", mark)
    assert not np.array_equal(Run(made.config, Reporter()).weights, mark)  # one teacher less

    np.save(tmp_path / "draws.npy", mark[:-1])
    with pytest.raises(DataError, match="there are 10 training clips"):
        Run(taught(other, tmp_path, teacher), Reporter())


def test_a_softmax_does_not_teach_independent_classes(clips, tmp_path, teacher):
    model = load_model(teacher)
    model.card = dataclasses.replace(model.card, exclusive=True)
    pretrained.save(model, tmp_path / "softmax.safetensors")
    softmax = str(tmp_path / "softmax.safetensors")
    with pytest.raises(ConfigError, match="exclusive classes"):
        Run(taught(clips, tmp_path / "online", softmax), Reporter())
    _, source = open_dataset("csv", clips, sample_rate=FRONT_END["sample_rate"])
    teach(source, [softmax], tmp_path / "table.safetensors", seconds=0.5)
    lesson = {"table": str(tmp_path / "table.safetensors"), "models": [], "calibrate": False}
    lesson |= {"feature_weight": 0.0, "block_weight": 0.0}
    with pytest.raises(ConfigError, match="exclusive classes"):
        Run(taught(clips, tmp_path / "table", teacher, data={"sampling": "plain"}, teacher=lesson), Reporter())


def test_blocks_are_compared(clips, tmp_path, teacher):
    batch = chance = None
    losses = []
    for weight in (0.0, 1.0):
        made = Run(taught(clips, tmp_path / str(weight), teacher, teacher={"block_weight": weight}), Reporter())
        batch = batch or next(made.loader.epoch(0))
        chance = np.random.default_rng(0)
        torch.manual_seed(0)
        losses.append(float(made.step(made.model.train(), batch, chance).detach()))
    assert losses[1] > losses[0] + 0.01


@pytest.mark.parametrize("compiled", [True, False])
def test_an_online_teacher_shows_its_blocks(teacher, monkeypatch, compiled):
    if compiled and not libraries():
        pytest.skip("there is no compiled code for this CPU")
    if not compiled:
        monkeypatch.setattr("dymn.runtime.accelerate.libraries", dict)
    first, student = load_model(teacher).eval(), load_model(teacher)
    other = MobileNet(first.config).initialise(torch.Generator().manual_seed(5)).eval()
    other.card = first.card
    log_mel = torch.randn(3, 1, 128, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, maps = first(log_mel), first.feature_maps(log_mel)[1:-1]
        mean = (output.logits + other(log_mel).logits) / 2
    teachers = OnlineTeachers([first, other], student, torch.device("cpu"), blocks=True)
    if compiled:
        monkeypatch.setattr(MobileNet, "forward", None)  # it is not needed
    for _ in range(2):
        taught = teachers.teach(log_mel)
        torch.testing.assert_close(taught.logits, mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(taught.embedding, output.embedding, atol=1e-4, rtol=1e-4)
        assert len(taught.maps) == len(maps)
        for own, each in zip(taught.maps, maps, strict=True):
            torch.testing.assert_close(own, each, atol=1e-4 * float(each.abs().max()), rtol=1e-4)


def test_the_head_of_a_teacher_is_taken_over_and_kept(clips, tmp_path, teacher):
    settings = {"model": {"inherit": ""}, "teacher": {"head": True}, "optim": {"weight_decay": 0.1}}
    started = Run(taught(clips, tmp_path / "started", teacher, **settings), Reporter()).network
    train(taught(clips, tmp_path / "run", teacher, **settings))
    last, best = (load_model(tmp_path / "run" / f"{name}.safetensors") for name in ("last", "best"))
    head = load_model(teacher).head.state_dict()
    for network in (started, last):
        assert all(torch.equal(value, head[name]) for name, value in network.head.state_dict().items())
    for part in ("stem", "last"):
        assert not torch.equal(getattr(started, part).conv.weight, getattr(last, part).conv.weight)
    slope = best.card.provenance["calibration"]["slope"]  # the result is calibrated
    torch.testing.assert_close(best.head.classifier.weight, slope * head["classifier.weight"])


def test_heads_that_cannot_be_taken_over(clips, tmp_path, teacher):
    def made(name, parent=teacher, /, **sections):
        sections["teacher"] = {"head": True, "feature_weight": 0.0, "block_weight": 0.0}
        return Run(taught(clips, tmp_path / name, parent, **sections), Reporter())

    with pytest.raises(ConfigError, match=r"teacher.head needs an online teacher"):
        run(clips, tmp_path, teacher={"head": True})
    large = {"inherit": "", "settings": {"width": 0.4}}
    with pytest.raises(
        ConfigError, match=r"same kind and size. The student's is mlp .embedding: 384 .* teacher's is mlp"
    ):
        made("large", model=large)
    with pytest.raises(ConfigError, match="leave nothing to train"):
        made("frozen", optim={"freeze": 15, "norm_clips": 0})
    network = load_model(teacher)
    convolutional = create_model(
        "mn04", 2, width=0.1, dynamic_blocks="none", attention="se", attention_blocks="se", head="fully_convolutional"
    )
    convolutional.card = network.card
    convolutional.save_pretrained(tmp_path / "convolutional")
    with pytest.raises(ConfigError, match=r"optim\.norm_clips would change the norms of the head"):
        made("norms", str(tmp_path / "convolutional"), model={"inherit": ""})
    with pytest.raises(ConfigError, match=r"The student's is mlp .* the teacher's is fully_convolutional"):
        made("kinds", str(tmp_path / "convolutional"), model={"inherit": ""}, optim={"norm_clips": 0})


def test_frozen_blocks_are_compared_with_the_teacher_too(clips, tmp_path, teacher):
    losses = []
    for weight in (0.0, 1.0):
        settings = {"optim": {"freeze": 3, "norm_clips": 0}, "teacher": {"block_weight": weight}}
        made = Run(taught(clips, tmp_path / str(weight), teacher, **settings), Reporter())
        made.network.train()
        made._freeze()
        torch.manual_seed(0)
        loss = made.step(made.network, next(made.loader.epoch(0)), np.random.default_rng(0))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] > losses[0] + 0.01


def test_norms_are_measured_again_between_comparisons_of_blocks(clips, tmp_path, teacher):
    train(taught(clips, tmp_path, teacher, optim={"ema": 0.0}))  # two epochs; the measured network is the compared one
    assert len(log_of(tmp_path)) > 1


def test_a_run_follows_the_clock(clips, tmp_path, teacher, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    class Slow(Reporter):
        def batch(self, loss):
            now[0] += 1.0

    schedule = {"seconds": 20.0, "epochs": 10, "warm_up": 0, "ramp_start": 0, "ramp_length": 10, "floor": 0.0}
    train(taught(clips, tmp_path, teacher, schedule=schedule, optim={"lr": 1.0e-3}), Slow())
    log = log_of(tmp_path)
    assert len(log) == 6  # of three batches each; a seventh would end after 21 seconds
    assert [record["lr"] for record in log] == pytest.approx([1e-3 * (1 - 0.15 * epoch) for epoch in range(6)])


def test_what_cannot_be_had(clips, tmp_path, teacher):
    with pytest.raises(ConfigError, match="needs an online teacher"):
        run(clips, tmp_path, data={"sampling": "teacher"})
    with pytest.raises(ConfigError, match=r"teacher.block_weight needs an online teacher"):
        run(clips, tmp_path, teacher={"block_weight": 1.0})
    wide = taught(
        clips, tmp_path, teacher, model={"inherit": "", "settings": {"width": 0.2}}, teacher={"feature_weight": 0.0}
    )
    with pytest.raises(ConfigError, match="blocks have the student's channels"):
        Run(wide, Reporter())


def test_calibration_that_would_have_no_effect_is_refused(clips, tmp_path, teacher):
    with pytest.raises(ConfigError, match="needs validation clips"):
        Run(taught(clips, tmp_path / "run", teacher, data={"val": ""}), Reporter())
    task, source = open_dataset("csv", clips)
    val, keys = select(source, "val"), set(select(source, "val").keys)
    exclusive = Inputs(TASKS["folder"], source, val, None, None, 0.5)
    with pytest.raises(ConfigError, match="not exclusive"):
        check_calibration(exclusive)
    check_calibration(Inputs(task, source, val, None, None, 0.5))
    first = val.keys[0]
    for chosen, left_out, message in (
        (source.keys, [], None),
        (keys - {first}, [first], None),
        (keys - {first}, [], "lacks 1 of 4"),
    ):
        part = sorted(chosen)
        logits, marks = np.zeros((len(part), 2), np.float16), np.zeros(len(part), np.int64)
        table = write_table(
            tmp_path / "t.safetensors", part, source.labels, logits, marks, settings={"left_out": left_out}
        )
        inputs = Inputs(task, source, val, None, table, 0.5)
        if message is None:
            check_calibration(inputs)
        else:
            with pytest.raises(ConfigError, match=message):
                check_calibration(inputs)


def test_weighted_draws():
    weights = np.array([0.0, 1.0, 3.0, 0.5, 0.0])
    sampler = WeightedSampler(weights, seed=1, draws=90)
    counts = np.bincount(sampler.order(0), minlength=5)
    assert abs(counts - 20 * weights).max() < 1 and counts.sum() == len(sampler) == 90
    assert (sampler.order(0) == WeightedSampler(weights, seed=1, draws=90).order(0)).all()
    assert (sampler.order(1) != sampler.order(0)).any()
    with pytest.raises(DataError, match="not all 0"):
        WeightedSampler(np.zeros(3), draws=5)


def test_rare_classes_that_a_teacher_hears_weigh_more():
    heard = np.zeros((102, 3))
    heard[:100, 0], heard[100, 1] = 0.9, 0.9
    heard[:, 2] = 0.01  # not heard
    weights = heard_weights(heard)
    assert weights.sum() == pytest.approx(1.0) and weights[100] > 10 * weights[0] and 0 < weights[101] < weights[0]
    heard[0] = 0.0  # could not be read
    assert heard_weights(heard)[0] == 0
