"""Recordings that are not what they should be, and those that need FFmpeg."""

import io
import os
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dymn.audio import mpeg, reading, sources
from dymn.audio.content import Content
from dymn.audio.decoder import MissingDecoderError
from dymn.errors import AudioError

resource = pytest.importorskip("resource")
MESSAGE_WORDS = ("Error opening", "soundfile.", "object at 0x", "Traceback", "Errno")


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def noise(frames: int = 44_100, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (frames, channels)).astype(np.float32)


def encoded(
    kind: str, subtype: str = "PCM_16", samples: np.ndarray | None = None, rate: int = 44_100, **options
) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, noise() if samples is None else samples, rate, format=kind, subtype=subtype, **options)
    return target.getvalue()


def wav(rate=44_100, channels=1, bits=16, size=None, data=bytes(88_200), kind=1) -> bytes:
    """A WAV file with any header, true or not."""
    byte_rate, frame = (rate * channels * bits // 8) & 0xFFFF_FFFF, (channels * bits // 8) & 0xFFFF
    size = len(data) if size is None else size
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        0xFFFF_FFFF,
        b"WAVE",
        b"fmt ",
        16,
        kind,
        channels,
        rate,
        byte_rate,
        frame,
        bits,
        b"data",
        size,
    )
    return header + data


def floats(*values: float) -> bytes:
    return wav(32_000, 1, 32, data=np.array(values, "<f4").tobytes(), kind=3)


def flac_claiming(frames: int) -> bytes:
    data = bytearray(encoded("FLAC"))
    data[21] = (data[21] & 0xF0) | frames >> 32
    data[22:26] = struct.pack(">I", frames & 0xFFFF_FFFF)
    return bytes(data)


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + np.random.default_rng(0).bytes(3000) + data[middle + 3000 :]


