"""Recordings are heard whole, whatever their headers say, or an error or a note says what is missing."""

import csv
import io
import json
import math
import os
import re
import struct
import time
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn import Tagger
from dymn.audio import reading
from dymn.audio.notes import Notes
from dymn.audio.stored import is_silent, passage
from dymn.cli import app
from dymn.errors import AudioError
from dymn.inference.selection import TagSettings

av = pytest.importorskip("av")
RATE = 32_000


def sound(seconds: float = 3.0, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Tones that change all the time, so that no part sounds like another: float32 [N, channels]."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (300 + 200 * np.sin(1.7 * t + seed)) * t)
    noise = np.random.default_rng(seed).normal(0, 0.02, (len(t), channels))
    return (tone[:, None] + noise).astype(np.float32)


def encoded(
    kind: str, subtype: str = "PCM_16", samples: np.ndarray | None = None, rate: int = RATE, **options
) -> bytes:
    target = io.BytesIO()
    samples = sound(rate=rate) if samples is None else samples
    with soundfile.SoundFile(target, "w", rate, samples.shape[1], format=kind, subtype=subtype, **options) as file:
        for start in range(0, len(samples), 4096):  # libsndfile cannot take long blocks of Vorbis
            file.write(samples[start : start + 4096])
    return target.getvalue()


def heard(data: bytes, **options) -> tuple[np.ndarray, Notes]:
    notes = Notes()
    return reading.read(io.BytesIO(data), notes=notes, **options), notes


def seconds(data: bytes, **options) -> float:
    return len(heard(data, **options)[0]) / RATE


def riff(
    samples: bytes,
    *,
    code: int = 1,
    bits: int = 16,
    size: int | None = None,
    outer: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """A WAV of one channel with any sizes in its header."""
    fmt = struct.pack("<HHIIHH", code, 1, RATE, RATE * bits // 8, bits // 8, bits)
    size = len(samples) if size is None else size
    body = (
        b"WAVEfmt "
        + struct.pack("<I", len(fmt))
        + fmt
        + b"data"
        + struct.pack("<I", size & 0xFFFF_FFFF)
        + samples
        + tail
    )
    return b"RIFF" + struct.pack("<I", len(body) if outer is None else outer) + body


PCM = (sound()[:, 0] * 32767).astype("<i2").tobytes()
FACT = b"LIST\x04\x00\x00\x00abcd"


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (riff(PCM, size=0), "states no samples, as after a power failure"),
        (riff(PCM, size=0, outer=0), "states no samples"),
        (riff(PCM, size=0, outer=36), "states no samples"),
        (riff(PCM, size=len(PCM) // 2), "states 1.50 s, but the samples extend to 3.00 s"),
        (riff(PCM, size=len(PCM) // 2, outer=36 + len(PCM) // 2), "states 1.50 s, but the samples extend to 3.00 s"),
        (riff(PCM, size=0xFFFF_FFFF, outer=0xFFFF_FFFF), ""),
        (riff(PCM, tail=FACT), ""),
        (riff(PCM, tail=b"TAG" + bytes(125)), ""),
        (riff(PCM + b"\0", tail=FACT[1:]), ""),
        (riff(PCM, tail=np.random.default_rng(0).bytes(50_000), outer=36 + len(PCM)), "50000 bytes after its samples"),
        (b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + riff(PCM), ""),
        (riff(PCM).replace(b"data", b"LIST\x03\0\0\0abcdata", 1), ""),
        (riff(PCM).replace(b"data", b"LIST\x03\0\0\0abc\0data", 1), ""),
    ],
    ids=[
        "size0",
        "sizes0",
        "outer36",
        "half",
        "halves",
        "open",
        "chunk",
        "id3v1",
        "odd",
        "garbage",
        "id3v2",
        "no pad",
        "pad",
    ],
)
def test_wav_headers(data, note):
    samples, notes = heard(data)
    assert len(samples) == pytest.approx(3 * RATE, abs=1)
    np.testing.assert_allclose(samples[: 3 * RATE], np.frombuffer(PCM, "<i2") / np.float32(32768), atol=1e-7)
    assert note in " ".join(notes.lines) and bool(notes.lines) == bool(note)


@pytest.mark.parametrize(
    ("code", "bits", "store"),
    [
        (3, 16, lambda x: x.astype("<f2")),
        (3, 64, lambda x: x.astype("<f8")),
        (1, 64, lambda x: (x.astype(np.float64) * 2.0**63).astype("<i8")),
        (1, 8, lambda x: np.round(x * 127 + 128).astype(np.uint8)),
    ],
)
def test_wav_samples_that_libsndfile_does_not_know(code, bits, store):
    x = sound()[:, 0]
    samples, notes = heard(riff(store(x).tobytes(), code=code, bits=bits))
    np.testing.assert_allclose(samples, x, atol=0.01 if bits == 8 else 1e-3)
    assert not notes.lines


def test_wav_beyond_4_gib(tmp_path):
    """The length wraps: 5 s are left of 37 hours. A sparse file takes no space."""
    path = tmp_path / "long.wav"
    length = 2**32 + 5 * 2 * RATE
    with path.open("wb") as file:
        file.write(riff(b"", size=length, outer=(length + 36) & 0xFFFF_FFFF))
        try:
            file.truncate(44 + length)
        except OSError:
            pytest.skip("no large files here")
    notes = Notes()
    next(blocks := reading.stream(path, notes=notes))
    blocks.close()
    assert reading.probe(path).frames == length // 2
    assert "has overflowed at 4 GiB; 18.6 h are read, not 5.00 s" in notes.lines[0]


def test_w64_tail_is_not_sound():
    whole = encoded("W64")
    samples, notes = heard(whole + np.random.default_rng(0).bytes(50_000))
    assert len(samples) == 3 * RATE and "50000 bytes after" in notes.lines[0]


def test_samples_that_are_integers_as_floats():
    loud = (sound()[:, 0] * 32767).astype("<f4")
    samples, notes = heard(riff(loud.tobytes(), code=3, bits=32))
    assert samples.max() > 5000 and "Divide them by 32768" in notes.lines[0]
    notes = Notes()
    reading.from_array(loud, RATE, notes=notes)
    assert "Divide them by 32768" in notes.lines[0]


@pytest.mark.parametrize(
    ("channels", "live", "note"),
    [
        (2, [1, -1], "cancel each other"),
        (2, [1, 0], ""),
        (2, [1, 1], ""),
        (6, [0, 0, 1, 0, 0, 0], ""),
        (8, [0, 0, 0, 1, 0, 0, 0, 0], "one"),
    ],
    ids=["inverted", "one of two", "same", "one of six", "one of eight"],
)
def test_mix_far_below_its_channels(channels, live, note):
    samples = (sound() * np.array(live, np.float32)).astype(np.float32)
    for kind in ("WAV", "FLAC"):
        notes = heard(encoded(kind, samples=samples))[1]
        assert bool(notes.lines) == bool(note) and note in " ".join(notes.lines)


def test_ambisonic_files_give_the_channel_of_all_directions(tmp_path):
    four = np.concatenate([sound(), sound(seed=1), sound(seed=2), sound(seed=3)], axis=1)
    four[2 * RATE :, 0] = 0
    guid = bytes.fromhex("01000000 2107 d311 8644 c8c1ca000000".replace(" ", ""))
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 4, RATE, RATE * 8, 8, 16, 22, 16, 0) + guid
    data = (four * 32767).astype("<i2").tobytes()
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    samples, notes = heard(path.read_bytes())
    np.testing.assert_allclose(samples, four[:, 0], atol=1e-4)
    assert "ambisonic" in notes.lines[0]
    np.testing.assert_array_equal(passage(path, 0.5, 1.5, RATE), samples[RATE // 2 : 3 * RATE // 2])
    assert is_silent(str(path), 2, math.inf) and not is_silent(str(path), 1, 2)


# FLAC


def flac_with_total(data: bytes, frames: int) -> bytes:
    changed = bytearray(data)
    changed[21] = (changed[21] & 0xF0) | frames >> 32
    changed[22:26] = struct.pack(">I", frames & 0xFFFF_FFFF)
    return bytes(changed)


@pytest.mark.parametrize("seconds_", [0.05, 3.0, 12.0])
def test_flac_that_lies_about_its_length(seconds_):
    data = encoded("FLAC", samples=sound(seconds_))
    expected = reading.read(io.BytesIO(data))
    frames = round(seconds_ * RATE)
    for total in (frames // 2, 1):
        samples, notes = heard(flac_with_total(data, total))
        np.testing.assert_array_equal(samples, expected)
        assert "its frames amount to" in notes.lines[0]
    assert seconds(flac_with_total(data, 0)) == pytest.approx(seconds_, abs=1e-3)
    if seconds_ > 1:
        with pytest.raises(AudioError, match=rf"after .* of {2 * seconds_:.2f} s"):
            heard(flac_with_total(data, 2 * frames))


@pytest.mark.parametrize("tail", [b"\0", bytes(5000), b"TAG" + bytes(125), b"APETAGEX" + bytes(100), b"junk" * 3000])
def test_flac_with_a_tail(tail):
    data = encoded("FLAC", samples=sound(12.0))
    np.testing.assert_array_equal(heard(data + tail)[0], reading.read(io.BytesIO(data)))


def test_damaged_flac():
    data = encoded("FLAC", samples=sound(12.0))
    middle = len(data) // 2
    bad = data[:middle] + np.random.default_rng(0).bytes(20_000) + data[middle + 20_000 :]
    with pytest.raises(AudioError, match="truncated or damaged"):
        heard(bad)
    samples, notes = heard(bad, partial=True)
    assert notes.partial and notes.lines[0].startswith("partial: ")
    expected = reading.read(io.BytesIO(data))
    assert len(samples) == pytest.approx(len(expected), abs=0.3 * RATE)
    np.testing.assert_allclose(samples[: 4 * RATE], expected[: 4 * RATE], atol=1e-6)
    np.testing.assert_allclose(samples[-3 * RATE :], expected[-3 * RATE :], atol=1e-6)
    samples, notes = heard(data[:middle], partial=True)
    assert notes.partial and len(samples) == pytest.approx(6 * RATE, abs=0.5 * RATE)


# Ogg


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg(subtype):
    rate = 48_000
    parts = [encoded("OGG", subtype, sound(length, rate, seed=i), rate) for i, length in enumerate((3.0, 2.0, 1.0))]
    samples, notes = heard(b"".join(parts))
    assert len(samples) / RATE == pytest.approx(6.0, abs=0.02)
    assert notes.lines == ["it contains 3 concatenated streams; all of them are read."]
    own = np.concatenate([reading.read(io.BytesIO(part)) for part in parts])
    np.testing.assert_allclose(samples[:RATE], own[:RATE], atol=1e-3)
    np.testing.assert_allclose(samples[-RATE // 2 :], own[-RATE // 2 :], atol=1e-2)


def test_passages_of_chained_ogg_whose_rate_changes(tmp_path):
    path, rates = tmp_path / "chain.ogg", (44_100, 22_050)
    path.write_bytes(b"".join(encoded("OGG", "VORBIS", sound(3.0, rate, seed=rate), rate) for rate in rates))
    whole = reading.read(path, notes=Notes())
    for start, end in ((0.5, 2.0), (4.0, 5.5), (2.0, 5.0), (4.0, math.inf)):
        found = passage(path, start, end, RATE)
        expected = whole[round(start * RATE) :] if end == math.inf else whole[round(start * RATE) : round(end * RATE)]
        assert len(found) == pytest.approx(len(expected), abs=2)
        middle = slice(RATE // 10, min(len(found), len(expected)) - RATE // 10)  # resampling begins elsewhere
        away = np.abs(np.arange(len(found))[middle] / RATE + start - 3.0) > 0.1
        np.testing.assert_allclose(found[middle][away], expected[middle][away], atol=2e-2)
    assert not is_silent(str(path), 4, 5)


def test_chained_ogg_of_several_kinds():
    parts = [
        encoded("OGG", "VORBIS", sound(2.0, 44_100), 44_100),
        encoded("OGG", "OPUS", sound(2.0, 48_000, 2), 48_000),
    ]
    samples, notes = heard(b"".join(parts))
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.02)
    assert any("48000 Hz" in line for line in notes.lines)


def pages(data: bytes) -> list[int]:
    starts = [0]
    while (found := data.find(b"OggS\0", starts[-1] + 1)) >= 0:
        starts.append(found)
    return starts


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_without_its_end(subtype):
    data = encoded("OGG", subtype, sound(12.0, 48_000), 48_000)
    cut = data[: pages(data)[-1]]
    samples, notes = heard(cut)
    assert "its stream has no last page" in notes.lines[0] and 8 < len(samples) / RATE < 12
    with pytest.raises(AudioError, match="last page is incomplete"):
        heard(data[:-100])
    samples, notes = heard(data[: len(data) * 2 // 3], partial=True)
    assert notes.partial and len(samples) / RATE > 6
    assert seconds(data + b"junk" * 100) == pytest.approx(12.0, abs=0.01)


def test_ogg_with_pages_lost():
    data = encoded("OGG", "VORBIS", sound(12.0, 48_000), 48_000)
    starts = pages(data)
    lost = data[: starts[10]] + data[starts[13] :]
    with pytest.raises(AudioError, match=r"after 3\..* of .* are missing|after 3\..* are missing"):
        heard(lost)
    samples, notes = heard(lost, partial=True)
    expected = reading.read(io.BytesIO(data))
    assert notes.partial and len(samples) == pytest.approx(len(expected), abs=0.02 * RATE)
    np.testing.assert_allclose(samples[8 * RATE : 9 * RATE], expected[8 * RATE : 9 * RATE], atol=0.01)


# MP3


def mp3(samples: np.ndarray | None = None, rate: int = 44_100, vary: bool = True) -> bytes:
    options = {"bitrate_mode": "VARIABLE" if vary else "CONSTANT", "compression_level": 0.5}
    return encoded("MP3", "MPEG_LAYER_III", sound(13.0, rate) if samples is None else samples, rate, **options)


def without_header(data: bytes) -> bytes:
    return data[data.index(data[:2], 4) :]


def loud_then_quiet(rate: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.2, (3 * rate, 1)).astype(np.float32)
    return np.concatenate([noise, np.zeros((10 * rate, 1), np.float32)])


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("order", [1, -1], ids=["loud first", "quiet first"])
def test_mp3_of_variable_bit_rate_without_a_header(rate, order, capfd):
    data = without_header(mp3(loud_then_quiet(rate)[::order], rate))
    assert reading.probe(io.BytesIO(data)).seconds == pytest.approx(13.0, abs=0.2)
    assert seconds(data) == pytest.approx(13.0, abs=0.2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("share", [0, 0.5, 0.01])
def test_mp3_whose_header_lies(rate, share, capfd):
    data = bytearray(mp3(rate=rate))
    place = bytes(data[:200]).index(b"Xing") + 8
    frames = struct.unpack(">I", data[place : place + 4])[0]
    data[place : place + 4] = struct.pack(">I", int(share * frames))
    samples, notes = heard(bytes(data))
    assert len(samples) / RATE == pytest.approx(13.0, abs=0.15)
    assert "its frames amount to 13" in notes.lines[0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tail", [b"", b"TAG" + bytes(125)], ids=["bare", "id3v1"])
@pytest.mark.parametrize("seconds_", [(3.0, 5.0), (5.0, 0.4)])
def test_joined_mp3(tail, seconds_, capfd):
    parts = [mp3(sound(length, 44_100, seed=i)) for i, length in enumerate(seconds_)]
    for data in (
        parts[0] + tail + parts[1] + tail,
        parts[0] + without_header(parts[1]),
        parts[0] + tail + b"ID3\3\0\0\0\0\0\x10" + bytes(16) + parts[1],
    ):
        assert seconds(data) == pytest.approx(sum(seconds_), abs=0.1)
    for end in (b"APETAGEX" + struct.pack("<IIII", 2000, 80, 1, 0) + bytes(8) + bytes(80), bytes(3000), b"junk" * 50):
        assert seconds(parts[0] + end + tail) == pytest.approx(seconds_[0], abs=0.03)
    assert "2 concatenated MP3 files" in heard(parts[0] + parts[1])[1].lines[0]
    assert capfd.readouterr().err == ""


def test_joined_mp3_of_two_rates():
    data = mp3(sound(3.0, 44_100)) + mp3(sound(2.0, 22_050), 22_050)
    samples, notes = heard(data)
    assert len(samples) / RATE == pytest.approx(5.0, abs=0.1) and any("22050 Hz" in line for line in notes.lines)
    data = without_header(mp3(sound(3.0, 44_100))) + without_header(mp3(sound(2.0, 22_050), 22_050))
    samples, notes = heard(data)
    assert len(samples) / RATE == pytest.approx(5.0, abs=0.15) and any("22050 Hz" in line for line in notes.lines)


def test_mp3_that_is_cut_or_has_a_hole(capfd):
    data = mp3()
    with pytest.raises(AudioError, match=r"after .* of 13\.0"):
        heard(data[: len(data) // 2])
    samples, notes = heard(data[: len(data) // 2], partial=True)
    assert notes.partial and 5 < len(samples) / RATE < 8
    bare = without_header(mp3(vary=False))
    assert any("last frame is incomplete" in line for line in heard(bare[: len(bare) // 2])[1].lines)
    hole = bare[: len(bare) // 2] + bytes(20_000) + bare[len(bare) // 2 :]
    with pytest.raises(AudioError, match="bytes between its frames are not frames"):
        heard(hole)
    assert heard(hole, partial=True)[1].partial
    assert capfd.readouterr().err == ""


# Video and other containers of FFmpeg


class Frames:
    """Sound for an encoder, a frame at a time."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples, self.rate = samples, rate

    def encode(self, track, container, begin: float = 0.0, skip: tuple[float, float] = (0.0, 0.0)) -> None:
        """Encode and mux; what lies between the times of `skip` is left out, and the timestamps have a gap there."""
        size = track.codec_context.frame_size or 1024
        place = 0
        for start in range(0, len(self.samples), size):
            part = np.ascontiguousarray(self.samples[start : start + size].T)
            if skip[0] <= start / self.rate < skip[1]:
                continue
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono" if len(part) == 1 else "stereo")
            frame.sample_rate = self.rate
            frame.pts = round(begin * self.rate) + start
            frame.time_base = Fraction(1, self.rate)
            resampler = av.AudioResampler(
                format=track.codec_context.format, layout=track.codec_context.layout, rate=self.rate
            )
            for ready in resampler.resample(frame):
                ready.pts, ready.time_base = frame.pts, frame.time_base
                container.mux(track.encode(ready))
            place += size
        container.mux(track.encode(None))


def muxed(
    kind: str,
    codec: str,
    samples: np.ndarray,
    rate: int = 48_000,
    *,
    video: bool = False,
    pictures: float = 0,
    tracks: int = 1,
    **options,
) -> bytes:
    target = io.BytesIO()
    target.name = f"x.{kind}"
    with av.open(target, "w", format={"mkv": "matroska", "ts": "mpegts", "m4a": "ipod"}.get(kind, kind)) as container:
        if video:
            picture = container.add_stream("flv1" if kind == "flv" else "mpeg4", rate=10)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        sounds = [
            container.add_stream(codec, rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
            for _ in range(tracks)
        ]
        if tracks > 1:
            for track in sounds:
                track.disposition = av.stream.Disposition.default if track is sounds[-1] else 0
        if video:
            for i in range(round((pictures or len(samples) / rate + options.get("begin", 0)) * 10)):
                frame = av.VideoFrame(32, 32, "yuv420p")
                frame.pts = i
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        for i, track in enumerate(sounds):
            Frames(samples * (i == tracks - 1), rate).encode(track, container, **options)
    return target.getvalue()


VIDEO = [("mp4", "aac"), ("mov", "aac"), ("mkv", "libopus"), ("webm", "libopus"), ("ts", "aac"), ("flv", "aac")]


@pytest.mark.parametrize(("kind", "codec"), VIDEO)
def test_video_keeps_its_place_in_time(kind, codec):
    rate = 44_100 if kind == "flv" else 48_000
    samples = np.concatenate([sound(6.0, rate), np.zeros((rate, 1), np.float32)])
    plain, notes = heard(muxed(kind, codec, samples, rate, video=kind != "webm"))
    assert len(plain) / RATE == pytest.approx(7.0, abs=0.1)
    late, notes = heard(muxed(kind, codec, samples, rate, video=kind != "webm", begin=2.5))
    assert len(late) / RATE == pytest.approx(9.5, abs=0.15), notes.lines
    assert (
        re.search(r"its audio starts at 2\.[45]", " ".join(notes.lines))
        and np.abs(late[: int(2.4 * RATE)]).max() < 1e-3
    )
    assert late[int(2.6 * RATE) : 3 * RATE].std() > 0.1
    gap, notes = heard(muxed(kind, codec, samples, rate, video=kind != "webm", skip=(2.0, 4.0)))
    assert len(gap) / RATE == pytest.approx(7.0, abs=0.15), notes.lines
    assert "gap from" in " ".join(notes.lines)
    assert np.abs(gap[int(2.2 * RATE) : int(3.8 * RATE)]).max() < 1e-3
    best = np.argmax(np.correlate(gap[int(4.5 * RATE) : int(5.7 * RATE)], plain[5 * RATE : int(5.2 * RATE)], "valid"))
    assert best / RATE + 4.5 == pytest.approx(5.0, abs=0.06)


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("mkv", "libopus"), ("mkv", "aac"), ("flv", "aac")])
def test_pictures_may_last_longer_than_the_sound(kind, codec):
    rate = 44_100 if kind == "flv" else 48_000
    data = muxed(kind, codec, sound(3.0, rate), rate, video=True, pictures=8.0 if kind == "flv" else 20.0)
    samples, notes = heard(data)
    assert len(samples) / RATE == pytest.approx(3.0, abs=0.1) and not notes.lines
    if kind == "flv":
        with pytest.raises(AudioError, match="its end is missing"):
            heard(data[: len(data) // 3])
    if kind == "mkv":
        with pytest.raises(AudioError, match=r" of 3\.0\d s: its end is missing"):
            heard(data[: len(data) // 3])
        np.testing.assert_array_equal(heard(data.replace(b"DURATION", b"NO_VALUE"))[0], samples)


@pytest.mark.parametrize(("kind", "codec"), [("mkv", "libopus"), ("mp4", "aac"), ("mov", "aac")])
def test_the_default_track_is_read(kind, codec):
    samples, notes = heard(muxed(kind, codec, sound(3.0, 48_000), video=True, tracks=3))
    assert samples.std() > 0.1 and "3 audio tracks; number 3" in notes.lines[0] and "the default one" in notes.lines[0]


def adts(seconds_: float, rate: int, seed: int = 0) -> bytes:
    return muxed("adts", "aac", sound(seconds_, rate, seed=seed), rate)


def test_aac_with_a_bad_frame_and_another_rate():
    data = adts(4.0, 44_100)
    middle = data.index(b"\xff\xf1", len(data) // 2)
    bad = bytearray(data)
    bad[middle + 8 : middle + 40] = bytes(range(200, 232))
    samples, notes = heard(bytes(bad))
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.1)
    samples, notes = heard(data + adts(3.0, 22_050, 1))
    assert len(samples) / RATE == pytest.approx(7.0, abs=0.2) and any(
        "changes from 44100 to 22050" in line for line in notes.lines
    )


def test_amr_with_pauses():
    """Frames of discontinuous transmission (SID, and none at all) are comfort noise, not damage."""
    try:
        data = muxed("amr", "libopencore_amrnb", sound(3.0, 8_000), 8_000)
    except Exception:
        pytest.skip("this FFmpeg does not write AMR")
    frames, place = [], 6
    while place < len(data):
        length = 1 + (12, 13, 15, 17, 19, 20, 26, 31, 5)[data[place] >> 3 & 15]
        frames.append(data[place : place + length])
        place += length
    pause = [bytes([8 << 3 | 4]) + bytes(5), *[bytes([15 << 3 | 4])] * 7] * 5
    quiet = data[:6] + b"".join(frames[:75] + pause + frames[75:])
    samples, notes = heard(quiet)
    assert len(samples) / RATE == pytest.approx(3.0 + 40 * 0.02, abs=0.1) and not notes.partial


@pytest.mark.parametrize("kind", ["3gp", "3g2"])
def test_telephone_videos(tmp_path, kind):
    path = tmp_path / f"clip.{kind}"
    path.write_bytes(muxed(kind, "aac", sound(3.0, 44_100), 44_100, video=True))
    assert reading.find(tmp_path) == [path]
    assert len(reading.read(path)) / RATE == pytest.approx(3.0, abs=0.1)


def test_directories_say_what_they_leave_out(tmp_path, caplog):
    for name in ("a.amb", "b.3g2", "c.eac3", "d.sph", "e.ts", "f.ts", "g.raw", "h.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in reading.find(tmp_path)] == ["a.amb", "b.3g2", "c.eac3", "d.sph"]
    assert ": 1 .raw, 2 .ts. To read them" in caplog.text


def test_playlists_do_not_read_standard_input(tmp_path):
    for name, text in (
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nfd:\n#EXT-X-ENDLIST\n"),
        ("list.txt", "ffconcat version 1.0\nfile fd:\n"),
        ("list.txt", "ffconcat version 1.0\nfile 'fd:'\noption fd 0\n"),
    ):
        (tmp_path / name).write_text(text)
        before = os.lseek(0, 0, os.SEEK_CUR) if os.path.isfile("/dev/stdin") else 0
        with pytest.raises(AudioError, match="not a recording"):
            reading.read(tmp_path / name)
        assert before == (os.lseek(0, 0, os.SEEK_CUR) if os.path.isfile("/dev/stdin") else 0)


@pytest.mark.parametrize("kind", ["AU", "CAF", "AIFF", "W64", "RF64"])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_wrong_lengths_in_other_headers(kind, share):
    """A header that was never written counts nothing, one that was not kept up to date too little."""
    data = bytearray(encoded(kind, samples=sound(3.0)))
    size = 3 * RATE * 2
    for stored in (">I", "<I", ">Q", "<Q"):
        for extra in (0, 4, 8, 24):  # some count what stands before the samples
            before = struct.pack(stored, size + extra)
            place = data.find(before, 4 if kind != "W64" else 40)
            if 0 <= place < 4200:
                data[place : place + len(before)] = struct.pack(stored, int(share * size) + (extra if share else 0))
    samples, notes = heard(bytes(data))
    assert len(samples) == pytest.approx(3 * RATE, abs=40)
    assert bool(notes.lines) == (share < 1), notes.lines


def test_ac3_in_wav_is_not_heard_as_noise():
    """As receivers record it (IEC 61937)."""
    stream = muxed("spdif", "ac3", sound(3.0, 48_000, 2), 48_000)
    fmt = struct.pack("<HHIIHH", 1, 2, 48_000, 48_000 * 4, 4, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(stream)) + stream
    samples, notes = heard(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert len(samples) / RATE == pytest.approx(3.0, abs=0.1)
    assert samples.std() == pytest.approx(sound().std(), rel=0.1)
    assert "AC-3" in notes.lines[0]


def test_tags_that_lie_about_their_length():
    assert seconds(b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + mp3()) == pytest.approx(13.0, abs=0.05)
    assert seconds(bytes(40_000) + without_header(mp3())) == pytest.approx(13.0, abs=0.05)


def test_gsm_by_its_name(tmp_path):
    path = tmp_path / "clip.gsm"
    path.write_bytes(encoded("RAW", "GSM610", sound(3.0, 8_000), 8_000))
    assert reading.find(tmp_path) == [path]
    assert len(reading.read(path)) / RATE == pytest.approx(3.0, abs=0.1)


def dymn(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("command", ["tag", "events"])
def test_notes_and_damage_in_the_output_of_commands(tmp_path, caplog, command):
    whole = encoded("FLAC", samples=sound(12.0))
    (tmp_path / "lies.flac").write_bytes(flac_with_total(whole, 6 * RATE))
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    for kept in (False, True):  # through a journal or not
        output = ["-o", tmp_path / "out.json"] if kept else []
        asked = [command, tmp_path, "-m", "dymn04_open", "--format", "json", *output]
        refused = dymn(*asked)
        assert refused.exit_code == 1 and "cut.flac is truncated or damaged" in refused.stderr
        assert caplog.text.count("lies.flac: its header states 6.00 s, but its frames amount to 12.00 s") == 1
        partial = dymn(*asked, "--partial", *(["--fresh"] if kept else []))
        assert partial.exit_code == 0, partial.output
        text = (tmp_path / "out.json").read_text(encoding="utf-8") if kept else partial.stdout
        found = {os.path.basename(entry["file"]): entry for entry in json.loads(text)["recordings"]}
        assert found["cut.flac"]["partial"] and found["cut.flac"]["notes"][0].startswith("partial: ")
        assert "partial" not in found["lies.flac"] and "its frames amount to 12.00 s" in found["lies.flac"]["notes"][0]
        assert found["lies.flac"]["seconds"] == pytest.approx(12.0)
    rows = list(
        csv.DictReader(io.StringIO(dymn(command, tmp_path, "-m", "dymn04_open", "--format", "csv", "--partial").stdout))
    )
    assert {row["error"].startswith("partial: ") for row in rows if row["file"].endswith("cut.flac")} == {True}
    assert {row["error"] for row in rows if row["file"].endswith("lies.flac")} == {""}


def test_notes_in_python(tmp_path):
    path = tmp_path / "cut.flac"
    whole = encoded("FLAC", samples=sound(12.0))
    path.write_bytes(whole[: len(whole) // 2])
    tagger = Tagger.from_pretrained("dymn04_open", "cpu")
    with pytest.raises(AudioError):
        tagger.tag(path)
    assert tagger.tag(path, partial=True)
    (found,) = tagger.tag_files([path], TagSettings(partial=True))
    embedding, frames = tagger.embed(path, partial=True), tagger.frames(path, partial=True)
    assert found.partial and embedding.partial and frames.partial
    assert found.notes == embedding.notes == frames.notes and len(found.notes) == 1


def packed(samples: np.ndarray, layout: str, rate: int):
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    return frame


@pytest.mark.parametrize(
    ("kind", "codec"), [("mp4", "aac"), ("matroska", "libopus"), ("matroska", "wavpack"), ("matroska", "flac")]
)
@pytest.mark.parametrize(("channels", "layout"), [(6, "5.1"), (8, "7.1"), (16, "hexadecagonal")])
def test_many_channels(kind, codec, channels, layout):
    """PyAV counts the planes of a frame wrongly from eight on."""
    one = sound(2.0, 48_000)
    target = io.BytesIO()
    with av.open(target, "w", format=kind) as container:
        try:
            track = container.add_stream(codec, rate=48_000, layout=layout)
            track.codec_context.open()
        except (av.error.FFmpegError, ValueError):
            pytest.skip("the codec has not so many channels")
        context = track.codec_context
        options = {"rate": 48_000, "frame_size": context.frame_size or 1024}
        resampler = av.AudioResampler(format=context.format, layout=context.layout, **options)
        frame = packed(np.repeat(one, channels, axis=1), layout, 48_000)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    samples = reading.read(io.BytesIO(target.getvalue()), 48_000)
    assert len(samples) / 48_000 == pytest.approx(2.0, abs=0.05)
    assert reading.probe(io.BytesIO(target.getvalue())).channels == channels
    if codec in ("flac", "wavpack"):
        np.testing.assert_allclose(samples[: len(one)], one[:, 0], atol=0.01)


STREAMS = {
    "adts": ("aac", 48_000),
    "ac3": ("ac3", 48_000),
    "eac3": ("eac3", 48_000),
    "amr": ("libopencore_amrnb", 8_000),
}
VIDEOS = {
    "mp4": ("aac", 48_000),
    "flv": ("aac", 44_100),
    "avi": ("libmp3lame", 48_000),
    "ts": ("aac", 48_000),
    "mkv": ("libopus", 48_000),
}


@pytest.mark.parametrize("kind", [*STREAMS, *VIDEOS])
def test_cuts_holes_tails_and_joins(kind):
    codec, rate = (STREAMS | VIDEOS)[kind]
    data = muxed(kind, codec, sound(6.0, rate), rate)
    whole = seconds(data)
    assert whole == pytest.approx(6.0, abs=0.05) and not heard(data)[1].lines
    assert seconds(data + bytes(5000)) == pytest.approx(whole, abs=0.05)
    assert seconds(data + data) == pytest.approx(2 * whole, abs=0.1)
    cut = data[: len(data) * 6 // 10 - 3]
    with pytest.raises(AudioError, match=r"truncated or damaged|no index"):
        heard(cut)
    if kind != "mp4":  # its index is at the end
        samples, notes = heard(cut, partial=True)
        assert notes.partial and len(samples) / RATE == pytest.approx(3.6, abs=0.4)
    middle, lost = len(data) // 2, len(data) // 6
    hole = data[:middle] + np.random.default_rng(0).bytes(lost) + data[middle + lost :]
    try:
        samples, notes = heard(hole)
        assert "a gap from" in " ".join(notes.lines) and len(samples) / RATE == pytest.approx(whole, abs=0.2)
    except AudioError as error:
        assert "truncated or damaged" in str(error)  # noqa: PT017
    assert heard(hole, partial=True)[1].lines


@pytest.mark.parametrize("kind", ["mp3", "adts", "ac3"])
def test_sound_behind_much_that_is_none(kind):
    """It is not looked for without end, and what is left out is said."""
    part = mp3(sound(3.0, 44_100)) if kind == "mp3" else muxed(kind, STREAMS[kind][0], sound(3.0, 48_000), 48_000)
    data = part + np.random.default_rng(0).bytes(4_000_000) + part
    begin = time.process_time()
    try:
        samples, notes = heard(data)
        assert "bytes after its last frame" in " ".join(notes.lines) and len(samples) / RATE == pytest.approx(
            3.0, abs=0.1
        )
    except AudioError as error:
        assert "bytes between its frames are not frames" in str(error)  # noqa: PT017
    assert time.process_time() - begin < 5


def test_more_channels_than_ffmpeg_converts():
    data = bytearray(encoded("CAF"))
    data[47] = 65  # the channels in its description; its packets do not fit them any more
    with pytest.raises(AudioError):
        heard(bytes(data))


@pytest.mark.parametrize("rate", [1.7e308, -1.7e308, 1e-300, float("nan"), float("inf")])
def test_a_sample_rate_that_no_recorder_has_is_named(rate):
    data = bytearray(encoded("CAF")) + bytes(4000)  # more bytes than its header counts
    data[20:28] = struct.pack(">d", rate)
    with pytest.raises(AudioError, match=r"sample rate|not a recording"):
        heard(bytes(data))
