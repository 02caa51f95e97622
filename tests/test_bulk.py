"""Long runs: ended at any moment and gone on with, each recording is done once, and the output is that of one run."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import dymn.inference.journal
from dymn import Tagger
from dymn.audio import reading
from dymn.cli import app
from dymn.config import ModelCard
from dymn.errors import ConfigError, DataError
from dymn.inference.discovery import Discovery
from dymn.inference.embedding import Embedding
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.tags import TAGS
from dymn.inference.formats.writers import csv_rows, write_file
from dymn.inference.journal import Journal, journal_path
from dymn.inference.runs import Kind, compute, embeddings, results, tags
from dymn.inference.selection import TagSettings
from stubs import StubBackend

RATE = 8000
ORIGIN = Origin("1", "loudness", "", {"window": 1.0})
SETTINGS = {"model": "loudness", "parameters": {"window": 1.0}}
WINDOWS = TagSettings(window=1.0)


class Loudness(StubBackend):
    """Scores that cost nothing and tell recordings apart."""

    card = ModelCard(name="loudness", labels=("loud", "quiet"))

    def scores(self, waveforms):
        loudest = np.abs(waveforms).max(axis=1)
        return np.stack([loudest, 1 - loudest], axis=1).astype(np.float32)


class Killed(BaseException):
    """The end of a process, as far as a test can have it within its own."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twelve recordings, the long one of three windows, and two files that are none."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(12):
        path = folder / "abc"[i % 3] / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.full(RATE * 3 if i == 5 else 80, (i + 1) / 16, np.float32), RATE)
    for bad in ("b/bad.wav", "c/worse.wav"):
        (folder / bad).write_text("this is no audio")
    return folder


def find(journal, *paths):
    """List what paths name in a journal, and return the paths that name nothing."""
    with Discovery(map(str, paths), journal.output) as discovery:
        journal.find(discovery)
    return discovery.lost


def work(done, *, kill_after=-1, workers=0):
    """Return what tags paths and keeps in `done` what it was asked for; after so many results it is killed."""

    def run(paths):
        def seen():
            for path in paths:
                done.append(path.name)
                yield path

        for i, result in enumerate(Tagger(Loudness()).tag_files(seen(), WINDOWS, batch_size=3, workers=workers)):
            if i == kill_after:
                raise Killed
            yield result

    return run


def go_on(output, folder, done, *, per_window=True, run_settings=SETTINGS, fresh=False, retry=False, **how):
    """Run to the end, unless killed, and return the rows."""
    kind = tags(per_window)
    with Journal(output, run_settings, fresh=fresh, retry=retry) as journal:
        find(journal, folder)
        compute(journal, kind, work(done, **how))
        text = "".join(csv_rows(results(journal, kind), TAGS, ORIGIN))
        journal.complete(keep=journal.counts().failed > 0)
    return text


def plain(folder):
    """Return the rows of a run without a journal."""
    return "".join(csv_rows(Tagger(Loudness()).tag_files(reading.find(folder), WINDOWS), TAGS, ORIGIN))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_through_a_journal_gives_what_one_without_gives(clips, tmp_path, workers):
    done = []
    assert go_on(tmp_path / "out.csv", clips, done, workers=workers) == plain(clips)
    assert len(done) == len(set(done)) == 14


