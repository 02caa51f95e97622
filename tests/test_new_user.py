"""What a new user gets wrong is told, and told alike in every command."""

import json
import logging
import shutil

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dymn import create_model
from dymn.architectures import MODELS
from dymn.cli import app
from dymn.config import ModelCard
from dymn.models import pretrained
from layouts import write_audio


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    for i, name in enumerate(("knock", "whistle")):
        for clip in range(6):
            write_audio(folder / "clips" / name / f"{clip}.wav", 300 + 2000 * i + 10 * clip)
    network = create_model("mn01", 2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="same", labels=("knock", "whistle"), exclusive=True)
    pretrained.save(network, folder / "same.safetensors")
    return folder


@pytest.fixture(autouse=True)
def at_desk(desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("dymn.training.loop.plot_curves", lambda *_: None)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("samples", "is_short"), [(100, True), (3199, True), (3200, False)])
@pytest.mark.parametrize("command", ["tag", "events", "embed"])
def test_a_recording_below_a_tenth_of_a_second_has_a_note(tmp_path, caplog, command, samples, is_short):
    caplog.set_level(logging.WARNING, "dymn")
    path = tmp_path / "short.wav"  # a name of its own, for a note on a name comes once
    soundfile.write(path, 0.1 * np.sin(np.arange(samples)), 32_000)
    done = run(command, path, "-m", "same.safetensors", *(("-o", tmp_path / "x.npy") if command == "embed" else ()))
    assert done.exit_code == 0
    milliseconds = f"{samples / 32:.3g} ms long"
    assert (f"short.wav: it is {milliseconds}" in caplog.text) == is_short == ("rarely recognised" in caplog.text)
    if command == "tag":
        (found,) = json.loads(run("tag", path, "-m", "same.safetensors", "-f", "json").stdout)["recordings"]
        assert bool(found.get("notes")) == is_short


@pytest.mark.parametrize("output", ["new/tags.csv", "new/tags.txt"])
def test_a_folder_that_is_made_is_named(tmp_path, caplog, output):
    caplog.set_level(logging.WARNING, "dymn")
    words = ("tag", "clips/knock/0.wav", "-m", "same.safetensors", "-o", tmp_path / output)
    assert run(*words).exit_code == 0 and (tmp_path / output).is_file()
    assert f"Creating the folder {tmp_path / 'new'} for tags" in caplog.text
    caplog.clear()
    assert run(*words).exit_code == 0 and caplog.text == ""
    shutil.rmtree(tmp_path / "new")
    assert run(*words, "--quiet").exit_code == 0 and caplog.text == ""


@pytest.mark.parametrize(
    ("command", "output", "name", "told"),
    [
        ("embed", "v.npy", "csv", "v.npy is written as csv, as --format requests, although its extension means npy"),
        ("tag", "x.csv", "json", "x.csv is written as json, as --format requests, although its extension means csv"),
        ("tag", "x.csv", "csv", ""),
        ("tag", "x.json", "label-studio", ""),
        ("tag", "x.txt", "audacity", ""),
        ("tag", "x", "json", ""),
    ],
)
def test_a_format_against_the_ending_has_a_note(tmp_path, command, output, name, told):
    words = [command, "clips/knock/0.wav", "-m", "same.safetensors", *["-k", 1] * (command == "tag")]
    done = run(*words, "-o", tmp_path / output, "--format", name)
    assert done.exit_code == 0
    assert told in done.stderr and ("as --format requests" in done.stderr) == bool(told)


MISSING = [
    "tag clips -m NAME", "events clips -m NAME", "embed clips -m NAME -o x.npy", "evaluate NAME --data clips",
    "probe clips -m NAME", "train --data clips -m NAME", "teach clips --model NAME -o x.safetensors",
    "export NAME -o x.onnx", "explain clips/knock/0.wav -m NAME", "profile NAME", "convert NAME y.safetensors",
    "serve -m NAME",
]  # fmt: skip


@pytest.mark.parametrize("name", ["nope", "nofile.pt", "nofile.safetensors"])
@pytest.mark.parametrize("command", MISSING, ids=lambda command: command.split()[0])
def test_a_model_that_does_not_exist_is_wrong_use_everywhere(command, name):
    done = run(*command.replace("NAME", name).split())
    assert done.exit_code == 2, done.output
    assert f"There is no file {name}" in done.stderr or f"called '{name}'" in done.stderr


def test_architectures_are_named_where_they_are_allowed():
    assert all(name in run("profile", "nope").stderr for name in MODELS)
    assert "Did you mean dymn06" in run("profile", "dymn6").stderr
    assert "architecture" not in run("tag", "clips", "-m", "nope").stderr


def test_a_finished_run_its_folder_and_more_epochs():
    words = ("train", "--data", "clips", "-m", "same.safetensors", "--set", "data.least_draws=0", "--device", "cpu")
    assert run(*words, "--epochs", "1", "--output", "run1").exit_code == 0
    more = run(*words, "--epochs", "2", "--output", "run1")
    assert more.exit_code == 2
    assert "--model run1/best.safetensors --output OTHER" in more.stderr and "schedule." not in more.stderr
    other = run(*words, "--epochs", "1", "--output", "run1", "--set", "optim.lr=0.5")
    assert other.exit_code == 2 and "(optim.lr)" in other.stderr
    tags = [
        run("tag", "clips/knock/0.wav", "-m", name, "-f", "csv").stdout for name in ("run1", "run1/best.safetensors")
    ]
    assert tags[0] == tags[1] != ""


def test_teach_has_the_option_of_all_commands():
    tables = []
    for i, option in enumerate(("--model", "-m", "--models")):
        words = ("teach", "clips", option, "same.safetensors", "same.safetensors", "--output", f"{i}.safetensors")
        done = run(*words)
        assert done.exit_code == 0, done.output
        tables.append((i, done.stdout.split(maxsplit=1)[1]))
    assert len({shown for _, shown in tables}) == 1


