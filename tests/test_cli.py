"""The command line from end to end, on a tiny network with random weights; the real one where it matters."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dymn import __version__, create_model
from dymn.cli import app
from dymn.config import ModelCard
from dymn.models import pretrained
from dymn.weights import default, load_model
from dymn.weights.checkpoint import open_checkpoint
from dymn.weights.registry import REGISTRY

RATE = 32_000
LABELS = ("Dog", "Cat", "Speech, near", "Music")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("mn01", num_classes=len(LABELS), generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=LABELS)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture
def clips(tmp_path):
    """Three short recordings in a folder, and a file that is none."""
    folder = tmp_path / "clips"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        soundfile.write(folder / f"clip{i}.wav", random.normal(0, 0.1, RATE), RATE)
    (tmp_path / "bad.wav").write_text("this is no audio")
    return folder


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def process(*arguments, **options):
    command = [sys.executable, "-m", "dymn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, **options)


def test_version_and_help():
    assert run("--version").stdout == f"dymn {__version__}\n"
    for command in ([], ["tag"], ["models"], ["convert"]):
        done = run(*command, "--help", env={"COLUMNS": "200"})
        assert done.exit_code == 0
        assert "Usage" in done.stdout
    assert "Exit codes" in run("--help").stdout
    assert run().exit_code == 2


def test_what_cannot_be_read_alone_is_written_as_among_others(model, clips, tmp_path):
    bad, missing = tmp_path / "bad.wav", tmp_path / "missing.wav"
    for name in ("alone.csv", "both.csv"):
        assert (
            run(
                "tag", missing, bad, *([clips] if name == "both.csv" else []), "-m", model, "-o", tmp_path / name
            ).exit_code
            == 1
        )
    alone, both = ((tmp_path / name).read_text().splitlines() for name in ("alone.csv", "both.csv"))
    assert alone == both[:3] and len(both) > 3
    alone, both = ((tmp_path / f"{name}.csv.failed.jsonl").read_text() for name in ("alone", "both"))
    assert alone == both and alone.count("\n") == 2
    assert not (tmp_path / "alone.csv.journal").exists()
    refused = run("embed", missing, "-m", model, "-o", tmp_path / "out.npy")
    assert refused.exit_code == 1 and (tmp_path / "out.npy.failed.jsonl").exists()


@pytest.mark.parametrize(
    ("command", "output"), [("tag", "v.csv"), ("embed", "v.npy"), ("events", "v.jsonl"), ("events", "v.rttm")]
)
def test_an_output_is_kept_when_no_recording_can_be_read(model, clips, tmp_path, command, output):
    (tmp_path / "bad.wav").write_text("no audio")
    whole = (clips / "clip0.wav").read_bytes()
    (tmp_path / "torn.wav").write_bytes(whole[: len(whole) // 2])  # its header can be read
    words = ("-m", model, "-o", tmp_path / output)
    assert run(command, clips / "clip0.wav", *words).exit_code == 0
    earlier = {path: path.read_bytes() for path in tmp_path.glob("v.*")}
    for wrong in ("mistyped", "bad.wav", "torn.wav"):
        done = run(command, tmp_path / wrong, *words)
        assert done.exit_code == 1 and f"{output} is kept as it was" in done.stderr, done.output
        assert {path: path.read_bytes() for path in earlier} == earlier
        assert wrong in (tmp_path / f"{output}.failed.jsonl").read_text()


def test_a_folder_of_label_tracks_has_a_report_as_long_as_there_are_failures(model, clips, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    (tmp_path / "worse.wav").write_text("no audio")
    report = tmp_path / "tracks.failed.jsonl"
    for bad in ("bad.wav", "worse.wav", None):  # the folder is new, then exists
        given = [clips / "clip0.wav", clips / "clip1.wav", *([tmp_path / bad] if bad else [])]
        done = run("events", *given, "-m", model, "--format", "audacity", "-o", tmp_path / "tracks")
        assert done.exit_code == (1 if bad else 0), done.output
        assert [Path(json.loads(line)["file"]).name for line in report.open()] == [bad] if bad else not report.exists()


def test_help_imports_nothing_heavy():
    code = (
        "import sys, dymn.cli\ntry: dymn.cli.app(['tag', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].strip("[]").replace("'", "").split(", "))
    assert not loaded & {"torch", "numpy", "soundfile", "soxr", "huggingface_hub", "safetensors"}


def test_tag_prints_a_table(model, clips):
    done = run("tag", clips, "--model", model, "--top-k", 2)
    assert done.exit_code == 0, done.output
    blocks = done.stdout.strip().split("\n\n")
    assert len(blocks) == 3
    assert blocks[0].splitlines()[0] == f"{clips / 'clip0.wav'}  (0:01.0)"
    assert all(len(block.splitlines()) == 3 for block in blocks)
    assert done.stderr == ""


def test_tag_json_carries_its_origin(model, clips):
    document = json.loads(
        run("tag", clips / "clip0.wav", "-m", model, "-f", "json", "--labels", "dog,c*", "--hop", 5).stdout
    )
    assert document["version"] == __version__
    assert document["model"] == "tiny"
    assert document["digest"] == load_model(model).card.provenance["sha256"]
    parameters = document["parameters"]
    assert (parameters["window"], parameters["hop"], parameters["labels"], parameters["fill"]) == (
        10.0,
        5.0,
        ["dog,c*"],
        "repeat",
    )
    (recording,) = document["recordings"]
    assert {tag["label"] for tag in recording["tags"]} == {"Dog", "Cat"}


def test_tag_writes_files_in_the_format_of_their_ending(model, clips, tmp_path):
    outputs = {name: tmp_path / "new" / f"tags.{name}" for name in ("json", "jsonl", "csv", "txt")}
    for output in outputs.values():
        done = run("tag", clips, "-m", model, "-o", output, "--per-window")
        assert done.exit_code == 0, done.output
        assert done.stdout == ""
    assert len(json.loads(outputs["json"].read_text(encoding="utf-8"))["recordings"]) == 3
    assert [len(json.loads(line)["windows"]) for line in outputs["jsonl"].read_text(encoding="utf-8").splitlines()] == [
        1,
        1,
        1,
    ]
    assert len(list(csv.DictReader(outputs["csv"].open(encoding="utf-8")))) == 12
    assert "clip2.wav" in outputs["txt"].read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


def test_audacity_labels(model, clips, tmp_path):
    done = run("tag", clips / "clip0.wav", "-m", model, "-f", "audacity", "-k", 1)
    start, end, label = done.stdout.strip().split("\t")
    assert (float(start), float(end)) == (0, 1)
    assert label in LABELS
    refused = run("tag", clips, "-m", model, "-f", "audacity", "-k", 10)
    assert refused.exit_code == 2
    assert "folder" in refused.stderr
    (clips / "below").mkdir()
    soundfile.write(clips / "below" / "clip0.wav", np.zeros(RATE), RATE)
    assert run("tag", clips, "-m", model, "-f", "audacity", "-k", 1, "-o", tmp_path / "tracks").exit_code == 0
    tracks = sorted(path.relative_to(tmp_path / "tracks").as_posix() for path in (tmp_path / "tracks").rglob("*.txt"))
    assert tracks == ["below/clip0.txt", "clip0.txt", "clip1.txt", "clip2.txt"]


def test_failures_leave_the_others_and_give_exit_code_1(model, clips, tmp_path):
    (tmp_path / "nothing").mkdir()
    done = run(
        "tag", tmp_path / "nothing", tmp_path / "bad.wav", clips, tmp_path / "missing.wav", "-m", model, "-f", "json"
    )
    assert done.exit_code == 1
    recordings = json.loads(done.stdout)["recordings"]
    assert [("error" in recording) for recording in recordings] == [True, True, False, False, False, True]
    for name in ("nothing", "bad.wav", "missing.wav"):
        assert any(line.startswith("dymn: ") and name in line for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
    rows = list(csv.DictReader(run("tag", tmp_path / "bad.wav", "-m", model, "-f", "csv").stdout.splitlines()))
    assert "bad.wav" in rows[0]["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top-k", "-1"], ["--threshold", "2"], ["--window", "0"], ["--hop", "zero"], ["--format", "xml"],
        ["--batch-size", "0"], ["--threads", "0"], ["--device", "quantum"], ["--labels", "no such label"],
        ["--exclude", "*"], ["--fill", "mirror"], ["--colour"], ["--model", "no_such_model"], ["--output", "."],
        ["--output", "RECORDING"],
    ],
)  # fmt: skip
def test_wrong_use_gives_exit_code_2(model, clips, arguments):
    arguments = [argument.replace("RECORDING", str(clips / "clip0.wav")) for argument in arguments]
    before = (clips / "clip0.wav").read_bytes()
    done = run("tag", clips / "clip0.wav", "--model", model, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert (clips / "clip0.wav").read_bytes() == before


def test_a_broken_model_file_gives_exit_code_1(clips, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense" * 100)
    done = run("tag", clips, "--model", tmp_path / "broken.safetensors")
    assert done.exit_code == 1
    assert done.stderr.startswith("dymn: ")
    assert "broken.safetensors" in done.stderr


def test_a_path_that_cannot_even_be_looked_at_does_not_stop_the_others(model, clips):
    done = run("tag", "x" * 300 + ".wav", clips / "clip0.wav", "-m", model)
    assert done.exit_code == 1
    assert "clip0.wav" in done.stdout and "xxx.wav" in done.stderr and "should not have happened" not in done.stderr


@pytest.mark.parametrize("command", ["tag", "events"])
def test_label_tracks_of_recordings_that_cannot_be_read(model, tmp_path, command):
    for name in ("one.wav", "two.wav"):
        (tmp_path / name).write_text("no audio")
    (tmp_path / "labels").mkdir()
    for output in ("labels", "fresh"):
        done = run(
            command,
            tmp_path / "one.wav",
            tmp_path / "two.wav",
            "-m",
            model,
            "--threshold",
            0.3,
            "--format",
            "audacity",
            "-o",
            tmp_path / output,
        )
        assert done.exit_code == 1 and "one.wav" in done.stderr and "two.wav" in done.stderr, done.stderr
    assert not (tmp_path / "fresh").is_file()


def test_what_should_not_happen_is_said_without_a_traceback(model, clips, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the moon is full")

    monkeypatch.setattr("dymn.inference.tagger.Tagger.tag_files", fail)
    done = run("tag", clips, "-m", model)
    assert done.exit_code == 1
    assert "RuntimeError: the moon is full" in done.stderr
    assert "DYMN_DEBUG" in done.stderr


def test_an_interrupted_run_leaves_the_old_output(model, clips, tmp_path, monkeypatch):
    output = tmp_path / "tags.json"
    output.write_text("old")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dymn.inference.windows.computed", interrupt)
    done = run("tag", clips, "-m", model, "-o", output)
    assert done.exit_code == 130
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.wav", "clips", "tags.json"]


def test_default_model_says_which_and_why(model, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    at_hand = {default.SHIPPED}

    def opened(name, **_):
        if name not in at_hand:
            raise default.WeightsError("no network")
        return open_checkpoint(model)

    monkeypatch.setattr(default, "open_checkpoint", opened)
    done = run("tag", clips / "clip0.wav")
    assert done.exit_code == 0
    assert "Using dymn04_open" in done.stderr
    assert "dymn10_as" in done.stderr
    assert run("tag", clips / "clip0.wav", "--quiet").stderr == ""
    at_hand.add(default.PREFERRED)
    assert "Using dymn10_as" in run("tag", clips / "clip0.wav").stderr
    at_hand.clear()
    monkeypatch.setattr(default, "is_local", lambda published: False)
    done = run("tag", clips / "clip0.wav")
    assert done.exit_code == 1
    assert "--model" in done.stderr
    assert {default.PREFERRED, default.SHIPPED} <= set(REGISTRY)


def test_models_lists_names_and_sizes():
    table = run("models").stdout.splitlines()
    assert table[0].split() == ["model", "parameters", "MACs", "mAP", "PSDS1", "classes", "input", "weights"]
    assert any(line.startswith("dymn10_as ") and "10.55 M" in line and "0.477" in line for line in table)
    assert any(line.startswith("dymn06 ") for line in table)
    rows = json.loads(run("models", "dymn04*", "--pretrained", "--format", "json").stdout)
    assert all(row["weights"] and row["name"].startswith("dymn04") for row in rows)
    parsed = list(csv.DictReader(run("models", "mn10", "--format", "csv").stdout.splitlines()))
    assert [(row["name"], row["parameters"]) for row in parsed] == [("mn10", "4876831")]
    assert run("models", "nothing*").exit_code == 2


def test_convert_keeps_what_tags(shared, clips, tmp_path):
    source = shared / "weights" / "mn04_as_mAP_432.pt"
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    done = run("convert", source, full)
    assert done.exit_code == 0, done.output
    assert "sha256" in done.stdout
    assert run("convert", source, half, "--half").exit_code == 0
    assert half.stat().st_size < 0.6 * full.stat().st_size
    scores = [
        {
            tag["label"]: tag["score"]
            for tag in json.loads(run("tag", clips, "-m", path, "-f", "jsonl", "-k", 0).stdout.splitlines()[0])["tags"]
        }
        for path in (source, full, half)
    ]
    assert scores[0] == scores[1]
    assert scores[0] == pytest.approx(scores[2], abs=5e-3)


def test_convert_checks_the_extension_before_it_speaks_of_a_folder(tmp_path):
    done = run("convert", "dymn04_open", tmp_path / "new" / "x.txt")
    assert done.exit_code == 2 and "neither a .safetensors file" in done.stderr and "Creating" not in done.stderr


def test_convert_takes_temperature_strides_and_labels(shared, tmp_path):
    source, out, labels = (
        shared / "fixtures" / "dymn_w01_50cls_s2221" / "state_dict.pt",
        tmp_path / "out.safetensors",
        tmp_path / "labels.txt",
    )
    labels.write_text("\n".join(f"sound {i}" for i in range(50)) + "\n")
    done = run("convert", source, out, "--temperature", 30, "--strides", "2,2,2,1", "--labels", labels)
    assert done.exit_code == 0, done.output
    model = load_model(out)
    assert model.temperature == 30
    assert model.card.labels[49] == "sound 49"
    assert [block.stride for block in model.config.blocks if block.c_in != block.c_out][-1] == 1
    assert run("convert", source, out, "--strides", "2,2,x").exit_code == 2
    assert run("convert", source, out, "--labels", tmp_path / "missing.txt").exit_code == 2
    labels.write_text("only one\n")
    assert run("convert", source, out, "--labels", labels).exit_code == 2


def test_process_reads_standard_input(model, clips):
    done = process("tag", "-", "-m", model, "-f", "jsonl", "-k", 1, input=(clips / "clip0.wav").read_bytes())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == "-"


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes are those of POSIX")
def test_process_ends_quietly_when_interrupted_or_not_read(model, clips, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(RATE * 600, np.float32), RATE)
    command = [
        sys.executable,
        "-m",
        "dymn",
        "tag",
        clips / "clip0.wav",
        long,
        "-m",
        model,
        "--hop",
        "0.1",
        "--batch-size",
        "1",
        "-f",
        "jsonl",
    ]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert json.loads(running.stdout.readline())["file"] == str(clips / "clip0.wav")
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == b"dymn: Interrupted.\n"
    command = [sys.executable, "-m", "dymn", "models", "--pretrained"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        errors = running.stderr.read()
        running.wait(30)
    assert errors == b""
    assert running.returncode == 141


def test_process_copes_with_names_that_are_no_text(model, clips):
    if sys.platform != "linux":
        pytest.skip("only Linux has such names")
    path = os.fsencode(clips) + b"/\xff\xfe.wav"
    Path(os.fsdecode(path)).write_bytes((clips / "clip0.wav").read_bytes())
    done = process("tag", os.fsdecode(path), "-m", model, "-k", 1, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"#" in done.stdout