BAD = {
    "empty.wav": (b"", r"empty \(0 bytes\)"),
    "text.wav": (b"this is not audio, whatever it is called\n" * 50, "not a recording"),
    "text.mp3": (b"this is not audio, whatever it is called\n" * 50, "not a recording"),
    "text.raw": (b"this is not audio, whatever it is called\n" * 50, "not a recording"),
    "text.au": (b"this is not audio, whatever it is called\n" * 50, "not a recording"),
    "text.vox": (b"this is not audio, whatever it is called\n" * 50, "not a recording"),
    "page.wav": (b"<html><body>404</body></html>", "not a recording"),
    "zeros.wav": (bytes(100_000), "(not a recording|truncated or damaged)"),
    "noise.flac": (np.random.default_rng(1).bytes(200_000), "(not a recording|truncated or damaged)"),
    "no_samples.wav": (wav(data=b""), "contains no samples"),
    "no_samples.aiff": (encoded("AIFF", samples=np.zeros((0, 1), np.float32)), "contains no samples"),
    "header.wav": (wav()[:30], "not a recording"),
    "cut.wav": (wav()[:40_000], "truncated or damaged after 0.45 s of 1.00 s"),
    "claims_hours.wav": (wav(size=0x7000_0000), r"after 1.00 s of 5\.9 h"),
    "claims_days.flac": (flac_claiming(2**36 - 1), "of 432.9 h"),
    "rate0.wav": (wav(rate=0), "(sample rate of 0|not a recording)"),
    "rate1.wav": (wav(rate=1), "sample rate of 1 Hz, which --speed 1 turns into 1 Hz; it must be from 100 to"),
    "rate2e9.wav": (wav(rate=2**31 - 1), "sample rate of 2147483647 Hz; it must be from 1 to 768000 Hz"),
    "rate4e9.wav": (wav(rate=2**32 - 1), "(sample rate|not a recording|truncated)"),
    "channels0.wav": (wav(channels=0), "(channels|not a recording)"),
    "channels1000.wav": (wav(channels=1000), "1000 channels; allowed: 1 to 256"),
    "channels65535.wav": (wav(channels=65_535), "(channels|not a recording|truncated)"),
    "bits0.wav": (wav(bits=0), "(not a recording|truncated)"),
    "nan.wav": (floats(0, float("nan")), "nan at 0.000 s; samples must be finite"),
    "inf.wav": (floats(*[0] * 32_000, float("inf")), "inf at 1.000 s"),
    "minus_inf.wav": (floats(0, -float("inf")), "-inf"),
    "huge.wav": (floats(0, 1e30), r"1e\+30"),
    "cut.flac": (encoded("FLAC")[:80_000], "truncated or damaged"),
    "cut.ogg": (encoded("OGG", "VORBIS")[:10_000], "truncated or damaged.*last page"),
    "cut.opus": (encoded("OGG", "OPUS", rate=48_000)[:10_000], "truncated or damaged.*last page"),
    "cut.mp3": (encoded("MP3", "MPEG_LAYER_III")[:9_000], "truncated or damaged after 0.* of 1.00 s"),
    "cut.aiff": (encoded("AIFF")[:90_000], "truncated or damaged after 0.51 s of 1.00 s"),
    "cut.caf": (encoded("CAF")[:90_000], "(truncated or damaged|not a recording)"),
    "cut.au": (encoded("AU")[:90_000], "truncated or damaged"),
    "cut.w64": (encoded("W64")[:90_000], "truncated or damaged"),
    "cut.rf64": (encoded("RF64")[:90_000], "truncated or damaged"),
    "damaged.flac": (damaged(encoded("FLAC")), "truncated or damaged"),
    "damaged.ogg": (damaged(encoded("OGG", "VORBIS", noise(200_000))), "truncated or damaged"),
    "one_sample.wav": (wav(rate=768_000, data=bytes(2)), "less than one sample"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("with_ffmpeg", [True, False], ids=["av", "no_av"])
@pytest.mark.filterwarnings("error")
def test_bad_recordings(tmp_path, monkeypatch, capfd, name, with_ffmpeg):
    if not with_ffmpeg:
        monkeypatch.setitem(sys.modules, "av", None)
    data, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(AudioError, match=message) as error:
        reading.read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    assert not any(word in text for word in MESSAGE_WORDS)
    assert any(
        remedy in text
        for remedy in ("Check", "Copy", "copy", "ffmpeg -i", "Record", "Repair", "pip install", "Replace")
    )
    with pytest.raises(AudioError):
        list(reading.stream(path, block_seconds=0.1))
    with pytest.raises(AudioError):
        reading.read(io.BytesIO(data))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64"])
def test_any_damage_is_an_audio_error(tmp_path, kind):
    """Random bytes anywhere and any cut: an answer or an AudioError, nothing else, soon and in little memory."""
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")
    whole = encoded(kind, subtype, noise(4_000))
    generator = np.random.default_rng(len(kind))
    before = peak_memory()
    for _ in range(40):
        data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for position in generator.integers(
            0, min(len(data), generator.choice([64, len(data)])), generator.integers(0, 6)
        ):
            data[position] = generator.choice([0, 0x7F, 0xFF, generator.integers(256)])
        try:
            samples = reading.read(io.BytesIO(bytes(data)))
        except AudioError:
            continue
        assert samples.ndim == 1 and np.isfinite(samples).all()
    assert peak_memory() - before < 200


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000])
def test_wav_of_unknown_length_is_read_to_its_end(size):
    assert len(reading.read(io.BytesIO(wav(size=size)))) == 32_000


def test_a_few_missing_samples_are_a_warning(tmp_path, caplog):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav()[:-200])
    assert len(reading.read(path)) == pytest.approx(32_000 - 73, abs=1)
    assert "clip.wav: it ends 0.002 s earlier than its header states" in caplog.text


def test_flac_of_unknown_length():
    data = flac_claiming(0)
    assert reading.probe(io.BytesIO(data)).frames is None
    assert len(reading.read(io.BytesIO(data))) == 32_000


def headerless_mp3(samples: np.ndarray) -> bytes:
    """MP3 with a variable bit rate whose first frame, which states the length, is cut off."""
    data = encoded("MP3", "MPEG_LAYER_III", samples, bitrate_mode="VARIABLE", compression_level=0.5)
    assert b"Xing" in data
    return data[data.index(b"\xff\xfb", 4) :]


