"""What `tag`, `embed` and `events` have in common.

A tree is walked once, a recording opened once, and runs are resumed.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn.cli import app
from dymn.errors import DataError
from dymn.inference.discovery import Discovery
from dymn.inference.journal import Journal, journal_path

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
COUNTED = """
import atexit, collections, json, os, sys
opened, walked = collections.Counter(), collections.Counter()
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened[os.fsdecode(arguments[0])] += 1
    if event == "os.scandir":
        walked[os.fsdecode(arguments[0])] += 1
sys.addaudithook(hook)
import dymn.__main__
try:
    dymn.__main__.main()
finally:
    with open(os.environ["COUNTS"], "w") as file:
        json.dump([opened, walked], file)
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A tree of recordings in several formats, and a file that is not one."""
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    for i, name in enumerate(("a.wav", "b/c.flac", "b/d/e.ogg", "b/f.wav")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise * (i + 1) / 4, 16_000)
    (folder / "b" / "bad.wav").write_text("this is no audio")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


NAMES = ("carriage\rreturn.wav", "line\nfeed.wav", 'a "quote", and a comma.wav')


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
@pytest.mark.parametrize("to", ["file", "stdout"])
@pytest.mark.parametrize("command", ["tag", "embed", "events"])
def test_names_with_line_ends_stay_whole_in_csv(command, to, tmp_path):
    for name in NAMES:
        soundfile.write(tmp_path / name, np.full(16_000, 0.1), 16_000)
    (tmp_path / "bad\r.wav").write_text("no audio")
    out = tmp_path / "out.csv"
    done = run(
        command, tmp_path, "-m", "dymn04_open", *(["-o", out] if to == "file" else ["-f", "csv"]), "--workers", "0"
    )
    assert done.exit_code == 1
    text = out.read_bytes().decode() if to == "file" else done.stdout_bytes.decode()
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert len({len(row) for row in rows}) == 1
    bad = ["bad\r.wav"] if command != "embed" else []
    assert {Path(row[0]).name for row in rows[1:]} <= {*NAMES, *bad} and len(rows) > len(bad) + 1


def test_events_agree_in_all_formats(clips, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    asked = ["events", clips, "-m", "dymn04_open", "--threshold", "0.05", "--workers", "2"]
    outputs = {ending: tmp_path / f"events.{ending}" for ending in ("csv", "json", "jsonl", "parquet")}
    for output in outputs.values():
        done = run(*asked, "-o", output)
        assert done.exit_code == 1 and "1 of 5 recordings failed" in done.stderr, done.output
        assert not output.with_name(f"{output.name}.journal").is_dir()
    rows = list(csv.DictReader(outputs["csv"].open(newline="", encoding="utf-8")))
    table = parquet.read_table(outputs["parquet"]).to_pylist()
    assert [(row["file"], row["label"] or "", row["error"] or "") for row in table] == [
        (r["file"], r["label"], r["error"]) for r in rows
    ]
    assert len(rows) > 5
    document = json.loads(outputs["json"].read_text())
    lines = [json.loads(line) for line in outputs["jsonl"].read_text().splitlines()]
    origin = {key: value for key, value in document.items() if key != "recordings"}
    assert lines == [recording | origin for recording in document["recordings"]]
    flat = [(r["file"], e["label"]) for r in document["recordings"] for e in r.get("events", [])]
    assert flat == [(row["file"], row["label"]) for row in rows if row["label"]]


def test_onnx_files_are_recognised_by_their_ending(tmp_path):
    refused = run("tag", EXAMPLES / "dog.ogg", "-m", tmp_path / "none.onnx")
    assert refused.exit_code == 2 and "no ONNX file" in refused.stderr


def test_a_journal_that_cannot_be_created_names_the_output():
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    refused = run("tag", EXAMPLES / "dog.ogg", "-m", "dymn04_open", "-o", "/proc/x.csv")
    assert (
        refused.exit_code == 1 and refused.stderr.startswith("dymn: /proc/x.csv: ") and "journal" not in refused.stderr
    )


def test_all_damaged_results_of_a_journal_are_removed_at_once(clips, tmp_path):
    output = tmp_path / "out.csv"
    with Journal(output, {}) as journal, Discovery([str(clips)]) as discovery:
        journal.find(discovery)
        for task in journal.to_do():
            journal.put(task, 1.0, f"result of {task.name.name}".encode(), None)
    path = journal_path(output)
    content = path.read_bytes()
    for name in (b"a.wav", b"f.wav"):
        content = content.replace(b"result of " + name, b"Result of " + name)
    path.write_bytes(content)
    with Journal(output, {}) as journal, pytest.raises(DataError, match=r"and of 1 other\(s\)"):
        list(journal.results())
    with Journal(output, {}) as journal, Discovery([str(clips)]) as discovery:
        journal.find(discovery)
        assert [task.name.name for task in journal.to_do()] == ["a.wav", "f.wav"]


@pytest.mark.parametrize("output", [["-f", "csv"], ["-o", "out.csv"]], ids=["stream", "journal"])
@pytest.mark.parametrize("command", ["tag", "embed", "events"])
def test_a_tree_is_walked_once_and_each_recording_opened_once(command, output, clips, tmp_path):
    counts = tmp_path / "counts"
    words = [sys.executable, "-c", COUNTED, command, clips, "-m", "dymn04_open", *output]
    done = subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        env={**os.environ, "COUNTS": str(counts)},
        timeout=100,
        cwd=tmp_path,
    )
    assert done.returncode == 1 and "bad.wav" in done.stderr, done.stderr
    opened, walked = json.loads(counts.read_text())
    files = [str(path) for path in clips.rglob("*.*")]
    assert len(files) == 5
    assert {name: opened.get(name) for name in files} == dict.fromkeys(files, 1)
    folders = [str(clips), str(clips / "b"), str(clips / "b" / "d")]
    assert {name: walked.get(name) for name in folders} == dict.fromkeys(folders, 1)


@pytest.mark.parametrize("ending", [".wav", ".ogg", ".au"])
def test_a_page_opens_and_decodes_its_recording_once(ending, tmp_path):
    counts, sound, page = tmp_path / "counts", tmp_path / f"sound{ending}", tmp_path / "page.html"
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000)
    words = [sys.executable, "-c", COUNTED, "tag", sound, "-m", "dymn04_open", "--plot", page]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env={**os.environ, "COUNTS": str(counts)}, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(counts.read_text())[0][str(sound)] == 1
    kind = {".wav": "wav", ".ogg": "ogg", ".au": "wav"}[ending]
    assert f'"audio":"data:audio/{kind};base64,' in page.read_text()


def test_a_recording_that_is_replaced_while_the_model_loads_is_the_new_one(tmp_path):
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    for name, seconds in ((path, 1), (other, 2)):
        soundfile.write(name, np.zeros(seconds * 16_000), 16_000)
    with Discovery([str(path)]) as discovery:
        assert discovery.any_readable()
        os.replace(other, path)
        assert discovery.source(path) == path
    with Discovery([str(path)]) as discovery:
        assert discovery.any_readable()
        assert discovery.source(path).name == str(path) and discovery.source(path) == path


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("command", [["tag"], ["embed"], ["events"], ["tag", "--plot", "pictures"]], ids=" ".join)
def test_no_library_opens_a_recording_again(command, clips, tmp_path):
    log = tmp_path / "log"
    words = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", log]
    words += [sys.executable, "-m", "dymn", *command, clips, "-m", "dymn04_open", "-o", "out.csv"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=100, cwd=tmp_path)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    opened = Counter(
        path for path in re.findall(r'open\w*\([^"]*"([^"]+)"', log.read_text()) if path.startswith(str(clips))
    )
    assert {path: opened[str(path)] for path in clips.rglob("*.*")} == dict.fromkeys(clips.rglob("*.*"), 1)


@pytest.mark.parametrize("rows", [False, True], ids=["stream", "journal"])
@pytest.mark.parametrize("command", ["tag", "embed", "events"])
def test_a_damaged_recording_alone_is_read_as_far_as_it_can_be(command, rows, clips, tmp_path):
    cut, output = tmp_path / "cut.wav", tmp_path / "out.csv"
    cut.write_bytes((clips / "a.wav").read_bytes()[:16_044])  # half a second of one
    asked = [command, cut, "-m", "dymn04_open", *(["-o", output] if rows else ["-f", "csv"])]
    refused = run(*asked)
    assert refused.exit_code == 1 and "truncated" in refused.stderr
    done = run(*asked, "--partial", *(["--fresh"] if rows else []))
    assert done.exit_code == 0, done.output
    text = output.read_text() if rows else done.stdout
    found = list(csv.DictReader(io.StringIO(text)))
    assert found and max(float(row["end"]) for row in found) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("command", "format"),
    [
        ("tag", "csv"),
        ("tag", "parquet"),
        ("tag", "jsonl"),
        ("tag", "table"),
        ("tag", "audacity"),
        ("events", "csv"),
        ("events", "text"),
        ("events", "rttm"),
        ("embed", "npy"),
        ("embed", "csv"),
        ("embed", "parquet"),
    ],
)
def test_every_format_says_which_recordings_were_read_in_part(command, format, clips, tmp_path):
    folder, output = tmp_path / "in", tmp_path / ("out.txt" if format == "audacity" else "out")
    folder.mkdir()
    whole = (clips / "a.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[:16_044])
    (folder / "whole.wav").write_bytes(whole)
    nothing_found = [] if command == "embed" else ["--threshold", "1"]  # the damage shows without any tag or event
    sources = [folder / "cut.wav"] if format in ("audacity", "rttm") else [folder]
    asked = [command, *sources, "-m", "dymn04_open", "-f", format, "--partial", *nothing_found]
    done = run(*asked, "-o", output)
    assert done.exit_code == 0 and "1 recording(s) are damaged and were read partially" in done.stderr, done.output
    report = tmp_path / f"{output.name}.failed.jsonl"
    if format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet").read_table(output)
        marked = [row.get("error") or "" for row in parquet.to_pylist() if row["file"].endswith("cut.wav")]
    else:
        text = output.read_bytes().decode("utf-8", "replace")
        marked = [line for line in text.splitlines() if "cut.wav" in line or line.startswith("  partial")]
    if command == "embed" or format in ("audacity", "rttm"):
        (line,) = map(json.loads, report.read_text().splitlines())
        assert line["file"].endswith("cut.wav") and "error" not in line
        assert line["partial"][0].startswith("partial: truncated or damaged after 0.50 s of 1.00 s")
    else:
        assert "partial: truncated or damaged after 0.50 s of 1.00 s" in "".join(marked)
        assert not report.exists()
    if command == "embed" and format != "parquet":
        (name,) = json.loads((tmp_path / "out.json").read_text())["partial"]
        assert name.endswith("cut.wav")


@pytest.mark.parametrize("per_window", [False, True])
def test_embeddings_of_damaged_recordings_are_marked_after_a_resume(per_window, clips, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out.npy"
    folder.mkdir()
    whole = (clips / "a.wav").read_bytes()
    (folder / "a.wav").write_bytes(whole[:16_044])
    (folder / "b.wav").write_text("this is no audio")
    asked = ["embed", folder, "-m", "dymn04_open", "--partial", "-o", output, *["--per-window"] * per_window]
    assert run(*asked).exit_code == 1 and journal_path(output).exists()
    first = (tmp_path / "out.npy.failed.jsonl").read_text(), output.read_bytes()
    (folder / "b.wav").write_bytes(whole)
    done = run(*asked, "--retry-failed")
    assert done.exit_code == 0 and "a.wav: partial" not in done.stderr and "lists them" in done.stderr
    (line,) = (tmp_path / "out.npy.failed.jsonl").read_text().splitlines()
    assert line in first[0] and "0.50 s of 1.00 s" in line
    rows = np.load(output)
    assert len(rows) == 2 and rows[0] == np.load(io.BytesIO(first[1]))[0]
    assert json.loads((tmp_path / "out.npy.json").read_text())["partial"] == [str(folder / "a.wav")]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("command", ["tag", "embed", "events"])
def test_runs_that_signals_interrupt_again_and_again_end_as_straight_ones(command, workers, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(int(workers))
    for i in range(40):
        sound = random.normal(0, 0.1, 32_000)
        soundfile.write(folder / f"{i}.{'mp3' if i % 2 else 'flac'}", sound, 32_000)
    asked = [command, folder, "-m", "dymn04_open", "--batch-size", "1", "--workers", workers, "--quiet"]
    straight, broken = tmp_path / "straight.csv", tmp_path / "broken.csv"
    assert run(*asked, "-o", straight).exit_code == 0
    log = Path(f"{journal_path(broken)}-wal")  # SQLite's, while the journal is open
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        words = [sys.executable, "-m", "dymn", *map(str, asked), "-o", str(broken)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as running:
            while not log.exists() and running.poll() is None:
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.15))
            running.send_signal(number)
            _, errors = running.communicate(timeout=60)
        if running.returncode == 0:
            break
        assert running.returncode == 128 + number and "Traceback" not in errors, errors
    done = run(*asked, "-o", broken)
    assert done.exit_code == 0 and done.stderr == ""
    assert broken.read_bytes() == straight.read_bytes()
    assert not broken.with_name("broken.csv.failed.jsonl").exists()
