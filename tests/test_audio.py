"""Reading what is sound: formats, rates, channels, sources, blocks, arrays, finding."""

import errno
import gzip
import io
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dymn.audio import reading
from dymn.errors import AudioError, ConfigError
from dymn.inference.discovery import Discovery

FORMATS = {
    "wav16": ("WAV", "PCM_16", 1e-6),
    "wav24": ("WAV", "PCM_24", 1e-6),
    "wav32": ("WAV", "PCM_32", 1e-6),
    "wavfloat": ("WAV", "FLOAT", 1e-6),
    "wavu8": ("WAV", "PCM_U8", 1e-6),
    "rf64": ("RF64", "PCM_16", 1e-6),
    "w64": ("W64", "PCM_16", 1e-6),
    "flac": ("FLAC", "PCM_16", 1e-6),
    "aiff": ("AIFF", "PCM_24", 1e-6),
    "au": ("AU", "PCM_16", 1e-6),
    "caf": ("CAF", "PCM_16", 1e-6),
    "ogg": ("OGG", "VORBIS", 1e-6),
    "opus": ("OGG", "OPUS", 1e-6),
    "mp3": ("MP3", "MPEG_LAYER_III", 1e-5),
}


def tones(rate: int, seconds: float = 1.0, channels: int = 2) -> np.ndarray:
    """Sines with a little noise: float32 [N, channels]."""
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(rate).normal(0, 0.02, (len(time), channels))
    return (0.4 * np.sin(2 * np.pi * time[:, None] * (220 * (1 + np.arange(channels)))) + noise).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_formats_equal_resampling_of_the_whole_file(tmp_path, name):
    kind, subtype, tolerance = FORMATS[name]
    rate = 48_000 if subtype == "OPUS" else 44_100
    path = write(tmp_path / f"clip.{name}", tones(rate), rate, kind, subtype)
    decoded, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected = soxr.resample(decoded.mean(axis=1), rate, 32_000, quality="HQ")
    samples = reading.read(path)
    assert samples.dtype == np.float32 and samples.shape == expected.shape
    np.testing.assert_allclose(samples, expected, atol=tolerance)
    info = reading.probe(path)
    assert (info.sample_rate, info.channels, info.frames, info.seconds) == (rate, 2, len(decoded), len(decoded) / rate)
    assert subtype in info.format


@pytest.mark.parametrize(
    "rate", [1_000, 8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000, 44_101, 768_000]
)
def test_rates(tmp_path, rate):
    path = write(tmp_path / "clip.wav", tones(rate, 0.5, 1), rate, subtype="FLOAT")
    expected = soxr.resample(tones(rate, 0.5, 1)[:, 0], rate, 32_000, quality="HQ")
    np.testing.assert_allclose(reading.read(path), expected, atol=1e-6)
    assert len(reading.read(path, 16_000)) == pytest.approx(8_000, abs=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 64])
def test_channels_are_averaged(tmp_path, channels):
    samples = tones(32_000, 0.2, channels)
    path = write(tmp_path / "clip.wav", samples, 32_000, subtype="FLOAT")
    np.testing.assert_allclose(reading.read(path), samples.mean(axis=1), atol=1e-6)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    # several chunks of decoding
    return write(tmp_path_factory.mktemp("long") / "clip.flac", tones(44_100, 9.0), 44_100, "FLAC")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    block_seconds=st.one_of(st.floats(0.002, 20), st.sampled_from([1 / 32_000, 0.5, 9.0, 1e9])),
    rate=st.sampled_from([8_000, 32_000, 44_100]),
)
def test_blocks_joined_are_the_whole(long_clip, block_seconds, rate):
    if block_seconds * rate < 16:
        return  # hundreds of thousands of blocks; see the next test
    blocks = list(reading.stream(long_clip, rate, block_seconds))
    size = max(1, round(block_seconds * rate))
    assert all(len(block) == size for block in blocks[:-1]) and 0 < len(blocks[-1]) <= size
    np.testing.assert_array_equal(np.concatenate(blocks), reading.read(long_clip, rate))