def test_mp3_without_a_header_is_read_to_its_end():
    """The first frame says nothing of the bit rates behind it."""
    quiet, loud = np.zeros((441_000, 1), np.float32), noise(441_000, 1)
    for parts in ((loud, quiet), (quiet, loud)):
        data = headerless_mp3(np.concatenate(parts))
        info = reading.probe(io.BytesIO(data))
        assert info.seconds == pytest.approx(20, abs=0.1)
        assert len(reading.read(io.BytesIO(data))) / 32_000 == pytest.approx(info.seconds, abs=1e-3)


def test_mp3_length_is_found_behind_a_picture():
    data = encoded("MP3", "MPEG_LAYER_III")
    tag = b"ID3\x03\0\0" + bytes([0, 2, 0, 0]) + bytes(2 * 2**14)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(tag + data)
        content = Content(file.fileno())
        assert mpeg.id3_length(content) == len(tag)
        found = mpeg.frames(content, len(tag))
        assert len(found.parts) == 1 and found.parts[0].length == 44_100 and not found.lost and not found.cut
    assert len(reading.read(io.BytesIO(tag + data))) == 32_000


def test_missing_and_unreadable(tmp_path, monkeypatch):
    with pytest.raises(AudioError, match="an empty path"):
        reading.read("")
    with pytest.raises(AudioError, match=r"no\.wav does not exist\. Check the path"):
        reading.read(tmp_path / "no.wav")
    with pytest.raises(AudioError, match="download the file first"):
        reading.read(Path("https://example.org/x.wav"))
    with pytest.raises(AudioError, match="is a folder"):
        reading.read(tmp_path)
    with pytest.raises(AudioError, match="cannot be opened"):
        reading.read("a\0b.wav")
    with pytest.raises(AudioError, match="cannot be opened"):
        reading.read("x" * 5000)
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with pytest.raises(AudioError, match="cannot be opened"):
        reading.read(tmp_path / "loop.wav")
    if Path("/dev/zero").exists():
        with pytest.raises(AudioError, match="is a device"):
            reading.read("/dev/zero")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.wav").write_bytes(b"x")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AudioError, match="permission denied"):
        reading.read(tmp_path / "x.wav")


@pytest.mark.parametrize("source", [None, 5, 1.5, np.zeros(5), [0.0]])
def test_what_is_no_source(source):
    with pytest.raises(AudioError, match="from_array"):
        reading.read(source)


class Broken(io.RawIOBase):
    """A stream that fails after some bytes."""

    def __init__(self, answer):
        self.answer, self.count = answer, 0

    def readable(self):
        return True

    def read(self, size=-1):
        self.count += 1
        if self.count == 1:
            return wav()[:100]
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (RuntimeError("boom"), "boom"),
        ("text", "text"),
        (None, "NoneType"),
    ],
)
def test_streams_that_fail(answer, message):
    with pytest.raises(AudioError, match=f"Broken object.*{message}"):
        reading.read(Broken(answer))


def test_file_objects_that_cannot_be_read(tmp_path):
    with (tmp_path / "x.wav").open("wb") as stream, pytest.raises(AudioError, match="not open for reading"):
        reading.read(stream)
    closed = io.BytesIO(wav())
    closed.close()
    with pytest.raises(AudioError, match="closed file"):
        reading.read(closed)
    with pytest.raises(AudioError, match="closed file"):
        reading.probe(closed)
    with pytest.raises(AudioError, match="binary"):
        reading.read(io.StringIO("hello"))
    with (tmp_path / "x.wav").open("rb") as stream, pytest.raises(AudioError, match="is empty"):
        reading.read(stream)


def test_a_file_object_that_is_closed_while_it_is_read(tmp_path):
    """It is read through a descriptor of its own: another file that gets the number of the closed one is not read."""
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(data=bytes(10 * 2**20)))
    stream = path.open("rb")
    blocks = reading.stream(stream, block_seconds=1)
    first = next(blocks)
    stream.close()
    with (tmp_path / "other.wav").open("wb"):
        assert len(first) + sum(map(len, blocks)) == len(reading.read(path))


