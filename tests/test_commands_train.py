"""`dymn train`, `evaluate` and `teach` from end to end, with a tiny network on tiny data."""

import csv
import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from dymn import create_model
from dymn.cli import app
from dymn.commands.epochs import EpochTable, duration, figure
from dymn.commands.teach import spread
from dymn.config import ModelCard
from dymn.data import TeacherTable
from dymn.models import pretrained
from dymn.weights import load_model
from layouts import write_audio, write_esc50, write_table

CLASSES = ("knock", "whistle")
QUICK = ("--epochs", "2", "--set", "data.least_draws=0", "--set", "optim.batch_size=4", "--device", "cpu")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A reader's folder: clips in a folder a class, the same as a table, a model of other classes, a model of these."""
    folder = tmp_path_factory.mktemp("desk")
    rows = [["path", "labels"]]
    for i, name in enumerate(CLASSES):
        for clip in range(6):
            write_audio(folder / "clips" / name / f"{clip}.wav", 300 + 2000 * i + 10 * clip)
            rows.append([f"clips/{name}/{clip}.wav", name if clip else "knock;whistle"])
    write_table(folder / "table.csv", rows)
    for name, labels in (("other", ("a", "b", "c")), ("same", CLASSES), ("wider", ("whistle", "x", "knock"))):
        network = create_model("mn01", len(labels), generator=torch.Generator().manual_seed(0))
        network.card = ModelCard(name=name, labels=labels, exclusive=True)
        pretrained.save(network, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def at_desk(desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("dymn.training.loop.plot_curves", lambda *_: None)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def losses(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_train_then_tag_then_evaluate_then_train_again(desk):
    command = ("train", "--data", "clips", "--model", "other.safetensors", *QUICK)
    done = run(*command)
    assert done.exit_code == 0, done.output
    folder, checkpoint = desk / "runs" / "other", "runs/other/best.safetensors"
    assert f"Checkpoint: {checkpoint}" in done.stdout and "validation clips: accuracy" in done.stdout
    assert "2/2" in done.stderr and "val accuracy" in done.stderr
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["data"]["kind"] == "folder" and config["data"]["test"] == "" and config["data"]["seconds"] == 1.0
    assert load_model(folder / "best.safetensors").card.labels == CLASSES

    tagged = run("tag", "clips/knock/0.wav", "--model", checkpoint, "--format", "json")
    scores = [tag["score"] for tag in json.loads(tagged.stdout)["recordings"][0]["tags"]]
    assert len(scores) == 2 and sum(scores) == pytest.approx(1, abs=1e-4)

    judged = run(
        "evaluate", checkpoint, "--data", "clips", "--split", "val", "--format", "json", "--per-class", "classes.csv"
    )
    assert judged.exit_code == 0, judged.output
    found, result = json.loads(judged.stdout), json.loads((folder / "result.json").read_text())
    assert found["accuracy"] == result["val_accuracy"] and found["clips"] == 2 and found["split"] == "val"
    with (desk / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(CLASSES) and [row["positives"] for row in rows] == ["1", "1"]

    again = run(*command)
    assert again.exit_code == 0 and "Resuming runs/other after epoch 2" in again.stderr
    assert json.loads((folder / "result.json").read_text()) == result
    changed = run(*command, "--set", "optim.lr=1e-3")
    assert changed.exit_code == 2 and "another" in changed.stderr.lower()


def test_a_framewise_network_is_trained_on_clips_and_then_finds_events(desk):
    first = run("train", "--data", "clips", "--model", "fmn04", *QUICK)
    assert first.exit_code == 0, first.output
    checkpoint = desk / "runs" / "fmn04" / "best.safetensors"
    start = create_model("fmn04", 2, generator=torch.Generator().manual_seed(0))
    trained = load_model(checkpoint)
    assert trained.config.sequence.scores == "clip" and trained.config.sequence.kind == start.config.sequence.kind
    assert not torch.equal(trained.head.clip.weight, start.head.clip.weight)
    assert not torch.equal(trained.last.conv.weight, start.last.conv.weight)

    taught = ("--set", 'teacher.models=["runs/fmn04/best.safetensors"]', "--set", "teacher.feature_weight=0.1")
    again = run("train", "--data", "clips", "--model", checkpoint, *QUICK, *taught, "--output", "taught")
    assert again.exit_code == 0, again.output
    lines = (desk / "taught" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["teacher_loss"] > 0 for line in lines)
    found = run("events", "clips/knock/0.wav", "--model", "taught/best.safetensors", "--threshold", "0.01")
    assert found.exit_code == 0 and any(name in found.stdout for name in CLASSES), found.output


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('model.settings={scores="frames"}', "model.settings.scores is 'frames'"),
        ("model.inherit=mn04_as", "model.inherit is 'mn04_as', but fmn04 is a frame-wise network"),
    ],
)
def test_what_a_framewise_network_cannot_be_trained_with(setting, message):
    done = run("train", "--data", "clips", "--model", "fmn04", *QUICK, "--set", setting)
    assert done.exit_code == 2 and message in done.stderr, done.output


def test_interrupted_run_continues(desk, monkeypatch):
    command = ("train", "--data", "clips", "--model", "other.safetensors", *QUICK, "--quiet", "--out")
    assert run(*command, "whole").exit_code == 0
    batch = EpochTable.batch
    seen = []

    def interrupt(self, loss):
        batch(self, loss)
        seen.append(loss)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochTable, "batch", interrupt)
        stopped = run(*[word for word in command if word != "--quiet"], "parts")
    assert stopped.exit_code == 130, stopped.output
    assert "Interrupted" in stopped.stderr and "The same command resumes" in stopped.stderr
    assert len(losses(desk / "parts")) == 1
    finished = run(*command, "parts")
    assert finished.exit_code == 0 and finished.stderr == ""
    assert losses(desk / "parts") == losses(desk / "whole")
    assert (desk / "parts/best.safetensors").stat().st_size > 0


def test_table_of_several_labels(desk):
    done = run(
        "train",
        "--data",
        "table.csv",
        "--model",
        "other.safetensors",
        "--out",
        "tabled",
        *QUICK,
        "--set",
        "data.holdout=0.5",
    )
    assert done.exit_code == 0, done.output
    assert "mAP" in done.stdout and not load_model(desk / "tabled" / "best.safetensors").card.exclusive
    judged = run("evaluate", "tabled/best.safetensors", "--data", "table.csv")
    assert judged.exit_code == 0 and "all clips were evaluated" in judged.stderr
    assert [line.split()[0] for line in judged.stdout.splitlines()] == [
        "data",
        "clips",
        "mAP",
        "roc_auc",
        "d_prime",
        "f1",
    ]
    refused = run("evaluate", "tabled/best.safetensors", "--data", "table.csv", "--confusion", "none.csv")
    assert refused.exit_code == 2 and "--confusion needs mutually exclusive classes" in refused.stderr


def test_all_folds(desk, tmp_path, caplog):
    write_esc50(tmp_path / "esc")
    done = run(
        "train",
        "esc10",
        "--data",
        tmp_path / "esc",
        "--model",
        "other.safetensors",
        "--fold",
        "all",
        "--out",
        "folds",
        "--set",
        "data.test_epochs=1",
        *QUICK,
    )
    assert done.exit_code == 0, done.output
    summary = json.loads((desk / "folds" / "folds.json").read_text())
    results = [
        json.loads((desk / "folds" / f"fold{n}" / "result.json").read_text())["test_accuracy"] for n in range(1, 6)
    ]
    assert (
        summary["folds"] == results
        and summary["mean"] == pytest.approx(sum(results) / 5)
        and summary["metric"] == "accuracy"
    )
    assert summary["last_epochs"]["folds"] == pytest.approx(results)  # the last epoch's, as there is no other choice
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["fold"] * 5 + ["mean"] * 2
    settings = [json.loads((desk / "folds" / f"fold{n}" / "config.json").read_text())["config"] for n in (1, 5)]
    assert [config["data"].pop("fold") for config in settings] == [1, 5]
    for config in settings:
        config["run"].pop("out")
    assert settings[0] == settings[1]
    unsaid = run("train", "esc10", "--data", tmp_path / "esc", "--model", "other.safetensors", "--out", "unsaid")
    assert unsaid.exit_code == 2 and "--fold" in unsaid.stderr
    judged = run(
        "evaluate",
        "folds/fold2/best.safetensors",
        "--data",
        tmp_path / "esc",
        "--kind",
        "esc10",
        "--fold",
        "2",
        "-f",
        "json",
    )
    assert json.loads(judged.stdout)["accuracy"] == results[1]
    assert "as the test set" not in caplog.text
    run("evaluate", "folds/fold2/best.safetensors", "--data", tmp_path / "esc", "--kind", "esc10", "--fold", "3")
    assert "trained with fold 2 as the test set" in caplog.text and "Test it on fold 2" in caplog.text


def test_teach_and_distil(desk):
    taught = run(
        "teach",
        "clips",
        "--models",
        "same.safetensors",
        "same.safetensors",
        "--out",
        "table.safetensors",
        "--seconds",
        "1",
    )
    assert taught.exit_code == 0, taught.output
    assert taught.stdout == "table.safetensors  12 clips, 2 classes\n"
    table = TeacherTable.open(desk / "table.safetensors")
    assert len(table.models) == 2 and table.settings["seconds"] == 1
    one = run("teach", "clips", "--out=one.safetensors", "--models", "same.safetensors", "--seconds", "1", "--quiet")
    assert one.exit_code == 0 and (TeacherTable.open(desk / "one.safetensors").logits == table.logits).all()
    done = run(
        "train",
        "--data",
        "clips",
        "--model",
        "other.safetensors",
        "--out",
        "pupil",
        *QUICK,
        "--set",
        "teacher.table=one.safetensors",
    )
    assert done.exit_code == 0, done.output
    assert "agreement" in done.stdout


def test_a_table_made_from_other_clips_is_named(desk):
    assert (
        run(
            "teach", "clips", "--models", "same.safetensors", "--out", "short.safetensors", "--seconds", "0.5", "-q"
        ).exit_code
        == 0
    )
    table = ("--set", "teacher.table=short.safetensors")
    done = run("train", "--data", "clips", "--model", "other.safetensors", "--out", "warned", *QUICK, *table)
    assert (
        done.exit_code == 0
        and "The teacher's logits are for clips of 0.5 s (fill: pad), but this run uses clips of 1 s" in done.stderr
    )
    alike = ("--set", "data.seconds=0.5", "--set", "data.fill=pad")
    done = run("train", "--data", "clips", "--model", "other.safetensors", "--out", "alike", *QUICK, *table, *alike)
    assert done.exit_code == 0 and "The teacher's logits are for clips of" not in done.stderr


def test_teach_hears_what_the_model_was_trained_with(desk):
    done = run(
        "train", "--data", "clips", "--model", "other.safetensors", "--out", "own", *QUICK, "--set", "data.fill=repeat"
    )
    assert done.exit_code == 0, done.output
    assert run("teach", "clips", "--models", "own/best.safetensors", "--out", "own.safetensors", "-q").exit_code == 0
    short = run(
        "teach", "clips", "--models", "own/best.safetensors", "--out", "short_own.safetensors", "--seconds", "0.1"
    )
    assert "12 clips are longer than 0.1 s; only their beginnings are used" in short.stderr
    settings = TeacherTable.open(desk / "own.safetensors").settings
    assert (settings["seconds"], settings["fill"]) == (1.0, "repeat")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("D --models A B C --out F", "D --models A --models B --models C --out F"),
        ("D --models A --models B -o F", "D --models A --models B -o F"),
        ("--models=A D --out F", "--models=A D --out F"),
        ("D -o F --models A B", "D -o F --models A --models B"),
    ],
)
def test_spread(words, expected):
    assert spread(words.split(), ("--models", "-m")) == expected.split()