def test_a_journal_goes_when_nothing_failed(clips, tmp_path):
    go_on(tmp_path / "out.csv", clips / "a", [])
    assert list(tmp_path.iterdir()) == []


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_run_killed_with_a_torn_journal_resumes_to_the_same_output(clips, data):
    """What is on the disk is copied at the moment of death, the end of SQLite's log cut off or spoilt as by a loss of
    power.
    """
    before, after = [], []
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dymn.inference.journal, "COMMIT_SECONDS", 0.0)
        folder = Path(name)
        dead, alive = folder / "dead" / "out.csv", folder / "alive" / "out.csv"
        alive.parent.mkdir()
        n_before = data.draw(st.integers(0, 13), "killed after")
        journal = Journal(dead, SETTINGS)
        find(journal, clips)
        with contextlib.suppress(Killed):
            compute(journal, tags(True), work(before, kill_after=n_before))
        for file in dead.parent.iterdir():
            shutil.copy(file, alive.parent)
        journal._database.close()
        log = Path(f"{journal_path(alive)}-wal")
        content = bytearray(log.read_bytes())
        kept = data.draw(st.integers(0, len(content)) | st.just(len(content)), "bytes left")
        torn = content[:kept]
        if data.draw(st.booleans(), "last bytes spoilt"):
            torn[-20:] = bytes(20)
        log.write_bytes(torn)
        whole = torn == content
        assert go_on(alive, clips, after) == plain(clips)
        assert len(after) == len(set(after))
        if whole:
            assert len(after) == 14 - n_before, "what is committed is not done again"


def test_killed_again_and_again_each_recording_is_done_once(clips, tmp_path):
    done = []
    for _ in range(20):
        with contextlib.suppress(Killed):
            text = go_on(tmp_path / "out.csv", clips, done, kill_after=1)
            break
    assert text == plain(clips)
    assert len(set(done)) == 14
    assert len(done) <= 14 + 13 * 3, "only the batch of three in flight is begun again"


def test_what_changes_comes_and_goes_between_runs_is_seen(clips, tmp_path):
    folder, output, done = tmp_path / "in", tmp_path / "out.csv", []
    shutil.copytree(clips, folder)
    with contextlib.suppress(Killed):
        go_on(output, folder, done, kill_after=10)
    soundfile.write(folder / "a" / "0.wav", np.full(90, 0.01, np.float32), RATE)
    soundfile.write(folder / "a" / "00.wav", np.full(90, 0.02, np.float32), RATE)
    (folder / "a" / "3.wav").unlink()
    again = []
    assert go_on(output, folder, again) == plain(folder)
    assert {"0.wav", "00.wav"} < set(again) and not {"3.wav", "6.wav", "9.wav"} & set(again)