def test_blocks_of_one_sample(tmp_path):
    path = write(tmp_path / "clip.wav", tones(44_100, 0.02), 44_100)
    blocks = list(reading.stream(path, block_seconds=1e-9))
    assert {block.shape for block in blocks} == {(1,)}
    np.testing.assert_array_equal(np.concatenate(blocks), reading.read(path))


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 3000),
    channels=st.integers(1, 4),
    rate=st.sampled_from([8_000, 32_000, 48_000, 50_001]),
    seed=st.integers(0, 99),
)
def test_files_and_arrays_agree(tmp_path_factory, length, channels, rate, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, (length, channels)).astype(np.float32)
    path = write(tmp_path_factory.getbasetemp() / "agree.wav", samples, rate, subtype="FLOAT")
    mono = samples.mean(axis=1)
    try:
        expected = reading.from_array(mono, rate)
    except AudioError:
        with pytest.raises(AudioError, match="less than one sample"):
            reading.read(path)
    else:
        np.testing.assert_allclose(reading.read(path), expected, atol=1e-6)


def test_esc10(shared):
    paths = reading.find(shared / "esc10" / "audio")
    assert len(paths) == 400
    for path in paths[::80]:
        decoded, rate = soundfile.read(path, dtype="float32", always_2d=True)
        np.testing.assert_allclose(
            reading.read(path), soxr.resample(decoded.mean(axis=1), rate, 32_000, quality="HQ"), atol=1e-6
        )


# Sources


def test_file_objects(tmp_path):
    path = write(tmp_path / "clip.wav", tones(44_100), 44_100)
    expected = reading.read(path)
    data = path.read_bytes()
    memory = io.BytesIO(data)
    assert reading.probe(memory).frames == 44_100
    assert memory.tell() == 0
    np.testing.assert_array_equal(reading.read(memory), expected)
    prefixed = io.BytesIO(b"12345" + data)
    prefixed.seek(5)
    np.testing.assert_array_equal(reading.read(prefixed), expected)
    (tmp_path / "prefixed").write_bytes(b"12345" + data)
    with path.open("rb") as whole, (tmp_path / "prefixed").open("rb") as part:
        part.seek(5)
        np.testing.assert_array_equal(reading.read(whole), expected)
        np.testing.assert_array_equal(reading.read(part), expected)
        assert not whole.closed
    with gzip.open(tmp_path / "clip.gz", "wb") as packed:
        packed.write(data)
    with gzip.open(tmp_path / "clip.gz", "rb") as packed:
        np.testing.assert_array_equal(reading.read(packed), expected)
    minimal = types.SimpleNamespace(read=io.BytesIO(data).read)
    np.testing.assert_array_equal(reading.read(minimal), expected)


def test_spool_goes_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("dymn.audio.content.SPOOL_MEMORY", 1000)
    path = write(tmp_path / "clip.flac", tones(44_100), 44_100, "FLAC")
    np.testing.assert_array_equal(reading.read(io.BytesIO(path.read_bytes())), reading.read(path))


@pytest.mark.parametrize("how", ["memory", "file", "pipe"])
def test_standard_input(tmp_path, monkeypatch, how):
    path = write(tmp_path / "clip.wav", tones(44_100), 44_100)
    data = path.read_bytes()
    with contextful_stdin(how, path, data) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        np.testing.assert_array_equal(reading.read("-"), reading.read(path))


class contextful_stdin:
    """A replacement of sys.stdin: bytes in memory, a redirected file, or a pipe that a thread fills."""

    def __init__(self, how, path, data):
        if how == "pipe":
            self.reader, writer = os.pipe()
            raw = os.fdopen(self.reader, "rb")
            threading.Thread(target=self.fill, args=(writer, data), daemon=True).start()
        else:
            raw = io.BytesIO(data) if how == "memory" else path.open("rb")
        self.stdin = io.TextIOWrapper(raw)

    @staticmethod
    def fill(writer, data):
        with os.fdopen(writer, "wb") as stream:
            stream.write(data)

    def __enter__(self):
        return self.stdin

    def __exit__(self, *_):
        self.stdin.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo(tmp_path):
    path = write(tmp_path / "clip.wav", tones(44_100, 3.0), 44_100)
    fifo = tmp_path / "fifo.wav"
    os.mkfifo(fifo)
    threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()), daemon=True).start()
    np.testing.assert_array_equal(reading.read(fifo), reading.read(path))


