"""`--segments`: what was found, cut out of the recordings sample for sample."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn.audio.reading import read
from dymn.audio.stored import stored
from dymn.cli import app
from dymn.errors import ConfigError
from dymn.inference.formats.layout import Span
from dymn.inference.segments import COLUMNS, UNFINISHED, SegmentCutter

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
CHOSEN = ("--model", "dymn04_open", "--labels", "Dog,Speech", "--threshold", 0.3, "--quiet")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def index(folder):
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def whole_numbers(subtype, channels=2, count=30_000):
    """Random samples as libsndfile reads the whole numbers of a subtype: in the upper bits of 32."""
    bits = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}[subtype]
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (count, channels))
    values[:2] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return (values << (32 - bits)).astype(np.int32)


@pytest.mark.parametrize(
    ("container", "subtype", "kept"),
    [
        *(("WAV", name, ("WAV", name)) for name in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")),
        *(("FLAC", name, ("FLAC", name)) for name in ("PCM_S8", "PCM_16", "PCM_24")),
        ("AIFF", "PCM_24", ("WAV", "PCM_24")),
        ("AIFF", "PCM_S8", ("WAV", "PCM_U8")),
    ],
)
def test_whole_numbers_are_cut_bit_for_bit(tmp_path, container, subtype, kept):
    path, samples = tmp_path / f"a.{container.lower()}", whole_numbers(subtype)
    soundfile.write(path, samples, 44_100, subtype, format=container)
    cutter = SegmentCutter(tmp_path / "out", 0)
    spans = [Span(0.1, 0.3, "Dog", 0.5), Span(0.25, 0.5, "Dog", 0.9), Span(0.0, 9.0, "Rain/hail", 0.4)]
    cutter.see(str(path), spans)
    assert cutter.cut() == []
    rows = index(tmp_path / "out")
    assert [(row["label"], row["score"]) for row in rows] == [
        ("Dog", "0.900000"),
        ("Dog", "0.500000"),
        ("Rain/hail", "0.400000"),
    ]
    assert rows[0]["path"] == f"Dog/0.900_a_0.250-0.500.{kept[0].lower()}"
    for row, (first, last) in zip(rows, [(11_025, 22_050), (4410, 13_230), (0, 30_000)], strict=True):
        info = soundfile.info(tmp_path / "out" / row["path"])
        assert (info.format, info.subtype, info.samplerate, info.channels) == (*kept, 44_100, 2)
        found, _ = soundfile.read(tmp_path / "out" / row["path"], dtype="int32")
        np.testing.assert_array_equal(found, samples[first:last])
        assert (float(row["recording_start"]), float(row["recording_end"])) == pytest.approx(
            (first / 44_100, last / 44_100), abs=1e-6
        )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Dog", "Rain_hail", "index.csv"]


def test_a_recording_that_cannot_be_cut_ends_no_other(tmp_path, monkeypatch):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", whole_numbers("PCM_16"), 44_100)
    written = soundfile.SoundFile.write

    def failing(self, samples):
        if "0.900_a" in str(self.name) or not len(writes):
            writes.append(1)
            raise OSError(28, "No space left on device")
        return written(self, samples)

    writes = []
    monkeypatch.setattr(soundfile.SoundFile, "write", failing)
    segments = SegmentCutter(tmp_path / "out", 0)
    segments.see(str(tmp_path / "a.wav"), [Span(0.1, 0.3, "Dog", 0.9)])
    segments.see(str(tmp_path / "b.wav"), [Span(0.1, 0.3, "Dog", 0.8)])
    (error,) = segments.cut()
    assert "a.wav: its segments cannot be extracted: No space left on device" in str(error)
    assert [row["path"] for row in index(tmp_path / "out")] == ["Dog/0.800_b_0.100-0.300.wav"]
    assert [path.name for path in (tmp_path / "out" / "Dog").iterdir()] == ["0.800_b_0.100-0.300.wav"]


@pytest.mark.parametrize(("subtype", "kind"), [("FLOAT", np.float32), ("DOUBLE", np.float64)])
def test_floats_are_cut_bit_for_bit(tmp_path, subtype, kind):
    samples = np.random.default_rng(0).normal(0, 1, (20_000, 3)).astype(kind)  # beyond full scale, too
    soundfile.write(tmp_path / "a.wav", samples, 96_000, subtype)
    cutter = SegmentCutter(tmp_path / "out", 0)
    cutter.see(str(tmp_path / "a.wav"), [Span(0.05, 0.1, "Bat", 1.0)])
    assert cutter.cut() == []
    (row,) = index(tmp_path / "out")
    found, rate = soundfile.read(tmp_path / "out" / row["path"], dtype=np.dtype(kind).name)
    assert rate == 96_000 and soundfile.info(tmp_path / "out" / row["path"]).subtype == subtype
    np.testing.assert_array_equal(found, samples[4800:9600])


def test_compressed_recordings_are_decoded_at_their_own_rate(tmp_path):
    path = EXAMPLES / "dog.ogg"
    rate = soundfile.info(path).samplerate
    cutter = SegmentCutter(tmp_path / "out", 0)
    cutter.see(str(path), [Span(1.0, 2.5, "Dog", 0.8)])
    assert cutter.cut() == []
    (row,) = index(tmp_path / "out")
    found, found_rate = soundfile.read(tmp_path / "out" / row["path"], dtype="float32", always_2d=True)
    assert found_rate == rate and found.shape[1] == soundfile.info(path).channels
    np.testing.assert_allclose(found.mean(1), read(path, rate)[rate : round(2.5 * rate)], atol=1e-6)


def test_only_what_lies_in_the_stretches_is_read_of_a_plain_file(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(2_000_000, np.int16), 32_000)
    with stored(tmp_path / "long.wav") as sound:
        spans = [(10, 20), (15, 30), (1_900_000, 1_900_100)]
        blocks = list(sound.blocks([(first / 32_000, last / 32_000) for first, last in spans]))
        assert sum(len(block.samples) for block in blocks) == 120


def chained(*parts):
    """Ogg Vorbis of several streams, each of so many seconds, a rate, and a number of channels."""
    streams = []
    for number, (seconds, rate, channels) in enumerate(parts):
        target, samples = io.BytesIO(), np.random.default_rng(number).normal(0, 0.1, (round(seconds * rate), channels))
        with soundfile.SoundFile(target, "w", rate, channels, "VORBIS", format="OGG") as file:
            for start in range(0, len(samples), 4096):  # libsndfile cannot take long blocks of Vorbis
                file.write(samples[start : start + 4096])
        streams.append(target.getvalue())
    return streams


def test_each_segment_has_the_rate_and_the_channels_of_its_part_of_the_recording(tmp_path):
    path, streams = tmp_path / "chain.ogg", chained((3, 44_100, 1), (4, 22_050, 2))
    path.write_bytes(b"".join(streams))
    cutter = SegmentCutter(tmp_path / "out", 0)
    spans = [Span(1, 2, "Dog", 0.9), Span(4, 6.5, "Dog", 0.8), Span(2, 5, "Cat", 0.7), Span(5, 7.5, "Cat", 0.6)]
    cutter.see(str(path), spans)
    assert cutter.cut() == []
    rows = [
        [row[name] for name in ("label", "recording_start", "recording_end", "sample_rate", "channels")]
        for row in index(tmp_path / "out")
    ]
    assert rows == [
        ["Cat", "3.000000", "5.000000", "22050", "2"],
        ["Cat", "2.000000", "3.000000", "44100", "1"],
        ["Cat", "5.000000", "7.000000", "22050", "2"],
        ["Dog", "1.000000", "2.000000", "44100", "1"],
        ["Dog", "4.000000", "6.500000", "22050", "2"],
    ]
    second, _ = soundfile.read(io.BytesIO(streams[1]), dtype="float32")
    found, rate = soundfile.read(tmp_path / "out" / "Dog" / "0.800_chain_4.000-6.500.wav", dtype="float32")
    assert rate == 22_050
    np.testing.assert_array_equal(found, second[22_050 : round(3.5 * 22_050)])
    found, _ = soundfile.read(tmp_path / "out" / "Cat" / "0.700_chain_2.000-5.000-2.wav", dtype="float32")
    np.testing.assert_array_equal(found, second[: 2 * 22_050])


@pytest.mark.parametrize("how", ["journal", "stream", "plot"])
def test_segments_of_a_recording_whose_name_is_no_text(tmp_path, misnamed, how):
    words = {"journal": ("-o", tmp_path / "a.csv"), "stream": (), "plot": ("--plot", tmp_path / "a.html")}[how]
    done = run("tag", misnamed.parent, "--per-window", *CHOSEN, *words, "--segments", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = index(tmp_path / "out")
    assert rows and {Path(row["recording"]).name for row in rows} == {"caf\N{REPLACEMENT CHARACTER}.ogg"}


def test_names_that_take_many_bytes_are_shortened(tmp_path):
    path = tmp_path / f"{78 * '声'}.wav"
    soundfile.write(path, np.full(8000, 0.1), 8000)
    cutter = SegmentCutter(tmp_path / "out", 0)
    cutter.see(str(path), [Span(0, 0.5, 90 * "音", 0.5)])
    assert cutter.cut() == []
    (row,) = index(tmp_path / "out")
    assert row["label"] == 90 * "音" and row["path"] == f"{53 * '音'}/0.500_{53 * '声'}_0.000-0.500.wav"
    assert (tmp_path / "out" / row["path"]).is_file()


def test_the_best_of_each_label_and_names_that_are_taken(tmp_path):
    cutter = SegmentCutter(tmp_path / "out", 2)
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", np.full(8000, 0.1), 8000)
        score = {"x": 0.5, "y": 0.5, "z": 0.4}[folder]
        cutter.see(str(tmp_path / folder / "a.wav"), [Span(0, 0.5, "..", score), Span(0.5, 1, "Cat", score / 2)])
    (tmp_path / "y" / "a.wav").unlink()
    (error,) = cutter.cut()
    assert "does not exist" in str(error)
    rows = index(tmp_path / "out")
    assert [(row["path"], row["label"]) for row in rows] == [
        ("_/0.500_a_0.000-0.500.wav", ".."),
        ("Cat/0.250_a_0.500-1.000.wav", "Cat"),
    ]
    assert list(rows[0]) == list(COLUMNS)
    with pytest.raises(ConfigError, match="is not empty"):
        SegmentCutter(tmp_path / "out", 2)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    (out / "Dog").mkdir(parents=True)
    for name in ("Dog/begun.wav", "Dog/own.wav", "own.wav"):
        (out / name).write_text("x")
    (tmp_path / "own.wav").write_text("x")
    (out / UNFINISHED).write_text("Dog/begun.wav\nDog/never.wav\n../own.wav\nown.wav\n")
    assert SegmentCutter(out, 0).cut() == []
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"own.wav", "index.csv"}
    assert (tmp_path / "own.wav").exists() and (out / "own.wav").exists()


def test_segments_of_a_run_agree_with_its_events(tmp_path):
    out, events = tmp_path / "out", tmp_path / "events.json"
    done = run("events", EXAMPLES / "dog.ogg", EXAMPLES / "speech.ogg", *CHOSEN, "-o", events, "--segments", out)
    assert done.exit_code == 0, done.output
    rows = index(out)
    found = [
        (event["label"], recording["file"], event["start"], event["end"])
        for recording in json.loads(events.read_text())["recordings"]
        for event in recording["events"]
    ]
    assert len(rows) == len(found) > 1
    for label, recording, start, end in found:
        (row,) = [
            row
            for row in rows
            if (row["label"], row["recording"]) == (label, recording)
            and float(row["recording_start"]) == pytest.approx(start, abs=1e-3)
        ]
        assert float(row["recording_end"]) == pytest.approx(end, abs=2e-3)
        assert soundfile.info(out / row["path"]).duration == pytest.approx(end - start, abs=3e-3)
    best = run("tag", EXAMPLES / "dog.ogg", *CHOSEN, "--segments", tmp_path / "tags", "--segments-per-class", 1)
    assert best.exit_code == 0 and "Dog" in best.stdout
    assert [row["label"] for row in index(tmp_path / "tags")] == ["Dog"]
    kept = run("tag", EXAMPLES / "dog.ogg", *CHOSEN, "-o", tmp_path / "tags.csv", "--segments", tmp_path / "kept")
    assert kept.exit_code == 0 and [row["label"] for row in index(tmp_path / "kept")] == ["Dog"]


def test_what_cannot_be_cut_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    refused = run("events", EXAMPLES / "dog.ogg", *CHOSEN, "--segments", tmp_path / "used")
    assert refused.exit_code == 2 and "is not empty" in refused.stderr
    refused = run("events", EXAMPLES / "dog.ogg", *CHOSEN, "--segments", tmp_path / "used" / "notes.txt" / "new")
    assert refused.exit_code == 1 and "new: Not a directory" in refused.stderr and not refused.stdout
    refused = run("tag", "-", *CHOSEN, "--segments", tmp_path / "new")
    assert refused.exit_code == 2 and "reads recordings again" in refused.stderr
    for command in ("tag", "events"):
        refused = run(command, EXAMPLES / "dog.ogg", *CHOSEN, "--segments-per-class", 100)
        assert refused.exit_code == 2 and "needs --segments FOLDER" in refused.stderr


def test_the_advised_command_replaces_the_segments(tmp_path):
    clips, rows = tmp_path / "clips", tmp_path / "events.csv"
    out = clips / "out"
    clips.mkdir()
    dog, rate = soundfile.read(EXAMPLES / "dog.ogg")
    soundfile.write(clips / "good.flac", dog, rate)
    (clips / "late.flac").write_text("not yet")
    words = ["events", clips, *CHOSEN[:-1], "--output", rows, "--segments", out]
    first = run(*words)
    assert first.exit_code == 1 and "1 of 2 recordings failed" in first.stderr and "--retry-failed" in first.stderr
    assert {Path(row["recording"]).name for row in index(out)} == {"good.flac"}
    assert run(*words).exit_code == 2
    (out / "mine.txt").write_text("mine")
    soundfile.write(clips / "late.flac", dog[: 5 * rate], rate)
    second = run(*words, "--retry-failed")
    assert second.exit_code == 0, second.output
    found = index(out)
    assert {Path(row["recording"]).name for row in found} == {"good.flac", "late.flac"}
    assert {row["path"] for row in found} == {path.relative_to(out).as_posix() for path in out.rglob("*.flac")}
    with rows.open(newline="") as file:
        assert {Path(row["file"]).name for row in csv.DictReader(file)} == {"good.flac", "late.flac"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    third = run(*words, "--retry-failed")
    assert third.exit_code == 0 and "nothing to try again" in third.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    refused = run("events", out / "Dog", *CHOSEN, "--output", rows, "--segments", out, "--retry-failed")
    assert refused.exit_code == 2 and "contains one of the given paths" in refused.stderr


def test_only_a_folder_of_segments_is_replaced(tmp_path):
    (tmp_path / "index.csv").write_text("path,label\nDog/a.wav,Dog\n")
    (tmp_path / "Dog").mkdir()
    (tmp_path / "Dog" / "a.wav").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        SegmentCutter(tmp_path, 0, replaces=True)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("folder", ["out", "clips/out"])
def test_a_killed_run_is_completed_by_the_same_command(tmp_path, folder):
    clips, out, rows = tmp_path / "clips", tmp_path / folder, tmp_path / "events.csv"
    clips.mkdir()
    dog, rate = soundfile.read(EXAMPLES / "dog.ogg")
    for i in range(4):
        soundfile.write(clips / f"{i}.flac", dog, rate)
    words = ["events", clips, *CHOSEN, "--output", rows, "--segments", out]
    code = (
        "import dymn.inference.segments as e, time; cut = e._cut\n"
        "e._cut = lambda *a: [*cut(*a), time.sleep(60)]\n"
        "import sys; from dymn.cli import app; app(sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)])
    deadline = time.monotonic() + 60
    while not list(out.glob("*/*.flac")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.csv").exists() and (out / UNFINISHED).exists()
    assert run(*words).exit_code == 0
    found = index(out)
    assert {Path(row["recording"]).name for row in found} == {f"{i}.flac" for i in range(4)}
    assert {row["path"] for row in found} == {p.relative_to(out).as_posix() for p in out.rglob("*.flac")}
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
