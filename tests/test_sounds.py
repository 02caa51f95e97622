"""Sounds that begin and end: equal to the events of files, gaps, clips of them, memory over long times, the command."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from datetime import datetime

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn import Tagger, create_model
from dymn.audio.microphone import Chunk, Notice
from dymn.cli import app
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import AudioError, ConfigError
from dymn.inference.events import EventSettings
from dymn.inference.sounds import Sounds
from dymn.live.clips import MOST_OPEN, ClipRecorder, ClipSettings, plain
from dymn.live.listening import listen as hear
from dymn.live.messages import Messages, iso
from dymn.models import pretrained
from stubs import StubBackend
from test_network_sound import encoded, server, stream

RATE = 32_000
LABELS = ("Loud", "Later")


class Levels(StubBackend):
    """Scores are the mean level of a window, and that of its second half."""

    def __init__(self, rate=RATE):
        front_end = FrontEndConfig(sample_rate=rate, f_max=0.4 * rate)
        self.card = ModelCard(name="levels", labels=LABELS, front_end=front_end)

    def scores(self, samples):
        level = np.abs(np.asarray(samples))
        half = level.shape[1] // 2
        return np.stack([level.mean(axis=1), level[:, half:].mean(axis=1)], axis=1).astype(np.float32)


BACKEND = Levels()
SETTINGS = EventSettings(threshold=0.5, off_threshold=0.2, min_gap=0.1, window=0.2, hop=0.1)


def sound_of(levels, seconds=0.1):
    return np.repeat(np.array(levels, np.float32), round(seconds * RATE))


def fed(sounds, samples, cuts=()):
    found = [sound for piece in np.split(samples, sorted(cuts)) for sound in sounds.feed(piece)]
    return found + sounds.finish()


@settings(deadline=None, max_examples=80)
@given(
    levels=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.55, 0.9]), min_size=3, max_size=30),
    threshold=st.sampled_from([0.3, 0.5]),
    off=st.sampled_from([0.05, 0.15, 0.3]),
    min_gap=st.sampled_from([0.0, 0.05, 0.1, 0.3, 10.0]),
    min_duration=st.sampled_from([0.0, 0.15, 0.4]),
    data=st.data(),
)
def test_sounds_are_the_events_of_a_file(levels, threshold, off, min_gap, min_duration, data):
    samples = sound_of(levels)
    wanted = EventSettings(
        threshold=threshold, off_threshold=off, min_gap=min_gap, min_duration=min_duration, window=0.2, hop=0.1
    )
    events = Tagger(BACKEND).events(
        samples, sample_rate=RATE, threshold=threshold, off_threshold=off, min_gap=min_gap,
        min_duration=min_duration, window=0.2, hop=0.1,
    )  # fmt: skip
    cuts = data.draw(st.lists(st.integers(0, len(samples)), max_size=8))
    found = fed(Sounds(BACKEND, RATE, wanted), samples, cuts)
    ends = sorted((sound.event for sound in found if sound.kind == "end"), key=lambda e: (e.start, -e.score, e.label))
    assert [event.label for event in ends] == [event.label for event in events]
    for live, file in zip(ends, events, strict=True):
        assert live[1:] == pytest.approx(file[1:], abs=1e-6)
    for label in LABELS:  # starts and ends alternate, and a start is never later than its end
        told = [sound for sound in found if sound.event.label == label]
        assert [sound.kind for sound in told] == ["start", "end"] * (len(told) // 2)
        for start, end in zip(told[::2], told[1::2], strict=True):
            assert start.event.start == end.event.start and start.event.score <= end.event.score


def test_a_start_is_told_when_it_is_heard_and_an_end_after_the_gap():
    sounds, came = Sounds(BACKEND, RATE, SETTINGS), []
    samples = sound_of([0] * 5 + [0.9] * 5 + [0] * 10)
    for i in range(0, len(samples), RATE // 100):
        came += [
            (round((i / RATE) + 0.01, 2), *sound) for sound in sounds.feed(samples[i : i + RATE // 100])
            if sound.event.label == "Loud"
        ]  # fmt: skip
    (start_at, first, begun), (end_at, last, event) = came
    assert (first, last) == ("start", "end")
    assert begun.start == pytest.approx(0.45) and event.end == pytest.approx(1.05) and event.score > begun.score - 1e-6
    assert start_at == pytest.approx(0.725, abs=0.01)  # the first window with the threshold, and what completes it
    assert 1.2 < end_at <= 1.36


def test_gaps_join_or_part_sounds_and_a_lost_source_ends_them():
    loud = sound_of([0.9] * 6)
    for seconds, joined in ((0.02, True), (3.0, False)):
        sounds = Sounds(BACKEND, RATE, EventSettings(threshold=0.5, min_gap=0.3, window=0.2, hop=0.1, labels=("Loud",)))
        found = sounds.feed(loud) + sounds.feed(loud, round(seconds * RATE)) + sounds.finish()
        assert [sound.kind for sound in found] == ["start", "end"] * (1 if joined else 2)
        assert found[-1].event.end == pytest.approx(1.2 + seconds)
    sounds = Sounds(BACKEND, RATE, SETTINGS)
    sounds.feed(loud)
    assert {sound.kind for sound in sounds.lose()} == {"end"} and sounds.lose() == []
    (start, *_) = sounds.feed(loud, 60 * RATE)
    assert start.kind == "start" and start.event.start == pytest.approx(60.6)
    with pytest.raises(ConfigError, match="Lauder"):
        Sounds(BACKEND, RATE, EventSettings(labels=("Lauder",)))


def test_specific_sounds_stand_for_general_ones_and_the_channel_counts():
    class Animals(Levels):
        def __init__(self):
            self.card = ModelCard(name="animals", labels=("Animal", "Dog"))

    both = np.stack([sound_of([0.9] * 6), sound_of([0.0] * 6)], axis=1)
    told = {}
    for specific, channel in ((False, "left"), (True, "left"), (True, "right"), (False, "mix")):
        wanted = EventSettings(threshold=0.5, window=0.2, hop=0.1, specific=specific, channel=channel)
        told[specific, channel] = {sound.event.label for sound in fed(Sounds(Animals(), RATE, wanted), both)}
    assert told == {
        (False, "left"): {"Animal", "Dog"}, (True, "left"): {"Dog"}, (True, "right"): set(), (False, "mix"): set(),
    }  # fmt: skip
    # While the dog fades, its score falls below the threshold first.
    wanted = EventSettings(threshold=0.5, off_threshold=0.2, window=0.2, hop=0.1, specific=True, min_duration=0.0)
    fading = sound_of([0.9, 0.9, 0.9, 0.7, 0.4, 0.7, 0.9, 0.0, 0.0, 0.0])
    assert [sound.event.label for sound in fed(Sounds(Animals(), RATE, wanted), fading)] == ["Dog", "Dog"]
    with pytest.raises(ConfigError, match="For live sound"):
        Sounds(BACKEND, RATE, EventSettings(speed=0.5))


def test_thresholds_of_the_model_are_used():
    backend = Levels()
    backend.card = ModelCard(name="x", labels=LABELS, provenance={"thresholds": {"auto": [0.5, 0.95]}})
    wanted = EventSettings(threshold="auto", window=0.2, hop=0.1)
    assert {sound.event.label for sound in fed(Sounds(backend, RATE, wanted), sound_of([0.9] * 6))} == {"Loud"}


# Clips


def said(event, label="Dog", **fields):
    return {"event": event, "label": label, "score": 0.8, "time": "2026-05-01T07:30:12.480+02:00", **fields}


def hears(clips, samples, chunk=700, dropped=0):
    found = []
    for begin in range(0, len(samples), chunk):
        found += clips.feed(samples[begin : begin + chunk], dropped if begin == 0 else 0)
    return found


@pytest.mark.parametrize("kind", ["flac", "wav"])
@pytest.mark.parametrize("channels", [0, 2])
def test_a_clip_has_the_very_samples(tmp_path, kind, channels):
    rng = np.random.default_rng(0)
    samples = rng.integers(-32768, 32768, (8000, channels) if channels else 8000).astype(np.int16)
    clips = ClipRecorder(ClipSettings(tmp_path / "new", 1.0, 0.5, kind, delay=1.0), 1000, pytest.fail)
    hears(clips, samples[:3200])
    clips.start(said("start", start=2.5))
    hears(clips, samples[3200:5000])
    assert not list(tmp_path.glob("*/D*"))
    clips.end(said("end", start=2.5, end=4.2))
    (saved,) = [*clips.feed(samples[5000:5100])]
    assert saved["event"] == "saved" and saved["seconds"] == 3.2
    (path,) = (tmp_path / "new").iterdir()
    assert saved["path"] == str(path) and path.name == f"Dog_0.80_20260501_053012Z.{kind}"
    read, rate = soundfile.read(path, dtype="int16")
    assert rate == 1000
    np.testing.assert_array_equal(read, samples[1500:4700])


def test_a_clip_may_go_on_for_longer_than_what_is_in_memory(tmp_path):
    """After the end of a sound is known, its clip needs more seconds than those before a start and of the delay."""
    samples = np.random.default_rng(0).integers(-32768, 32768, 12_000).astype(np.int16)
    clips = ClipRecorder(ClipSettings(tmp_path, 0.0, 8.0, "wav", delay=0.5), 1000, pytest.fail)
    hears(clips, samples[:1200])
    clips.start(said("start", start=1.0))
    hears(clips, samples[1200:2400])
    clips.end(said("end", start=1.0, end=2.0))
    (saved,) = hears(clips, samples[2400:])
    read, _ = soundfile.read(saved["path"], dtype="int16")
    np.testing.assert_array_equal(read, samples[1000:10_000])


def test_clips_are_bounded_in_number_length_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("dymn.live.clips.MOST_SECONDS", 3.0)
    (tmp_path / "mine.flac").touch()
    notes = []
    clips = ClipRecorder(ClipSettings(tmp_path, 0.5, 0.5, keep=3, delay=1.0), 1000, notes.append)
    second, at = np.zeros(1000, np.int16), 0
    for _ in range(6):
        hears(clips, second)
        clips.start(said("start", start=at + 0.5))
        hears(clips, np.tile(second, 5))
        clips.end(said("end", start=at + 0.5, end=at + 5.0))
        hears(clips, second)
        at += 7
    assert (tmp_path / "mine.flac").exists() and len(list(tmp_path.glob("Dog*"))) == 3
    assert {soundfile.info(path).frames for path in tmp_path.glob("Dog*")} == {3000}
    assert sum(len(samples) for _, samples in clips._recent._chunks) <= 1500 + 2 * 700
    for i in range(MOST_OPEN + 5):
        clips.start(said("start", f"label {i}", start=float(at)))
    assert len(notes) == 3 and "more than 16 sounds at once" in notes[0]  # the first, the second, the fourth
    list(clips.close())
    assert not list(tmp_path.glob(".*"))


def test_a_gap_within_a_clip_is_silence_and_the_end_completes_it(tmp_path):
    clips = ClipRecorder(ClipSettings(tmp_path, 0.5, 0.5, "wav", delay=1.0), 1000, pytest.fail)
    ones = np.full(1000, 1000, np.int16)
    hears(clips, ones)
    clips.start(said("start", start=0.8))
    hears(clips, ones, dropped=300)
    clips.end(said("end", start=0.8, end=2.0))
    (saved,) = clips.close()
    read, _ = soundfile.read(saved["path"], dtype="int16")
    np.testing.assert_array_equal(read, np.repeat([1000, 0, 1000], [700, 300, 1000]))


def test_a_folder_that_cannot_be_written_is_said_and_ends_nothing(tmp_path):
    notes = []
    clips = ClipRecorder(ClipSettings(tmp_path / "clips"), 1000, notes.append)
    (tmp_path / "clips").rmdir()
    clips.start(said("start", start=0.0))
    clips.end(said("end", start=0.0, end=1.0))
    assert [*hears(clips, np.zeros(5000, np.int16)), *clips.close()] == []
    assert len(notes) == 1 and "1 clips were not saved" in notes[0]


def test_hostile_labels_make_plain_names():
    assert plain("../../etc/passwd") == "etc-passwd" and plain("...") == "sound" and len(plain("x" * 500)) == 60
    assert plain("Domestic animals, pets") == "Domestic-animals-pets" and "\0" not in plain("a\0b\n")


# Listening


def test_messages_of_a_source_that_is_lost_and_back(tmp_path):
    loud, quiet = sound_of([0.9] * 6)[:, None], sound_of([0.0] * 8)[:, None]
    nothing = np.zeros((0, 1), np.float32)
    chunks = [
        Chunk(quiet, 0), Chunk(loud, 0), Chunk(nothing, 0, Notice("lost", "it has ended")),
        Chunk(nothing, 0, Notice("back", "", 60.0)), Chunk(loud, 60 * RATE), Chunk(quiet, 0),
    ]  # fmt: skip
    told = []
    only = EventSettings(threshold=0.5, min_gap=0.1, window=0.2, hop=0.1, labels=("Loud",))
    clips = ClipRecorder(ClipSettings(tmp_path, 0.2, 0.2, delay=1.0), RATE, pytest.fail)
    hear(chunks, Sounds(BACKEND, RATE, only), Messages("camera", lambda: 1_800_000_000.0), [told.append], clips)
    assert [message["event"] for message in told] == [
        "start", "end", "saved", "lost", "back", "start", "end", "saved",
    ]  # fmt: skip
    read, _ = soundfile.read(next(message["path"] for message in told if message["event"] == "saved"))
    assert np.abs(read[-RATE // 10 :]).min() > 0  # no silence for the time without audio
    assert {message["source"] for message in told} == {"camera"}
    first = next(message for message in told if message["event"] == "end")
    assert first["duration"] == pytest.approx(first["end"] - first["start"], abs=2e-3)
    assert [m["reason"] for m in told if m["event"] == "lost"] == ["it has ended"]
    assert [m["seconds"] for m in told if m["event"] == "back"] == [60.0]
    times = [datetime.fromisoformat(message["time"]).timestamp() for message in told if message["event"] == "start"]
    assert times == [pytest.approx(1_800_000_000 + m["start"], abs=2e-3) for m in told if m["event"] == "start"]
    assert times[1] - times[0] == pytest.approx(60.6, abs=0.2)


def test_a_source_is_not_back_before_it_was_lost():
    """A burst of audio after the return shows that second 0 was earlier than assumed."""
    zero = [100.0]
    messages = Messages("camera", lambda: zero[0])
    lost = messages.notice(Notice("lost", "why"), 20.0)
    zero[0] = 97.0
    back = messages.notice(Notice("back", "", 0.5), 20.5)
    assert back["time"] == lost["time"] == iso(120.0)
    assert messages.notice(Notice("gap", "why", 1.0), 24.0)["time"] == iso(121.0)
    zero[0] -= 3600.0  # the system clock has been set back
    assert messages.notice(Notice("gap", "why", 1.0), 25.0)["time"] == iso(122.0 - 3600.0)


def test_an_interruption_ends_sounds_and_completes_clips(tmp_path):
    def chunks():
        yield Chunk(sound_of([0.9] * 8)[:, None], 0)
        raise AudioError("the microphone is gone")

    told = []
    clips = ClipRecorder(ClipSettings(tmp_path, delay=1.0), RATE, pytest.fail)
    with pytest.raises(AudioError, match="gone"):
        hear(chunks(), Sounds(BACKEND, RATE, SETTINGS), Messages("x", lambda: 0.0), [told.append], clips)
    assert sorted(message["event"] for message in told) == ["end", "end", "saved", "saved", "start", "start"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="locks of files are those of POSIX")
def test_what_a_killed_run_left_is_removed_and_what_another_writes_is_kept(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from dymn.live.clips import ClipRecorder, ClipSettings\n"
        "clips = ClipRecorder(ClipSettings(Path(sys.argv[1])), 1000, print)\n"
        "clips.start({'label': 'Dog', 'start': 0.0})\n"
        "print('begun', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"begun\n"
        ClipRecorder(ClipSettings(tmp_path), 1000, pytest.fail)
        assert len(list(tmp_path.glob(".dymn-clip-*.part"))) == 1
        other.kill()
    ClipRecorder(ClipSettings(tmp_path), 1000, pytest.fail)
    assert not list(tmp_path.iterdir())


def test_memory_stays_flat_over_a_day(tmp_path):
    """A day in blocks of half a minute, a sound in each, without the network: what is kept is bounded."""
    wanted = EventSettings(threshold=0.5, window=10.0, hop=10.0, min_gap=1.0, labels=("Loud",))
    block = np.concatenate([np.full(15_000, 0.9, np.float32), np.zeros(15_000, np.float32)])
    backend = Levels(1000)
    sounds, messages, count = Sounds(backend, 1000, wanted), Messages("x", lambda: 0.0), 0
    clips = ClipRecorder(ClipSettings(tmp_path, keep=2, delay=15.0), 1000, pytest.fail)
    held = []
    tracemalloc.start()
    try:
        for i in range(24 * 120):
            list(clips.feed(block))
            for sound in sounds.feed(block):
                message = messages.sound(sound)
                count += 1
                if i % 100 == 0:
                    (clips.start if sound.kind == "start" else clips.end)(message)
            if i % 720 == 719:
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        list(clips.close())
    assert count >= 2 * 24 * 120 - 2
    assert max(held) - held[0] < 100_000


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=("Dog", "Cat"))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


def run(*arguments, **options):
    return CliRunner().invoke(app, ["listen", *map(str, arguments)], **options)


PCM = (np.random.default_rng(0).normal(0, 0.1, 16_000 * 5) * 32767).astype("<i2").tobytes()


def test_events_of_a_pipe_with_actions(model, tmp_path):
    out, log = tmp_path / "out" / "sounds.jsonl", tmp_path / "log"
    arguments = ["-", "--rate", 16_000, "--model", model, "--threshold", 0.01, "--name", "garden", "--labels", "Dog"]
    command = f"{sys.executable} -c 'import sys; open(sys.argv[1], \"a\").write(sys.argv[2] + chr(10))' {log} {{label}}"
    done = run(*arguments, "--output", out, "--save", tmp_path / "clips", "--before", 0.5, "--run", command, input=PCM)
    assert done.exit_code == 0, done.output
    messages = [json.loads(line) for line in out.read_text().splitlines()]
    assert [message["event"] for message in messages] == ["start", "end", "saved"]
    start, end, saved = messages
    assert start["source"] == "garden" and end["duration"] == pytest.approx(5.0) and end["end"] == pytest.approx(5.0)
    (clip,) = (tmp_path / "clips").iterdir()
    assert saved["path"] == str(clip) and soundfile.info(clip).frames == 80_000
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["start", "end", "saved"] and lines[1].endswith("Dog  (5.00 s)")
    assert log.read_text() == "Dog\n"
    out.write_bytes(out.read_bytes()[:-20])  # as a kill would leave it
    again = run(*arguments, "--output", out, "--events", "--format", "jsonl", input=PCM)
    assert [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["start", "end"]
    added = out.read_text().splitlines()
    assert len(added) == 5 and [json.loads(line)["event"] for line in added[3:]] == ["start", "end"]


def test_windows_go_to_a_file_too(model, tmp_path):
    out = tmp_path / "windows.jsonl"
    done = run("-", "--rate", 16_000, "--model", model, "--output", out, input=PCM)
    assert done.exit_code == 0, done.output
    windows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(windows) == len(done.stdout.splitlines()) == 7
    assert set(windows[0]) == {"start", "end", "tags", "dropped"}


def test_an_address_is_heard_to_its_end(model, tmp_path):
    data = encoded(3.0, "MP3")
    with server(stream(data, length=len(data))) as url:
        done = run(url, "--model", model, "--format", "jsonl", "--threshold", 0)
    assert done.exit_code == 0, done.output
    windows = [json.loads(line) for line in done.stdout.splitlines()]
    assert windows[0]["start"] == 0.0 and windows[-1]["end"] == pytest.approx(3.0, abs=0.1)
    assert windows[0]["time"].startswith("20")
    assert f"Listening to {url} at 16000 Hz" in done.stderr


def test_a_lost_address_is_said_and_given_up(model):
    data = encoded(1.0, "MP3")
    with server(stream(data), *[lambda *_: None] * 9) as url:
        done = run(url, "--model", model, "--events", "--give-up", 0.5, "--format", "jsonl")
    assert done.exit_code == 1
    assert f"{url} is lost" in done.stderr and "--give-up" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "lost"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "--rate", 16_000, "--events", "--top-k", 3], "--top-k applies to windows"),
        (["-", "--rate", 16_000, "--events", "--threshold", 0], "threshold is 0"),
        (
            ["-", "--rate", 16_000, "--off-threshold", 0.9],
            "at most threshold, which is 0.3. Lower it, or raise threshold (--threshold)",
        ),
        (["-", "--rate", 16_000, "--events", "--window", 1, "--hop", 2], "would leave out parts"),
        (["-", "--rate", 16_000, "--run", "say {size}"], "{size}"),
        (["-", "--rate", 16_000, "--run", "say '{label}"], "quotes"),
        (["-", "--rate", 16_000, "--webhook", "ftp://x/y"], "--webhook must be"),
        (["-", "--rate", 16_000, "--mqtt", "http://x/y"], "--mqtt must be"),
        (["gopher://x/y"], "rtsps"),
        (["http://radio.example/x", "--rate", 16_000], "do not apply to URLs"),
        (["http://radio.example/x", "--encoding", "s16le"], "--encoding applies to standard input (-)"),
        (["http://radio.example/x", "--channels", 1], "--channels applies to standard input (-)"),
        (["-", "--rate", 16_000, "--give-up", 5], "--give-up applies to URLs"),
        (["-", "--rate", 16_000, "--name", "garden"], "need --events"),
        (["-", "--rate", 16_000, "--before", 1], "--before applies to saved sounds, which need --save"),
        (["-", "--rate", 16_000, "--after", 2, "--events"], "need --save"),
        (["-", "--rate", 16_000, "--keep", 5, "--run", "say x"], "need --save"),
        (["-", "--rate", 16_000, "--save-format", "flac"], "need --save"),
    ],
)
def test_wrong_use_is_told_before_a_model_is_loaded(arguments, message, tmp_path):
    done = run(*arguments, "--model", tmp_path / "no model")
    assert done.exit_code == 2, done.output
    assert message in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_sounds_and_saves_them(model, tmp_path):
    command = [sys.executable, "-m", "dymn", "listen", "-", "--rate", "16000", "--model", str(model), "--threshold"]
    command += ["0.01", "--labels", "Dog", "--format", "jsonl", "--save", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(PCM)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["event"] == "start"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["end", "saved"]
    assert len(list(tmp_path.iterdir())) == 1