@pytest.mark.parametrize(
    "name",
    [
        "ünï çødé 音.wav",
        "-x.wav",
        "--help",
        " spaced .wav",
        "take[1].wav",
        "*.wav",
        "a?b.wav",
        "no_ending",
        "x.raw",
        "%s{}.mp3",
    ],
)
def test_odd_names(tmp_path, monkeypatch, name):
    write(tmp_path / name, tones(32_000, 0.1), 32_000)
    monkeypatch.chdir(tmp_path)
    assert reading.find([name]) == [Path(name)]
    assert len(reading.read(name)) == len(reading.read(tmp_path / name)) == 3200


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only on Linux")
def test_name_that_is_not_unicode(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\n.wav"
    write(tmp_path / "clip.wav", tones(32_000, 0.1), 32_000).rename(os.fsdecode(name))
    assert len(reading.read(os.fsdecode(name))) == 3200
    assert len(reading.find(tmp_path)) == 1
    with open(name, "wb") as stream:
        stream.write(b"no audio")
    with pytest.raises(AudioError) as error:
        reading.read(os.fsdecode(name))
    assert str(error.value).isprintable() and r"\udcff\n.wav" in str(error.value)


def test_a_file_called_dash(tmp_path, monkeypatch):
    write(tmp_path / "-", tones(32_000, 0.1), 32_000)
    monkeypatch.chdir(tmp_path)
    assert reading.find(["-"]) == [Path("-")]
    assert len(reading.read(reading.find(["./-"])[0])) == 3200


# Finding


def test_find(tmp_path, monkeypatch):
    for name in (
        "b.wav",
        "a.FLAC",
        "notes.txt",
        ".hidden.wav",
        "sub/c.m4a",
        "sub/.cache/d.wav",
        "sub/deep/e.mp3",
        "take[1].wav",
        "take1.wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path / "sub", target_is_directory=True)
    everything = sorted(map(Path, ("a.FLAC", "b.wav", "sub/c.m4a", "sub/deep/e.mp3", "take1.wav", "take[1].wav")))
    assert reading.find(["."]) == everything
    assert reading.find(".") == everything
    assert reading.find(["b.wav", ".", "./b.wav", tmp_path / "b.wav", "-"]) == sorted([Path("-"), *everything])
    assert reading.find(["*.wav"]) == [Path("b.wav"), Path("take1.wav"), Path("take[1].wav")]
    assert reading.find(["take[1].wav"]) == [Path("take[1].wav")]
    assert reading.find(["s*"]) == [Path("sub/c.m4a"), Path("sub/deep/e.mp3")]
    assert reading.find(["sub/**/*.mp3"])[0] == Path("sub/deep/e.mp3")
    assert reading.find(["notes.txt", "missing.wav"]) == [Path("missing.wav"), Path("notes.txt")]
    assert reading.find([]) == []


def test_folders_that_cannot_be_listed_are_told(tmp_path, monkeypatch):
    for name in ("open/a.wav", "closed/b.wav", "open/far/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scandir, stat = os.scandir, os.stat

    def refused(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    def unreachable(path, **options):
        if not isinstance(path, int) and Path(os.fsdecode(path)).name == "far":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "stat", unreachable)
    for named in (tmp_path, tmp_path / "*", tmp_path / "**" / "*.wav", tmp_path / "closed"):
        with Discovery([str(named)]) as discovery:
            found, lost = discovery.sorted(), {Path(name).name: str(error) for name, error in discovery.lost}
        assert "closed cannot be listed: Permission denied" in lost["closed"]
        assert ("far" in lost) == (named.name in (tmp_path.name, "*"))  # glob itself asks for no status
        assert len(found) == {"closed": 0, "*.wav": 2}.get(named.name, 1)
        assert len(discovery.lost) == len(lost) == len(discovery.unlisted)
    with pytest.raises(AudioError, match="cannot be listed"):
        reading.find([tmp_path])


def test_find_says_where_there_is_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(AudioError, match=r"contains no recording.*\.flac"):
        reading.find([tmp_path])
    with pytest.raises(AudioError, match="matches nothing"):
        reading.find([tmp_path / "*.wav"])
    with pytest.raises(AudioError, match="none of them a recording"):
        reading.find([tmp_path / "*"])


# Arrays


def test_from_array_layouts():
    samples = tones(44_100, 0.5)
    expected = soxr.resample(samples.mean(axis=1), 44_100, 32_000, quality="HQ")
    for array in (
        samples,
        samples.T,
        np.ascontiguousarray(samples.T),
        torch.from_numpy(samples),
        torch.from_numpy(samples.T),
        samples.astype(float),
    ):
        np.testing.assert_allclose(reading.from_array(array, 44_100), expected, atol=1e-6)
    mono = samples[:, 0]
    for array in (mono, mono[None], mono[:, None], mono[::-1][::-1], torch.from_numpy(mono).requires_grad_()):
        np.testing.assert_allclose(reading.from_array(array, 32_000), mono, atol=0)
    assert reading.from_array(mono, 32_000) is not mono
    assert reading.from_array(np.ones((1, 7), np.float32), 32_000).shape == (7,)
    assert reading.from_array(np.ones((1, 1), np.float32), 32_000).shape == (1,)
    np.testing.assert_allclose(reading.from_array(torch.ones(9, dtype=torch.bfloat16), 32_000), np.ones(9))


@pytest.mark.parametrize(
    ("dtype", "quarter", "half"),
    [("int8", 32, -64), ("int16", 8192, -16384), (">i2", 8192, -16384), ("int32", 2**29, -(2**30)), ("uint8", 160, 64)],
)
def test_from_array_integers(dtype, quarter, half):
    np.testing.assert_array_equal(
        reading.from_array(np.array([quarter, half], dtype), 32_000), np.float32([0.25, -0.5])
    )


def test_from_array_equals_resampling_at_once():
    mono = tones(44_100, 20.0, 1)[:, 0]
    np.testing.assert_allclose(
        reading.from_array(mono, 44_100), soxr.resample(mono, 44_100, 32_000, quality="HQ"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(0, np.float32), "contains no samples"),
        (np.zeros((2, 0), np.float32), "contains no samples"),
        (np.zeros((2, 2, 100), np.float32), r"\[2, 2, 100\]"),
        (np.zeros((2, 20), np.float32), "ambiguous which axis"),
        (np.zeros((100, 200), np.float32), "ambiguous which axis"),
        (np.float32(0.5), "float32"),
        (np.array(0.5, np.float32), r"shape \[\]"),
        (np.zeros(10, np.int64), "int64"),
        (np.zeros(10, bool), "bool"),
        (np.zeros(10, complex), "complex128"),
        (np.array(["a"]), "allowed"),
        ([0.0, 0.1], "list"),
        (np.array([0, np.nan], np.float32), "nan at 0.000 s"),
        (np.array([0.0, -np.inf]), "-inf"),
        (np.array([0.0, 1e300]), "inf"),
        (np.full(4, 1e20), "1e\\+20"),
        (torch.tensor([[0.0, float("nan")]]), "nan"),
    ],
)
def test_from_array_refuses(array, message):
    with pytest.raises(AudioError, match=message):
        reading.from_array(array, 32_000)


@pytest.mark.parametrize("rate", [0, -1, 999, 768_001, 44_100.5, float("nan"), float("inf"), "44100", None, True])
def test_rates_that_are_not_allowed(rate):
    clip = np.zeros(10, np.float32)
    with pytest.raises(ConfigError, match="from 1000 to 768000"):
        reading.from_array(clip, rate)
    with pytest.raises(ConfigError, match="target_rate"):
        reading.from_array(clip, 32_000, rate)
    with pytest.raises(ConfigError, match="sample_rate"):
        reading.read("x.wav", rate)
    with pytest.raises(ConfigError, match="sample_rate"):
        reading.stream("x.wav", rate)


@pytest.mark.parametrize("block", [0, -1.0, float("nan"), float("inf"), "3", None])
def test_block_lengths_that_are_not_allowed(block):
    with pytest.raises(ConfigError, match="block_seconds"):
        reading.stream("x.wav", block_seconds=block)


def test_whole_numbers_of_other_types_are_rates():
    assert len(reading.from_array(np.zeros(441, np.float32), np.float64(44_100.0), np.int32(32_000))) == 320