def test_one_shard_and_few_clips():
    assert "  1 shard, 12 clips" in run("shards", "clips", "shards", "--clips", "100").stdout
    probed = run("probe", "clips", "-m", "same.safetensors")
    assert (
        probed.exit_code == 0
        and "12 test clips are too few for a reliable result: each is 8.3 % of them" in probed.stderr
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--labels", "knock,whistel"), "no label 'whistel'. Did you mean: whistle?"),
        (("--events", "--exclude", "Turdus merula"), "no label 'Turdus merula'. `dymn tag RECORDING --top-k 0` lists"),
        (("--run", "no-such-program {label}"), "there is no program 'no-such-program'"),
        (("--save", "same.safetensors"), "--save same.safetensors is a file. Give a folder."),
    ],
)
def test_listen_checks_its_options_before_it_waits_for_a_source(monkeypatch, options, told):
    monkeypatch.setattr("dymn.commands.listen.opened", lambda *_: pytest.fail("a source is waited for"))
    done = run("listen", "rtsp://camera.invalid/audio", "-m", "same.safetensors", *options)
    assert done.exit_code == 2 and told in done.stderr


def test_a_program_whose_name_is_a_field_is_left_to_its_messages(monkeypatch):
    monkeypatch.setattr("dymn.commands.listen.opened", lambda *_: ("camera", 16_000, iter(())))
    assert run("listen", "rtsp://camera.invalid/audio", "-m", "same.safetensors", "--run", "./{label}").exit_code == 0


@pytest.mark.parametrize("command", ["tag", "events"])
def test_absolute_times_reach_raven_and_are_missed_aloud_elsewhere(tmp_path, command):
    shutil.copy("clips/knock/0.wav", tmp_path / "20240512_043000.WAV")
    shutil.copy("clips/knock/0.wav", tmp_path / "undated.wav")
    asked = (command, tmp_path, "-m", "same.safetensors", "--threshold", "0.01", "--clock", "auto")
    table = run(*asked, "-f", "raven").stdout.splitlines()
    assert table[0].split("\t")[-2:] == ["Score", "Time"]
    times = {row.split("\t")[7][-11:]: row.split("\t")[-1] for row in table[1:]}
    assert times == {"_043000.WAV": "2024-05-12T04:30:00.000", "undated.wav": ""}
    assert run(*asked[:-2], "-f", "raven").stdout.splitlines()[0].endswith("Score")
    for name, output in (("audacity", tmp_path / "tracks"), ("label-studio", tmp_path / "tasks.json")):
        done = run(*asked, "-f", name, "-o", output)
        assert done.exit_code == 0 and f"--clock auto has no effect: the format {name}" in done.stderr
    assert "no effect" not in run(*asked, "-f", "csv").stderr


@pytest.mark.parametrize(("model", "told"), [("mn01", "mn01 is an architecture"), ("same.safetensors", None)])
def test_training_from_random_weights_has_a_note(monkeypatch, tmp_path, model, told):
    folder = tmp_path / "with space"
    monkeypatch.setattr(
        "dymn.training.train",
        lambda *_: {"train_seconds": 1.0, "best_epoch": 1, "epochs": 1, "checkpoint": f"{folder}/best.safetensors"},
    )
    done = run("train", "--data", "clips", "--model", model, "-o", folder)
    assert done.exit_code == 0 and f"--model '{folder}/best.safetensors'" in done.stdout
    assert ("random weights. To fine-tune, use one of: mn01_as" in done.stderr) == (told is not None)


def test_a_slow_job_reports_its_pace_by_the_minute(monkeypatch):
    from dymn.commands import progress

    clock = iter([0.0, 90.0, 90.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = []
    bar = progress.Bar(4)
    monkeypatch.setattr(bar, "say", lines.append)
    bar.advance("hour.wav")
    assert lines == ["dymn: 1 of 4 (25.0%), 0.7 a minute, 0:04:30 left"]


@pytest.mark.parametrize("form", ["text", "raven", "csv"])
def test_failures_among_many_recordings_are_counted_at_the_end(tmp_path, form):
    shutil.copytree("clips", tmp_path / "clips")
    (tmp_path / "clips" / "notes.wav").write_text("this is no audio")
    done = run("events", tmp_path / "clips", "-m", "same.safetensors", "-f", form)
    assert done.exit_code == 1 and done.stderr.splitlines()[-1] == "dymn: 1 of 13 recordings failed."
    alone = run("events", tmp_path / "clips" / "notes.wav", "-m", "same.safetensors", "-f", form)
    assert alone.exit_code == 1 and len(alone.stderr.splitlines()) == 1


def test_a_class_without_readable_recordings_names_the_unreadable_ones(tmp_path):
    pytest.importorskip("sklearn", exc_type=ImportError)
    table = tmp_path / "clips.csv"
    clips = [f"{tmp_path}/clips/{name}.wav,{name[:-1]}\n" for name in ("knock0", "knock1", "whistle0", "whistle1")]
    table.write_text("path,label\n" + "".join(clips))
    for i, name in enumerate(("knock0", "knock1", "whistle0")):
        write_audio(tmp_path / "clips" / f"{name}.wav", 300 + 500 * i)
    done = run("fit", table, "-m", "same.safetensors", "-o", tmp_path / "x.safetensors")
    assert done.exit_code == 1 and not (tmp_path / "x.safetensors").exists()
    assert "The class 'whistle' has 1 recording" in done.stderr
    assert "cannot be read: 1, such as" in done.stderr and "whistle1.wav" in done.stderr