def test_what_changes_or_vanishes_during_a_run_is_a_failure_and_done_the_next_time(clips, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out.csv"
    shutil.copytree(clips / "a", folder)

    def spoiling(paths):
        for result in work([])(paths):
            if result.name.endswith("0.wav"):
                soundfile.write(folder / "0.wav", np.full(99, 0.3, np.float32), RATE)
                (folder / "9.wav").unlink()
            yield result

    with Journal(output, SETTINGS) as journal:
        find(journal, folder)
        compute(journal, tags(False), lambda paths: spoiling(paths))
        found = {Path(result.name).name: str(result.error or "") for result in results(journal, tags(False))}
    assert list(found) == ["0.wav", "3.wav", "6.wav", "9.wav"]
    assert "changed while it was read" in found["0.wav"] and found["9.wav"] and not found["3.wav"]
    done = []
    assert go_on(output, folder, done, per_window=False) == plain(folder)
    assert done == ["0.wav"]


def test_failures_are_tried_again_only_on_request(clips, tmp_path):
    output, folder = tmp_path / "out.csv", tmp_path / "in"
    shutil.copytree(clips / "b", folder)
    first = go_on(output, folder, [])
    assert first.count("is not a recording") == 1 and journal_path(output).exists()
    status = (folder / "bad.wav").stat()
    good = io.BytesIO()
    soundfile.write(good, np.zeros(80), RATE, format="WAV")
    (folder / "bad.wav").write_bytes(good.getvalue()[: status.st_size])
    os.utime(folder / "bad.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
    again = []
    text = go_on(output, folder, again, retry=True)
    assert again == ["bad.wav"]
    assert text == plain(folder) != first


def test_a_run_that_has_ended_is_begun_anew_and_one_that_has_not_wants_the_same_settings(clips, tmp_path):
    output, other = tmp_path / "out.csv", {"model": "loudness", "parameters": {"window": 2.0, "hop": 1.0}}
    with contextlib.suppress(Killed):
        go_on(output, clips, [], kill_after=5)
    with pytest.raises(ConfigError, match=r"window was 1\.0, now 2\.0; hop was null, now 1\.0.*--fresh"):
        go_on(output, clips, [], run_settings=other)
    done = []
    go_on(output, clips, done, run_settings=other, fresh=True)
    assert len(done) == 14
    for how in ({}, {"run_settings": SETTINGS}):
        done = []
        go_on(output, clips, done, **how)
        assert len(done) == 14
    with pytest.raises(ConfigError, match="window was 1"):
        go_on(output, clips, [], run_settings=other, retry=True)


def test_a_second_run_at_the_same_time_is_rejected(clips, tmp_path):
    output = tmp_path / "out.csv"
    (tmp_path / "link.csv").symlink_to(output)
    with Journal(output, SETTINGS) as journal:
        find(journal, clips / "a")
        for name in ("out.csv", "link.csv"):
            for fresh in (False, True):
                with pytest.raises(ConfigError, match="Another run is writing"):
                    Journal(tmp_path / name, SETTINGS, fresh=fresh)
        compute(journal, tags(False), work([]))
    with Journal(output, SETTINGS) as journal:
        assert journal.counts() == (4, 4, 0)


def test_a_damaged_journal_is_named_and_fresh_removes_it(clips, tmp_path):
    output = tmp_path / "out.csv"
    journal_path(output).write_bytes(b"nothing that SQLite would write" * 100)
    with pytest.raises(DataError, match=r"damaged.*--fresh"):
        Journal(output, SETTINGS)
    go_on(output, clips / "a", [], fresh=True)


def test_a_full_disk_ends_the_run_and_nothing_is_lost(clips, tmp_path, monkeypatch):
    """SQLite itself says that there is no more room, as it does where the system tells it so."""
    monkeypatch.setattr(dymn.inference.journal, "COMMIT_SECONDS", 0.0)
    output, again, kind = tmp_path / "out.csv", [], tags(False)
    big = Kind(lambda found: kind.pack(found) + b" " * 1500, kind.unpack, kind.result)
    with Journal(output, SETTINGS) as journal:
        find(journal, clips)
        pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
        journal._database.execute(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(OSError, match="No space left") as caught:
            compute(journal, big, work([]))
    assert caught.value.filename == str(journal_path(output))
    assert go_on(output, clips, again, per_window=False) == plain(clips)
    assert 0 < len(again) < 14


def test_a_result_that_is_missing_is_no_output(clips, tmp_path):
    with Journal(tmp_path / "out.csv", SETTINGS) as journal:
        find(journal, clips)
        with pytest.raises(DataError, match="has no result for"):
            list(results(journal, tags(False)))
    assert list(tmp_path.iterdir()) == []


def test_recordings_are_listed_once_in_the_order_of_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/1.wav", "b/a/1.wav", "b-/1.wav", "a.wav", "b/.hidden.wav", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    Path(os.fsdecode(b"b/\xff\xe9.wav")).write_bytes(b"")
    (tmp_path / "b" / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b" / "loop.wav").symlink_to("loop.wav")
    with Journal(tmp_path / "out.csv", SETTINGS) as journal:
        lost = find(journal, "b/1.wav", "b/a/../1.wav", ".", tmp_path, "nowhere*", "gone.wav")
        found = [task.name for task in journal.to_do()]
    assert [name for name, _ in lost] == ["nowhere*"]
    assert found == [
        Path("b/1.wav"),
        *(path for path in reading.find(".") if path != Path("b/1.wav")),
        Path("gone.wav"),
    ]
    assert len(found) == 7


def test_the_stamp_is_that_of_the_file_that_is_opened(clips, tmp_path):
    shutil.copytree(clips / "a", tmp_path / "in" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "in" / "a", target_is_directory=True)
    given = tmp_path / "link" / ".." / "a" / "0.wav"
    with Journal(tmp_path / "out.csv", SETTINGS) as journal:
        find(journal, given)
        (task,) = journal.to_do()
    assert task.stamp.size == given.stat().st_size


def test_the_output_is_no_recording(clips, tmp_path):
    shutil.copytree(clips / "a", tmp_path / "in")
    with (
        Journal(tmp_path / "in" / "0.wav", SETTINGS) as journal,
        pytest.raises(ConfigError, match="one of the recordings"),
    ):
        find(journal, tmp_path)
    assert len(list((tmp_path / "in").iterdir())) == 4


def test_embeddings_come_back_bit_for_bit():
    random = np.random.default_rng(0)
    windows, spans = random.standard_normal((3, 5)).astype(np.float32), random.random((3, 2))
    found = Embedding("name", 2.5, windows[0], windows, spans)
    alone, parts = embeddings(False, 5), embeddings(True, 5)
    whole, cut = alone.unpack("name", 2.5, alone.pack(found)), parts.unpack("name", 2.5, parts.pack(found))
    np.testing.assert_array_equal(whole.vector, found.vector)
    np.testing.assert_array_equal(cut.windows, windows)
    np.testing.assert_array_equal(cut.spans, spans)


def test_parquet_has_the_rows_of_csv(clips):
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    write_file(Tagger(Loudness()).tag_files(reading.find(clips), WINDOWS), TAGS, ORIGIN, "parquet", file)
    table = parquet.read_table(io.BytesIO(file.getvalue()))
    rows = list(csv.DictReader(io.StringIO(plain(clips))))
    assert table["file"].to_pylist() == [row["file"] for row in rows]
    assert [score or 0 for score in table["score"].to_pylist()] == pytest.approx(
        [float(row["score"] or 0) for row in rows], abs=1e-6
    )
    assert [error or "" for error in table["error"].to_pylist()] == [row["error"] for row in rows]
    assert json.loads(table.schema.metadata[b"dymn"]) == ORIGIN.to_dict()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    from dymn import create_model
    from dymn.models import pretrained

    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=("a", "b"))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("tag", "csv"),
        ("tag", "jsonl"),
        ("tag", "parquet"),
        ("embed", "parquet"),
        ("embed", "npy"),
        ("events", "csv"),
        ("events", "parquet"),
    ],
)
def test_an_interrupted_command_goes_on_to_the_same_bytes(command, ending, model, clips, tmp_path, monkeypatch):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    asked = [clips, "-m", model, "--window", "1", "--workers", "1", "--batch-size", "1"]
    straight, broken = tmp_path / f"straight.{ending}", tmp_path / f"broken.{ending}"
    first = run(command, *asked, "-o", straight)
    assert first.exit_code == 1 and "2 of 14 recordings failed" in first.stderr
    put, calls = Journal.put, []

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 8:
            raise KeyboardInterrupt
        put(self, *arguments)

    monkeypatch.setattr(Journal, "put", interrupted)
    stopped = run(command, *asked, "-o", broken)
    assert stopped.exit_code == 130
    assert "7 of 14 recordings are kept in" in stopped.stderr and not broken.exists()
    refused = run(command, *asked, "-o", broken, "--hop", "0.5")
    assert refused.exit_code == 2 and re.search(r"hop was [\d.]+, now 0.5", refused.stderr)
    ended = run(command, *asked, "-o", broken)
    assert ended.exit_code == 1, ended.output
    assert "7 of 14 recordings are already complete" in ended.stderr
    assert len(calls) == 8 + 7, "each is done once"
    assert broken.read_bytes() == straight.read_bytes()
    report = [json.loads(line) for line in (tmp_path / f"broken.{ending}.failed.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in report] == ["bad.wav", "worse.wav"]
    assert all("not a recording" in line["error"] for line in report)
    retried = run(command, *asked, "-o", broken, "--retry-failed")
    assert retried.exit_code == 1 and len(calls) == 15 + 2


def test_a_folder_that_cannot_be_listed_is_a_failure_that_can_be_tried_again(model, clips, tmp_path, monkeypatch):
    shutil.copytree(clips / "a", tmp_path / "in" / "a")
    shutil.copytree(clips / "b", tmp_path / "in" / "closed", ignore=shutil.ignore_patterns("bad.wav"))
    scandir, output = os.scandir, tmp_path / "out.csv"

    def refused(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    words = ("tag", tmp_path / "in", "-m", model, "-q", "-o", output)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        done = run(*words)
    assert done.exit_code == 1 and "closed cannot be listed" in done.stderr
    with output.open(newline="") as file:
        files = {row["file"]: row["error"] for row in csv.DictReader(file)}
    assert len(files) == 5 and "Permission denied" in files[str(tmp_path / "in" / "closed")]
    assert "cannot be listed" in (tmp_path / "out.csv.failed.jsonl").read_text()
    put, calls = Journal.put, []
    monkeypatch.setattr(Journal, "put", lambda self, *arguments: calls.append(arguments) or put(self, *arguments))
    again = run(*words, "--retry-failed")
    assert again.exit_code == 0 and len(calls) == 4, again.output
    assert not (tmp_path / "out.csv.failed.jsonl").exists() and not journal_path(output).exists()


@pytest.mark.parametrize("command", ["tag", "embed"])
def test_without_failures_there_is_nothing_to_try_again(command, model, clips, tmp_path, monkeypatch):
    output, calls, put = tmp_path / "out.csv", [], Journal.put
    monkeypatch.setattr(Journal, "put", lambda self, *arguments: calls.append(arguments) or put(self, *arguments))
    words = (command, clips / "a", "-m", model, "-o", output, "--retry-failed")
    first = run(*words)
    assert first.exit_code == 0 and "No journal of" in first.stderr and len(calls) == 4
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = run(*words)
    assert again.exit_code == 0 and "nothing to try again" in again.stderr and len(calls) == 4
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    alone = tmp_path / "alone.csv"  # written without a journal, with a failure
    assert run(command, clips / "b" / "bad.wav", "-m", model, "-o", alone).exit_code == 1
    assert not journal_path(alone).exists()
    tried = run(command, clips / "a", "-m", model, "-o", alone, "--retry-failed")
    assert tried.exit_code == 0 and "No journal of" in tried.stderr and len(calls) == 8


def test_options_of_journals_want_a_journal(model, clips):
    refused = run("tag", clips, "-m", model, "--fresh")
    assert refused.exit_code == 2 and "--output" in refused.stderr
    assert run("tag", clips, "-m", model, "-f", "parquet").exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_run_that_a_signal_ended_is_resumed(number, code, model, tmp_path):
    """Real signals, at whatever moment they come; 300 clips, so that it is in the midst of them."""
    folder, output = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    for i in range(300):
        soundfile.write(folder / f"{i}.wav", np.full(8000, i / 400, np.float32), RATE)
    command = [
        sys.executable,
        "-m",
        "dymn",
        "tag",
        str(folder),
        "-m",
        str(model),
        "-o",
        str(output),
        "--batch-size",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as running:
        while not journal_path(output).exists() and running.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        begun = time.monotonic()
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    if running.returncode == 0:
        pytest.skip("it had ended before the signal came")
    assert running.returncode == code, errors
    assert not output.exists() and b"Traceback" not in errors
    ended = run("tag", folder, "-m", model, "-o", output, "--batch-size", "1")
    assert ended.exit_code == 0, ended.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.csv"]
    straight = run("tag", folder, "-m", model, "-f", "csv", "--batch-size", "1")
    assert output.read_text(encoding="utf-8") == straight.stdout