def test_a_file_object_stays_where_it_stands(tmp_path):
    path = tmp_path / "clip.flac"
    path.write_bytes(encoded("FLAC"))
    with path.open("rb") as stream:
        expected = stream.read()
        stream.seek(0)
        reading.probe(stream)
        reading.read(stream)
        assert stream.tell() == 0 and stream.read() == expected
    with path.open("rb", buffering=0) as stream:
        reading.read(stream)
        assert stream.read() == expected


def test_streams_are_not_probed():
    with pytest.raises(AudioError, match="standard input can be read only once"):
        reading.probe("-")
    with pytest.raises(AudioError, match="cannot be probed"):
        reading.probe(Broken(b""))


def test_standard_input_without_data(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(AudioError, match="standard input ended before it sent anything"):
        reading.read("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(AudioError, match="Standard input is closed"):
        reading.read("-")
    terminal = io.TextIOWrapper(io.BytesIO())
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(AudioError, match="Nothing is piped"):
        reading.read("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_that_disappoints(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "IDLE_SECONDS", 0.3)
    fifo = tmp_path / "fifo.wav"
    os.mkfifo(fifo)
    with pytest.raises(AudioError, match="only once"):
        reading.probe(fifo)
    start = time.monotonic()
    with pytest.raises(AudioError, match=r"fifo\.wav sent nothing for 0\.3 s"):
        reading.read(fifo)
    assert time.monotonic() - start < 5

    def writer(data, pause):
        with fifo.open("wb") as stream:
            stream.write(data)
            stream.flush()
            time.sleep(pause)

    for data, pause, message in (
        (b"", 0, "ended before it sent anything"),
        (wav()[:30_000], 0, "truncated or damaged"),
        (wav()[:30_000], 1, "sent nothing"),
    ):
        thread = threading.Thread(target=writer, args=(data, pause))
        thread.start()
        with pytest.raises(AudioError, match=message):
            reading.read(fifo)
        thread.join()


def test_streams_and_recordings_without_end(monkeypatch):
    monkeypatch.setattr(sources, "SPOOL_LIMIT", 5 * 2**20)

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def read(self, size=-1):
            return bytes(size)

    with pytest.raises(AudioError, match="sent more than"):
        reading.read(Endless())
    monkeypatch.setattr(reading, "MAX_READ_HOURS", 0.5 / 3600)
    with pytest.raises(AudioError, match=r"longer than .* dymn\.audio\.reading\.stream"):
        reading.read(io.BytesIO(wav()))


def test_blocks_of_a_long_recording_take_little_memory(tmp_path):
    """An hour of silence in a few kB of FLAC: decoded, 460 MB."""
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 32_000, 1) as sound:
        for _ in range(60):
            sound.write(np.zeros(32_000 * 60, np.float32))
    before = peak_memory()
    assert sum(len(block) for block in reading.stream(path)) == 3600 * 32_000
    assert peak_memory() - before < 100


def test_a_stream_that_is_left_early_closes_its_file(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav())
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    blocks = reading.stream(path, block_seconds=0.1)
    next(blocks)
    blocks.close()
    reading.stream(path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


# FFmpeg


def with_av(path: Path, codec: str, rate: int = 48_000, seconds: float = 2.0, sound: bool = True) -> Path:
    """Write a sine of 440 Hz with PyAV; without `sound`, a video without audio."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        if not sound:
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            for _ in range(5):
                container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(video.encode(None))
            return path
        track = container.add_stream(codec, rate=rate, layout="stereo")
        wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(
            format=track.format, layout="stereo", rate=rate, frame_size=track.frame_size or 1024
        )
        for part in resampler.resample(frame) + resampler.resample(None):
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"),
        ("a.mp4", "aac"),
        ("a.webm", "libopus"),
        ("a.mka", "flac"),
        ("a.aac", "aac"),
        ("a.mov", "pcm_s16le"),
        ("a.avi", "pcm_s16le"),
        ("a.ac3", "ac3"),
    ],
)
def test_ffmpeg_formats(tmp_path, name, codec):
    path = with_av(tmp_path / name, codec)
    samples = reading.read(path)
    assert len(samples) / 32_000 == pytest.approx(2, abs=0.08)
    spectrum = np.abs(np.fft.rfft(samples[16_000:48_000] * np.hanning(32_000)))
    assert spectrum.argmax() == 440
    assert samples[16_000:48_000].std() == pytest.approx(0.3 / 2**0.5, rel=0.05)
    np.testing.assert_array_equal(np.concatenate(list(reading.stream(path, block_seconds=0.3))), samples)
    np.testing.assert_array_equal(reading.read(io.BytesIO(path.read_bytes())), samples)
    info = reading.probe(path)
    assert (info.sample_rate, info.channels) == (48_000, 2)
    assert info.seconds is None or info.seconds == pytest.approx(2, abs=0.05)
    cut = path.read_bytes()[: path.stat().st_size * 6 // 10]
    if name not in ("a.avi", "a.ac3"):  # their headers do not tell
        with pytest.raises(AudioError, match=r"(truncated or damaged|complete)"):
            reading.read(io.BytesIO(cut))


def test_without_pyav_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "clip.m4a"
    path.write_bytes(b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x08moov")
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(MissingDecoderError, match="pip install av") as error:
            reading.read(source)
        assert isinstance(error.value, AudioError)
    with pytest.raises(AudioError, match=r"clip\.m4a needs PyAV"):
        reading.read(path)


def test_healthy_mp3_needs_no_pyav(monkeypatch):
    data = encoded("MP3", "MPEG_LAYER_III")
    expected = reading.read(io.BytesIO(data))
    monkeypatch.setitem(sys.modules, "av", None)
    np.testing.assert_allclose(reading.read(io.BytesIO(data)), expected, atol=1e-4)


def test_video_without_sound(tmp_path):
    with pytest.raises(AudioError, match="has no audio track"):
        reading.read(with_av(tmp_path / "mute.mp4", "", sound=False))


def test_playlists_open_nothing(tmp_path):
    with_av(tmp_path / "secret.aac", "aac")
    for name, text in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{tmp_path}/secret.aac\n#EXT-X-ENDLIST\n"),
        ("list.txt", f"ffconcat version 1.0\nfile {tmp_path}/secret.aac\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="not a recording"):
            reading.read(tmp_path / name)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        *[
            (kind, subtype)
            for kind in ("WAV", "WAVEX", "RF64", "W64", "CAF")
            for subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
        ],
        *[
            (kind, subtype)
            for kind in ("AIFF", "AU")
            for subtype in ("PCM_16", "PCM_24", "PCM_32", "PCM_S8", "FLOAT", "DOUBLE")
        ],
        *[(kind, subtype) for kind in ("WAV", "AIFF", "AU", "CAF") for subtype in ("ALAW", "ULAW")],
        ("WAV", "PCM_U8"),
        ("CAF", "PCM_S8"),
    ],
)
@pytest.mark.parametrize("endian", ["FILE", "BIG", "LITTLE"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stored_samples_equal_those_of_libsndfile(monkeypatch, container, subtype, endian, channels):
    if not soundfile.check_format(container, subtype, endian):
        pytest.skip("there is no such file")
    samples = np.random.default_rng(0).uniform(-1, 1, (9_000, channels)).astype(np.float32)
    data = encoded(container, subtype, samples, 32_000, endian=endian)
    monkeypatch.setattr("dymn.audio.decoding.open_libsndfile", None)  # nobody is asked
    found = reading.read(io.BytesIO(data))
    expected = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
    assert found.flags.writeable
    np.testing.assert_allclose(found, expected.mean(axis=1), atol=1e-7)
    info = reading.probe(io.BytesIO(data))
    assert (info.sample_rate, info.channels, info.frames) == (32_000, channels, 9_000) and info.format.endswith(subtype)


def test_chunks_around_the_samples():
    samples = np.random.default_rng(0).uniform(-1, 1, (9_000, 1)).astype(np.float32)
    head, data = encoded("WAV", samples=samples, rate=32_000).split(b"data", 1)
    odd = head + b"LIST\x03\x00\x00\x00abc\x00data" + data + b"LIST\x04\x00\x00\x00data"
    assert len(reading.read(io.BytesIO(odd))) == 9_000
