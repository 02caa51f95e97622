"""How recordings are read: lists, channels, tracks, gain, speed, bands, clocks; in tags, events and embeddings."""

import base64
import codecs
import csv
import io
import itertools
import json
import os
import re
import struct
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn import Tagger
from dymn.audio import reading
from dymn.audio.band import band_passed, centred
from dymn.audio.clocks import begin_of
from dymn.audio.gain import PEAK_DB, TARGET_DB, loudness
from dymn.audio.listing import expand
from dymn.audio.notes import Notes
from dymn.audio.settings import ReadSettings
from dymn.cli import app
from dymn.errors import AudioError, ConfigError
from dymn.inference.events import EventSettings, event_files
from dymn.inference.selection import TagSettings

RATE = 32_000
MODEL = ("--model", "dymn04_open", "--quiet")


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.from_pretrained("dymn04_open", "cpu", threads=1)


def noise(seconds: float = 2.0, seed: int = 0, channels: int = 1, level: float = 0.1) -> np.ndarray:
    """Bursts of noise that differ from channel to channel, float32 [N, channels]."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    bursts = np.repeat(rng.uniform(0.05, 1, (8, channels)), -(-n // 8), axis=0)[:n]
    return (level * bursts * rng.standard_normal((n, channels))).clip(-1, 1).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def run(*words: object, code: int = 0, stdin: bytes | None = None) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


# Lists of files


@pytest.mark.parametrize("join", ["\n", "\r\n", "\0"], ids=["lines", "CRLF", "NUL"])
def test_files_from_a_list(tmp_path, join):
    names = [str(write(tmp_path / name, noise(0.5))) for name in ("a.wav", "b [1] ~.wav", "c.wav")]
    (tmp_path / "list").write_bytes(join.join(names).encode() + join.encode())
    run("tag", "--files-from", tmp_path / "list", *MODEL, "-k", 1, "-o", tmp_path / "tags.csv")
    assert [row["file"] for row in rows(tmp_path / "tags.csv")] == names
    piped = run("tag", names[0], "--files-from", "-", *MODEL, "-f", "json", stdin=join.join(names[1:]).encode())
    assert [recording["file"] for recording in json.loads(piped)["recordings"]] == names
    marked = codecs.BOM_UTF8 + join.join(names[:2]).encode()
    (tmp_path / "list").write_bytes(marked)
    printed = run("tag", "--files-from", tmp_path / "list", *MODEL, "-f", "json")
    assert [recording["file"] for recording in json.loads(printed)["recordings"]] == names[:2]


def test_lists_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    assert "lists no recording" in run("tag", "--files-from", tmp_path / "empty", *MODEL, code=2)
    assert "cannot be read" in run("embed", "--files-from", tmp_path / "none", *MODEL, code=2)
    assert "not both" in run("tag", "-", "--files-from", "-", *MODEL, code=2, stdin=b"a.wav\n")
    assert "--files-from" in run("events", *MODEL, code=2)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_a_recording_is_no_list_of_paths(tmp_path, ending):
    soundfile.write(tmp_path / f"plain.{ending}", noise(1.0), RATE)
    said = run("tag", "--files-from", tmp_path / f"plain.{ending}", *MODEL, code=2)
    assert f"plain.{ending} is not a list of paths" in said and "Pass recordings as arguments" in said
    data = (tmp_path / f"plain.{ending}").read_bytes()
    assert "--files-from - is not a list" in run("embed", "--files-from", "-", *MODEL, code=2, stdin=data)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems restrict names")
def test_a_list_may_have_names_that_are_no_text(tmp_path):
    names = [os.fsencode(tmp_path) + name for name in (b"/a\nb.wav", b"/\xe9\x01.wav")]
    (tmp_path / "list").write_bytes(b"\0".join([*names, b""]))
    assert "not a list of paths" in run("tag", "--files-from", tmp_path / "list", *MODEL, code=2)
    for name in names:
        Path(os.fsdecode(name)).write_bytes(write(tmp_path / "plain.wav", noise(0.5)).read_bytes())
    found = json.loads(run("tag", "--files-from", tmp_path / "list", *MODEL, "-f", "json"))["recordings"]
    assert len(found) == 2 and all(one["tags"] for one in found)


def test_home_in_quotes_and_patterns_without_match(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = write(tmp_path / "a.wav", noise(0.1))
    assert list(expand("~/a.wav")) == [path] and list(expand("~/*.wav")) == [path]
    with pytest.raises(AudioError, match=r"pattern .*x\*\.wav matches nothing"):
        list(expand("~/x*.wav"))
    monkeypatch.chdir(tmp_path)
    odd = write(tmp_path / "~b.wav", noise(0.1))
    assert list(expand("~b.wav")) == [Path(odd.name)]


# Channels


def test_each_channel_is_as_a_file_of_its_own(tmp_path, tagger):
    samples = noise(3.0, channels=3)
    paths = [write(tmp_path / f"{i}.wav", samples[:, i]) for i in range(3)]
    whole = write(tmp_path / "all.wav", samples)
    how = {"window": 1.0, "threshold": 0.01}
    apart = list(tagger.tag_files(paths, TagSettings(**how)))
    each = list(tagger.tag_files([whole], TagSettings(**how, channel="each")))
    assert [one.channel for one in each] == [(1, 3), (2, 3), (3, 3)]
    for one, other in zip(each, apart, strict=True):
        assert list(one.timeline) == list(other.timeline) and one.name == str(whole)
    assert tagger.tag(samples.T, RATE, channel=2, **how) == list(apart[1].tags)
    found = list(event_files(tagger.backend, [whole.open("rb")], EventSettings(channel="each", threshold=0.02)))
    alone = list(event_files(tagger.backend, paths, EventSettings(threshold=0.02)))
    assert [one.events for one in found] == [one.events for one in alone]
    vectors = list(tagger.embedder().embed_files([whole], sample_rate=None))
    assert len(vectors) == 1
    with pytest.raises(ConfigError, match="each"):
        tagger.tag(whole, channel="each")


def test_rows_of_each_channel_and_a_resumed_run(tmp_path):
    paths = [write(tmp_path / f"{name}.wav", noise(1.0, seed, 2)) for seed, name in enumerate("abc")]
    words = (*paths, *MODEL, "--channel", "each", "-k", 1)
    for command, out in (("tag", "tags.csv"), ("embed", "vectors.csv")):
        limit = words[:-2] if command == "embed" else words
        run(command, *limit, "-o", tmp_path / out)
        assert [(Path(row["file"]).stem, row["channel"]) for row in rows(tmp_path / out)] == [
            (name, number) for name in "abc" for number in "12"
        ]
    direct = json.loads(run("tag", *words, "-f", "json"))["recordings"]
    assert [(one["channel"], one["tags"][0]["label"]) for one in direct] == [
        (int(row["channel"]), row["label"]) for row in rows(tmp_path / "tags.csv")
    ]
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    run("tag", *words, bad, "-o", tmp_path / "some.csv", code=1)
    assert [row["channel"] for row in rows(tmp_path / "some.csv")] == ["1", "2"] * 3 + [""]
    other = run("tag", *paths, bad, *MODEL, "-k", 1, "--retry-failed", "-o", tmp_path / "some.csv", code=2)
    assert "channel" in other and "other settings" in other


@pytest.mark.parametrize(("channel", "index"), [("left", 0), ("right", 1), ("3", 2), (2, 1), ("loudest", 2)])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_one_channel(tmp_path, channel, index, kind):
    samples = noise(0.5, channels=4) * np.array([0.5, 0.3, 1, 0.1], np.float32)
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    read = reading.read(path, settings=ReadSettings(channel=channel))
    np.testing.assert_array_equal(read, soundfile.read(path, dtype="float32")[0][:, index])
    heard = reading.from_array(samples.T, RATE, settings=ReadSettings(channel=channel))
    np.testing.assert_array_equal(heard, samples[:, index])


def test_channels_that_are_not_there(tmp_path):
    path = write(tmp_path / "a.wav", noise(0.2))
    assert len(reading.read(path, settings=ReadSettings(channel="left")))
    with pytest.raises(AudioError, match="has one channel; there is no channel right"):
        reading.read(path, settings=ReadSettings(channel="right"))
    for wrong in ("0", "middle", "257", "", "9" * 5000, "²", ["left"]):
        with pytest.raises(ConfigError, match="channel is"):
            ReadSettings(channel=wrong)
    assert "only once" in run("tag", "-", *MODEL, "--channel", "each", code=1, stdin=path.read_bytes())


def test_plots_draw_what_is_read(tmp_path, tagger):
    from dymn.plots.overview import overview

    samples = noise(2.0, channels=2)
    seen = overview(tagger, write(tmp_path / "a.wav", samples), channel="right", gain=6)
    alone = overview(tagger, samples[:, 1] * np.float32(10 ** (6 / 20)), RATE)
    np.testing.assert_allclose(seen.log_mel, alone.log_mel, atol=1e-5)
    for words in (("--channel", "each"), ("--speed", 0.5)):
        assert "--plot" in run("tag", tmp_path / "a.wav", *MODEL, *words, "--plot", tmp_path / "a.png", code=2)


def test_a_page_plays_what_was_tagged(tmp_path):
    samples, page = noise(1.0, channels=2, level=0.1), tmp_path / "a.html"
    path = write(tmp_path / "a.wav", samples)

    def played(*words):
        run("tag", path, *MODEL, *words, "--plot", page)
        content = base64.b64decode(re.search(r'"audio":"data:audio/wav;base64,([^"]+)"', page.read_text())[1])
        return content, soundfile.read(io.BytesIO(content), always_2d=True)[0]

    assert played()[0] == path.read_bytes()
    for words, expected in (
        (("--channel", "right"), samples[:, 1:]),
        (("--gain", 6), samples.mean(axis=1, keepdims=True) * 10 ** (6 / 20)),
        (("--channel", 1, "--gain", -6), samples[:, :1] * 10 ** (-6 / 20)),
    ):
        np.testing.assert_allclose(played(*words)[1], expected, atol=1e-4)


def test_a_mix_that_cancels_names_the_option(tmp_path):
    one = noise(1.0)
    notes = Notes()
    reading.read(write(tmp_path / "a.wav", np.concatenate([one, -one], axis=1)), notes=notes)
    assert len(notes.lines) == 1 and "--channel loudest" in notes.lines[0]


# Tracks


def test_tracks_of_a_container_keep_their_times(tmp_path):
    av = pytest.importorskip("av")
    path, sounds = tmp_path / "two.mkv", [noise(2.0, seed, level=0.2)[:, 0] for seed in (1, 2)]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in sounds]
        for stream, samples, late in zip(streams, sounds, (0, RATE), strict=True):
            frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = RATE, late
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    notes = Notes()
    first = reading.read(path, notes=notes)
    assert "2 audio tracks" in notes.lines[0] and "--track" in notes.lines[0]
    np.testing.assert_allclose(first[: 2 * RATE], sounds[0], atol=1e-4)
    second = reading.read(path, settings=ReadSettings(track=2))
    assert not second[:RATE].any()  # it begins a second later, as in a player
    np.testing.assert_allclose(second[RATE:], sounds[1], atol=1e-4)
    with pytest.raises(AudioError, match="has 2 audio tracks; there is no track 3"):
        reading.read(path, settings=ReadSettings(track=3))
    wav = write(tmp_path / "one.wav", sounds[0])
    np.testing.assert_array_equal(reading.read(wav, settings=ReadSettings(track=1)), sounds[0])
    with pytest.raises(AudioError, match="has one audio track"):
        reading.read(wav, settings=ReadSettings(track=2))


# Gain


def test_a_quiet_copy_has_the_tags_of_the_original(tmp_path, tagger, shared):
    clips = sorted((shared / "esc10").rglob("*.ogg"))[::97]
    assert clips
    for clip in clips:
        loud = reading.read(clip)
        level = loudness([loud], RATE)
        normal = loud * np.float32(10 ** (min(TARGET_DB - level.second, PEAK_DB - level.peak) / 20))
        quiet = write(tmp_path / "quiet.wav", loud * np.float32(1e-3))
        (expected,) = tagger.tag_files([loud], TagSettings(), sample_rate=RATE)
        (equal,) = tagger.tag_files([normal], TagSettings(), sample_rate=RATE)
        (found,) = tagger.tag_files([quiet], TagSettings(gain="auto"))
        (without,) = tagger.tag_files([quiet], TagSettings())
        np.testing.assert_allclose(found.scores, equal.scores, atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.1)
        assert np.abs(without.scores - expected.scores).max() > 0.1  # it is not heard without
        assert "read twice and amplified by" in found.notes[-1]


def test_gain_leaves_loud_recordings_as_they_are_and_tells_of_quiet_ones(tmp_path):
    loud = noise(3.0, level=0.5)[:, 0]
    np.testing.assert_array_equal(reading.from_array(loud, RATE, settings=ReadSettings(gain="auto")), loud)
    quiet, notes = write(tmp_path / "quiet.wav", loud * np.float32(1e-3)), Notes()
    before = reading.read(quiet, notes=notes)
    assert "largest sample is at" in notes.lines[0] and "--gain auto" in notes.lines[0]
    raised = reading.read(quiet, settings=ReadSettings(gain="auto"))
    level = loudness([raised], RATE)
    assert level.second == pytest.approx(-20, abs=0.01) or level.peak == pytest.approx(PEAK_DB, abs=0.01)
    np.testing.assert_allclose(reading.read(quiet, settings=ReadSettings(gain=20)), before * 10, rtol=1e-6)
    again = reading.read(io.BytesIO(quiet.read_bytes()), settings=ReadSettings(gain="auto"))
    np.testing.assert_array_equal(again, raised)
    silence = np.zeros(RATE, np.float32)
    for gain in (0, 40, "auto"):
        notes = Notes()
        assert not reading.from_array(silence, RATE, notes=notes, settings=ReadSettings(gain=gain)).any()
        assert notes.lines == ["it is silent: all of its samples are 0, as from a microphone that is switched off."]
    for wrong in ("loud", "nan", 121, None):
        with pytest.raises(ConfigError, match="gain is"):
            ReadSettings(gain=wrong)


@given(sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_loudness_does_not_depend_on_chunks(sizes):
    samples = noise(2.7)[:, 0]
    places = np.minimum(np.cumsum([0, *sizes]), len(samples))
    chunks = [samples[a:b] for a, b in itertools.pairwise(places)] + [samples[places[-1] :]]
    assert loudness(chunks, RATE) == loudness([samples], RATE)


def test_an_offset_is_told_and_taken_out(tmp_path):
    path, notes = write(tmp_path / "dc.wav", noise(2.0, level=0.05) + np.float32(0.2)), Notes()
    reading.read(path, notes=notes)
    assert "offset of 0.2" in notes.lines[0] and "--band 20-" in notes.lines[0]
    clean = reading.read(path, settings=ReadSettings(band="20-"))
    assert abs(clean[RATE // 2 : -RATE // 2].mean()) < 1e-4


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("seconds", [0.1, 0.7, 3.0])
def test_an_offset_leaves_no_click_at_the_ends_of_a_band(tmp_path, rate, seconds):
    tone = 0.001 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    plain, shifted = (write(tmp_path / f"{offset}.wav", tone + offset, rate) for offset in (0, 0.3))
    how, notes = ReadSettings(band="20-", gain="auto"), Notes()
    expected = reading.read(plain, settings=how, notes=Notes())
    found = reading.read(shifted, settings=how, notes=notes)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert [line.partition(":")[0] for line in notes.lines] == ["it is quiet"]  # --band is not advised again
    pieces = np.concatenate(list(reading.stream(shifted, block_seconds=0.05, settings=how, notes=Notes())))
    np.testing.assert_array_equal(pieces, found)


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_gain_is_not_limited_by_an_offset(tmp_path, rate):
    tone = 0.001 * np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)
    plain, shifted = (write(tmp_path / f"{offset}.wav", tone + offset, rate) for offset in (0, 0.3))
    notes = Notes()
    found = reading.read(shifted, settings=ReadSettings(gain="auto"), notes=notes)
    np.testing.assert_allclose(found, reading.read(plain, settings=ReadSettings(gain="auto"), notes=Notes()), atol=2e-4)
    assert np.abs(found).max() > 0.1
    assert any(
        "offset of 0.3 of full scale (DC). --gain auto removes it if it amplifies" in line for line in notes.lines
    )
    loud = write(tmp_path / "loud.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate) + 0.3, rate)
    settings, untouched = ReadSettings(gain="auto"), reading.read(loud, notes=Notes())
    np.testing.assert_array_equal(reading.read(loud, settings=settings, notes=Notes()), untouched)


# Speed and bands


@pytest.mark.parametrize("speed", [0.1, 0.5, 4.0])
def test_speed_changes_what_is_heard_and_keeps_times(tmp_path, tagger, speed):
    samples = noise(3.0)[:, 0]
    rate = round(RATE / speed)
    plain = write(tmp_path / "plain.wav", samples)
    other = write(tmp_path / "other.wav", samples, rate)  # sounds like `plain` at this speed
    how = {"window": 1.0, "threshold": 0.01}
    (expected,), (found,) = (
        tagger.tag_files([path], TagSettings(**how, speed=s)) for path, s in ((plain, 1.0), (other, speed))
    )
    assert found.seconds == pytest.approx(3.0 * speed)
    np.testing.assert_array_equal(found.scores, expected.scores)
    for one, ref in zip(found.timeline, expected.timeline, strict=True):
        assert (one.start, one.end) == pytest.approx((ref.start * speed, ref.end * speed))
    for method in ("windows", "activation"):
        how = {"method": method, "threshold": 0.02, "min_gap": 0.3, "min_duration": 0.1}
        wanted, events = (tagger.events(path, **how, speed=s) for path, s in ((plain, 1.0), (other, speed)))
        if method == "activation" and not events:
            continue
        assert [event.label for event in events] == [event.label for event in wanted] and events
        for event, ref in zip(events, wanted, strict=True):
            assert (event.start, event.end) == pytest.approx((ref.start * speed, ref.end * speed), abs=1e-9)


def test_infrasound_of_few_samples_a_second_is_played_faster(tmp_path, tagger):
    samples = noise(3.0)[:, 0]
    slow = write(tmp_path / "slow.wav", samples, 40)  # three seconds' samples as forty minutes
    (found,) = tagger.tag_files([slow], TagSettings(speed=800.0))
    (expected,) = tagger.tag_files([write(tmp_path / "plain.wav", samples, 32_000)])
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.seconds == pytest.approx(len(samples) / 40)
    assert len(reading.read(write(tmp_path / "few.wav", samples[:1000], 500), 32_000)) == 64_000
    (bad,) = tagger.tag_files([slow])
    assert "sample rate of 40 Hz, which --speed 1 turns into 40 Hz; it must be from 100 to 768000 Hz. Check" in str(
        bad.error
    )


def test_speeds_and_bands_that_leave_nothing(tmp_path):
    path = write(tmp_path / "a.wav", noise(0.2))
    with pytest.raises(AudioError, match="--speed 100 turns"):
        reading.read(path, settings=ReadSettings(speed=100))
    with pytest.raises(AudioError, match=r"20000 Hz, but the highest frequency of the recording is 16000 Hz, half its"):
        reading.read(path, settings=ReadSettings(band="20000-60000"))
    low = write(tmp_path / "low.wav", noise(0.2), 8000)  # after resampling, nothing is left from 4000 Hz on
    with pytest.raises(AudioError, match=r"starts at 6000 Hz, but .* is 4000 Hz, half its sample rate\. Give another"):
        reading.read(low, settings=ReadSettings(band="6000-", speed=2))
    with pytest.raises(AudioError, match="The array: the band starts at 4000 Hz"):
        reading.from_array(noise(0.2)[:, 0], 8000, settings=ReadSettings(band="4000-"))
    assert reading.read(low, settings=ReadSettings(band="3000-")).any()
    high = write(tmp_path / "high.wav", noise(0.2), 96_000)
    with pytest.raises(AudioError, match=r"the highest frequency is 16000 Hz\. Give a lower --speed"):
        reading.read(high, settings=ReadSettings(band="20000-60000"))
    for wrong in ("20", "8000-20", "-", "a-b", (1,), "0-5", (5, 5)):
        with pytest.raises(ConfigError, match="band is"):
            ReadSettings(band=wrong)
    assert ReadSettings(band="-500").band == (None, 500.0)


@given(
    n=st.integers(1, 90_000),
    size=st.integers(1, 50_000),
    band=st.sampled_from([(2000.0, 8000.0), (20.0, None), (None, 500.0), (3000.0, 40_000.0)]),
)
@settings(max_examples=15, deadline=None)
def test_a_band_keeps_length_and_does_not_depend_on_chunks(n, size, band):
    samples = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    whole = np.concatenate(list(band_passed([samples], RATE, *band)))
    parts = [samples[start : start + size] for start in range(0, n, size)]
    assert len(whole) == n
    np.testing.assert_array_equal(np.concatenate(list(band_passed(parts, RATE, *band))), whole)
    whole = np.concatenate(list(centred([samples], RATE)))
    np.testing.assert_array_equal(np.concatenate(list(centred(parts, RATE))), whole)


def test_a_band_keeps_what_is_in_it_at_its_time():
    t = np.arange(4 * RATE) / RATE
    burst = np.exp(-(((t - 2.0) / 0.02) ** 2))
    inside, outside = burst * np.sin(2 * np.pi * 4000 * t), 0.3 * np.sin(2 * np.pi * 300 * t)
    found = np.concatenate(list(band_passed([(inside + outside).astype(np.float32)], RATE, 2000, 8000)))
    np.testing.assert_allclose(found[RATE : 3 * RATE], inside[RATE : 3 * RATE], atol=2e-3)


# Clocks


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def recorded(path: Path, *chunks: bytes) -> Path:
    data = (noise(2.0)[:, 0] * 32767).astype("<i2").tobytes()
    fmt = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    body = b"WAVE" + chunk(b"fmt ", fmt) + b"".join(chunks) + chunk(b"data", data)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def audiomoth(text: str) -> bytes:
    return chunk(b"LIST", b"INFO" + chunk(b"ICMT", text.encode() + b"\0"))


def bext(date: str, time: str) -> bytes:
    return chunk(b"bext", b"\0" * 320 + date.encode() + time.encode() + b"\0" * 264)


GUANO = chunk(b"guan", b"GUANO|Version:1.0\nMake:X\nTimestamp:2021-03-14T19:21:00.250-06:00\n")
MOTH = audiomoth("Recorded at 19:21:00 14/03/2021 (UTC-6) by AudioMoth 24F3190361DA16E7 at medium gain setting.")
HOME = timezone(timedelta(hours=-6))


@pytest.mark.parametrize(
    ("name", "chunks", "time", "source"),
    [
        ("a.wav", (GUANO,), datetime(2021, 3, 14, 19, 21, 0, 250_000, HOME), "GUANO"),
        ("a.wav", (MOTH,), datetime(2021, 3, 14, 19, 21, tzinfo=HOME), "AudioMoth comment"),
        ("a.wav", (bext("2021-03-14", "19:21:00"),), datetime(2021, 3, 14, 19, 21), "bext"),
        ("20210315_012100.wav", (MOTH,), datetime(2021, 3, 14, 19, 21, tzinfo=HOME), "AudioMoth comment"),
        ("SM4_20210314_192100.wav", (), datetime(2021, 3, 14, 19, 21), "file name"),
        ("x 2021-03-14 19-21-00.wav", (), datetime(2021, 3, 14, 19, 21), "file name"),
        ("20210314T192100Z.wav", (), datetime(2021, 3, 14, 19, 21, tzinfo=timezone.utc), "file name"),
        ("20210314_192100-0600.wav", (), datetime(2021, 3, 14, 19, 21, tzinfo=HOME), "file name"),
        ("5678.210314192100.wav", (), datetime(2021, 3, 14, 19, 21), "file name"),
        ("20211399_999999.wav", (), None, ""),
        ("clip-12345678.wav", (audiomoth("Recorded by hand"), bext("0000-00-00", "00:00:00")), None, ""),
    ],
)
def test_when_a_recording_began(tmp_path, name, chunks, time, source):
    notes = Notes()
    begin = begin_of(recorded(tmp_path / name, *chunks), notes)
    if time is None:
        assert begin is None and any("its start time is unknown" in line for line in notes.lines)
        return
    assert begin is not None and (begin.time, begin.source) == (time, source) and not notes.lines
    assert begin.time.utcoffset() == time.utcoffset()


@pytest.mark.parametrize(("others", "called"), [(1, "recording"), (2, "recordings")])
def test_recordings_without_a_clock_are_told_of_once(tmp_path, caplog, others, called):
    for name in "abc"[: others + 1]:
        recorded(tmp_path / f"{name}.wav")
    with caplog.at_level("WARNING", "dymn"):
        run("tag", tmp_path, *MODEL[:2], "--clock", "auto", "-o", tmp_path / "t.json")
    said = [record.getMessage() for record in caplog.records if "its start time is unknown" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"{tmp_path}/a.wav and {others} other {called}: its start time is")
    notes = [one["notes"] for one in json.loads((tmp_path / "t.json").read_text())["recordings"]]
    assert all("its start time is unknown" in lines[0] for lines in notes) and len(notes) == others + 1


def test_clocks_that_contradict_each_other(tmp_path):
    notes = Notes()
    begin = begin_of(recorded(tmp_path / "20210314_180000.wav", GUANO, bext("2021-03-14", "19:21:00")), notes)
    assert begin is not None and begin.source == "GUANO"
    assert len(notes.lines) == 1 and "start times differ" in notes.lines[0] and "file name" in notes.lines[0]


@pytest.mark.parametrize(
    ("impossible", "text"),
    [
        (audiomoth("Recorded at 19:21:00 31/02/2021 (UTC)"), "AudioMoth comment does not exist.*31/02/2021"),
        (bext("2021-13-14", "19:21:00"), "bext does not exist.*2021-13-1419:21:00"),
        (chunk(b"guan", b"Timestamp:2021-03-14T25:21:00"), "GUANO does not exist.*25:21:00"),
    ],
)
def test_a_time_that_does_not_exist_is_ignored_with_a_note(tmp_path, impossible, text):
    notes = Notes()
    begin = begin_of(recorded(tmp_path / "20210314_192100.wav", impossible), notes)
    assert begin is not None and begin.source == "file name"
    assert len(notes.lines) == 1 and re.search(text, notes.lines[0])


@pytest.mark.parametrize("name", ["x.000000000000.wav", "20000000_000000.wav", "20219999_123456_20210314_192100.wav"])
def test_zeros_and_a_later_time_in_a_file_name_need_no_note_of_impossible_times(tmp_path, name):
    notes = Notes()
    begin = begin_of(recorded(tmp_path / name), notes)
    assert (begin is not None) == name.startswith("2021") and not any("does not exist" in line for line in notes.lines)


@pytest.mark.parametrize("name", ["site_20211345_192100.wav", "6805.210332192100.wav"])
def test_an_impossible_time_in_a_file_name_is_ignored_with_a_note(tmp_path, name):
    notes = Notes()
    assert begin_of(recorded(tmp_path / name), notes) is None
    assert any(re.search("file name does not exist and is ignored", line) for line in notes.lines)
    notes = Notes()
    assert begin_of(recorded(tmp_path / name.replace("13", "12").replace("45", "14").replace("32", "30")), notes)
    assert not notes.lines


def test_times_in_rows(tmp_path):
    path, parquet = recorded(tmp_path / "a.wav", MOTH), pytest.importorskip("pyarrow.parquet")
    words = (path, *MODEL, "--clock", "auto", "--speed", 0.5)
    run("tag", *words, "--per-window", "--window", 1, "-k", 1, "-o", tmp_path / "t.csv")
    assert [row["time"] for row in rows(tmp_path / "t.csv")] == [
        f"2021-03-14T19:21:{second:06.3f}-06:00" for second in (0, 0.5, 1, 1.5)
    ]
    run("events", *words, "--threshold", 0.02, "-o", tmp_path / "e.parquet")
    table = parquet.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["file", "start", "end", "time", "label", "score", "error"] and len(table)
    begin = datetime(2021, 3, 14, 19, 21, tzinfo=HOME)
    for row in table.to_pylist():
        assert abs((datetime.fromisoformat(row["time"]) - begin).total_seconds() - row["start"]) < 1e-3
    document = json.loads(run("tag", *words, "-f", "json", "--per-window"))["recordings"][0]
    assert document["clock"] == {"start": "2021-03-14T19:21:00.000-06:00", "source": "AudioMoth comment"}
    assert document["tags"][0]["time"] == document["windows"][0]["time"] == document["clock"]["start"]
    assert "from 2021-03-14T19:21:00.000-06:00" in run("tag", *words)
    assert "time" not in rows_of_default(tmp_path, path)


def rows_of_default(tmp_path: Path, path: Path) -> list[str]:
    run("tag", path, *MODEL, "-o", tmp_path / "plain.csv")
    return list(rows(tmp_path / "plain.csv")[0])


def test_live_sound_has_channels_and_a_gain(tagger):
    samples = noise(2.0, channels=2)
    how = {"window": 1.0, "top_k": 0}
    stream = tagger.stream(RATE, channel="right", gain=12, **how)
    found = stream.feed(samples) + stream.finish()
    louder = samples[:, 1] * np.float32(10 ** (12 / 20))
    expected = tagger.stream(RATE, **how)
    assert found == expected.feed(louder) + expected.finish()
    for wrong in (
        {"channel": "each"},
        {"gain": "auto"},
        {"band": "20-"},
        {"speed": 0.5},
        {"clock": "auto"},
        {"track": 1},
    ):
        with pytest.raises(ConfigError, match="For live sound"):
            tagger.stream(RATE, **wrong)


@pytest.mark.parametrize("bad", [1, 2])
def test_a_channel_that_fails_leaves_the_others(tmp_path, bad):
    samples = noise(2.0, channels=2)
    samples[RATE, bad - 1] = np.nan
    paths = [write(tmp_path / "a.wav", samples), write(tmp_path / "b.wav", noise(1.0, 1, 2))]
    words = (*paths, *MODEL, "--threshold", 0.02, "--channel", "each", "-k", 1)
    for command in ("tag", "events"):
        given = words if command == "tag" else words[:-2]
        run(command, *given, "-f", "csv", "-o", tmp_path / "out.csv", code=1)
        printed = CliRunner().invoke(app, [command, *map(str, given), "-f", "csv"]).stdout
        assert (tmp_path / "out.csv").read_text() == printed
        table = rows(tmp_path / "out.csv")
        channels = {(Path(row["file"]).stem, row["channel"], bool(row["error"])) for row in table}
        assert channels == {("a", "1", bad == 1), ("a", "2", bad == 2), ("b", "1", False), ("b", "2", False)}
        report = [json.loads(line) for line in (tmp_path / "out.csv.failed.jsonl").open()]
        assert [(Path(line["file"]).stem, line["channel"]) for line in report] == [("a", bad)]
        (tmp_path / "out.csv").unlink()
    run("tag", *words, "-o", tmp_path / "out.json", code=1)
    recordings = json.loads((tmp_path / "out.json").read_text())["recordings"]
    assert [(one["channel"], "error" in one) for one in recordings] == [
        (1, bad == 1), (2, bad == 2), (1, False), (2, False),
    ]  # fmt: skip
    run("events", *words[:-2], "-f", "raven", "-o", tmp_path / "out.txt", code=1)
    with (tmp_path / "out.txt").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert {(Path(row["Begin Path"]).stem, row["Channel"]) for row in table} == {
        ("a", str(3 - bad)),
        ("b", "1"),
        ("b", "2"),
    }
    for row in table:
        before = 2.0 if row["Begin Path"].endswith("b.wav") else 0.0
        assert float(row["Begin Time (s)"]) == pytest.approx(before + float(row["File Offset (s)"]))


def test_annotations_and_segments_know_the_channel(tmp_path):
    paths = [write(tmp_path / f"{name}.wav", noise(1.0, seed, 2)) for seed, name in enumerate("ab")]
    words = (*paths, *MODEL, "--threshold", 0.02, "--channel", "each")
    table = list(csv.DictReader(io.StringIO(run("events", *words, "-f", "raven")), delimiter="\t"))
    assert {row["Channel"] for row in table} == {"1", "2"}
    for row in table:  # the times of the second file follow those of the first once, not once for each channel
        before = 1.0 if row["Begin Path"].endswith("b.wav") else 0.0
        assert float(row["Begin Time (s)"]) == pytest.approx(before + float(row["File Offset (s)"]))
    tasks = json.loads(run("events", *words, "-f", "label-studio"))
    assert [
        {region["value"]["channel"] for region in task["predictions"][0]["result"]} for task in tasks
    ] == [{0}, {1}] * 2  # fmt: skip
    slow = run("events", paths[0], *MODEL, "--threshold", 0.02, "--speed", 0.5, "-f", "raven")
    assert {row["High Freq (Hz)"] for row in csv.DictReader(io.StringIO(slow), delimiter="\t")} == {"16000.0"}
    for refused in (("--channel", "each"), ("--track", 1)):
        assert "--segments extracts" in run("events", *paths, *MODEL, "--segments", tmp_path / "cut", *refused, code=2)