def test_evaluation_of_each_clip(desk):
    outputs = ("--predictions", "clips.csv", "--confusion", "confusion.csv")
    done = run("evaluate", "same.safetensors", "--data", "clips", "--format", "json", *outputs)
    assert done.exit_code == 0, done.output
    with (desk / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == [f"{name}/{clip}.wav" for name in CLASSES for clip in range(6)]
    assert all(row["labels"] == row["clip"].split("/")[0] for row in rows)
    assert all(float(row["knock"]) + float(row["whistle"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert all(float(row[row["likeliest"]]) >= 0.5 for row in rows)
    with (desk / "confusion.csv").open(newline="") as file:
        counts = [[int(row[name]) for name in CLASSES] for row in csv.DictReader(file)]
    right = sum(row["labels"] == row["likeliest"] for row in rows)
    assert counts[0][0] + counts[1][1] == right and sum(map(sum, counts)) == 12
    refused = run("evaluate", "same.safetensors", "--data", "clips", "--confusion", "confusion.xlsx")
    assert refused.exit_code == 2 and "Allowed: .png, .pdf, .svg, .csv" in refused.stderr
    pytest.importorskip("matplotlib")
    drawn = run(
        "evaluate", "same.safetensors", "--data", "clips", "--confusion", "confusion.svg", "--per-class", "c.csv"
    )
    assert drawn.exit_code == 0, drawn.output
    picture = (desk / "confusion.svg").read_text()
    assert f"{right / 12:.2%} of 12 clips, by " in picture and all(name in picture for name in CLASSES)
    with (desk / "c.csv").open(newline="") as file:
        recalls = [float(row["recall"]) for row in csv.DictReader(file)]
    assert recalls == pytest.approx([counts[0][0] / 6, counts[1][1] / 6])
    assert json.loads(done.stdout)["accuracy"] == pytest.approx(right / 12) and 0 <= json.loads(done.stdout)["f1"] <= 1


def test_evaluate_matches_classes_by_name(desk):
    network = load_model("wider.safetensors")
    chosen = torch.tensor([2, 0])
    narrow = create_model("mn01", len(CLASSES))
    state = network.state_dict()
    for name in ("head.classifier.weight", "head.classifier.bias"):
        state[name] = state[name][chosen]
    narrow.load_state_dict(state)
    narrow.card = ModelCard(name="sorted", labels=CLASSES, exclusive=True)
    pretrained.save(narrow, desk / "sorted.safetensors")
    answers = [
        json.loads(run("evaluate", f"{name}.safetensors", "-d", "clips", "-f", "json").stdout)
        for name in ("wider", "sorted")
    ]
    assert [answer.pop("model") for answer in answers] == ["wider.safetensors", "sorted.safetensors"]
    assert answers[0] == answers[1] and answers[0]["clips"] == 12
    lacking = run("evaluate", "other.safetensors", "--data", "clips")
    assert lacking.exit_code == 2 and "does not have 2 of the dataset's 2 classes, such as 'knock'" in lacking.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "--data PATH"),
        ("train --data nowhere", "no dataset at nowhere"),
        ("train nope --data clips", "no recipe or file 'nope'"),
        ("train esc50 --data clips", "mn04, mn10"),
        ("train --data clips --set optim.lrr=1", "no setting lrr"),
        ("train --data clips --set optim.lr=-1", "optim.lr is -1"),
        ("train --data clips --set optim.lr", "not an assignment"),
        ("train --data clips --model mn77", "mn77"),
        ("train --data clips --model runs/nowhere/best.safetensors", "There is no file runs/nowhere"),
        ("train --data clips --model same.safetensors --kind imagenet", "imagenet"),
        ("train --data clips --model same.safetensors --fold all", "no folds"),
        ("train --data clips --fold first", "'first'"),
        ("train --data clips --model same.safetensors --device abacus", "abacus"),
        ("evaluate same.safetensors --data nowhere", "no dataset at nowhere"),
        ("evaluate same.safetensors --data clips --kind imagenet", "imagenet"),
        ("evaluate same.safetensors --data clips --split later", "later"),
        ("evaluate mn77 --data clips", "mn77"),
        ("teach nowhere --models same.safetensors --out t", "no dataset at nowhere"),
        ("teach clips --models mn77 --out t", "mn77"),
        ("teach clips --models same.safetensors other.safetensors --out t", "differ in their classes"),
        ("teach clips --models same.safetensors --out t --fill loop", "loop"),
    ],
)
def test_wrong_use(words, message, desk):
    done = run(*words.split())
    assert done.exit_code == 2, done.output
    assert message in done.stderr and done.stderr.startswith("dymn: ") and done.stderr.count("\n") == 1
    assert not done.stdout and not (desk / "runs" / "same").exists()
    shutil.rmtree(desk / "t.part", ignore_errors=True)


def test_recipes_are_listed():
    listed = run("train", "--recipes").stdout.split()
    assert {"fine_tune", "esc10", "audioset_kd:dymn20", "dcase20:mn30"} <= set(listed)


def test_bar_where_someone_sees_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    table = EpochTable()
    table.start(2, 0, 3)
    for epoch in range(2):
        for _ in range(3):
            table.batch(1.0)
        table.epoch(
            {
                "epoch": epoch + 1,
                "loss": 1.5,
                "val_accuracy": 0.5,
                "lr": 1e-3,
                "clips_per_second": 12.0,
                "seconds": 61.0,
            }
        )
    table.finish({})
    assert "50.00 %" in capsys.readouterr().err and table.progress is None


def test_figures_as_text():
    assert [duration(s) for s in (3.21, 185, 7385)] == ["3.2 s", "3:05", "2:03:05"]
    assert [figure(*pair) for pair in (("test_accuracy", 0.985), ("val_mAP", 0.43216), ("distillation", 0.1))] == [
        "98.50 %",
        "0.4322",
        "0.1000",
    ]
