"""One sound in many encodings: the same tags from each, and a duration that agrees with the samples."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from dymn import Tagger
from dymn.audio import reading
from dymn.audio.notes import Notes

av = pytest.importorskip("av")
SOUND = Path(__file__).parents[1] / "examples" / "audio" / "dog.ogg"
RATE = 32_000
LOSSLESS, LOSSY, TELEPHONE = 0.002, 0.1, 0.35
"""How much the probability of the likeliest label may differ; telephones drop what is above 4 kHz."""


class Encoding:
    """How the sound is encoded: by libsndfile or FFmpeg, at a rate, with a tolerance of its score."""

    def __init__(
        self, kind: str, codec: str, rate: int = RATE, tolerance: float = LOSSLESS, channels: int = 1, **options
    ) -> None:
        self.kind, self.codec, self.rate, self.tolerance = kind, codec, rate, tolerance
        self.channels, self.options = channels, options

    def encode(self, samples: np.ndarray) -> bytes:
        samples = np.clip(samples if self.rate == RATE else soxr.resample(samples, RATE, self.rate), -1, 1)
        samples = np.repeat(samples[:, None], self.channels, axis=1).astype(np.float32)
        return self.with_libsndfile(samples) if self.kind.isupper() else self.with_ffmpeg(samples)

    def with_libsndfile(self, samples: np.ndarray) -> bytes:
        target = io.BytesIO()
        with soundfile.SoundFile(
            target, "w", self.rate, self.channels, format=self.kind, subtype=self.codec, **self.options
        ) as file:
            for start in range(0, len(samples), 4096):
                file.write(samples[start : start + 4096])
        return target.getvalue()

    def with_ffmpeg(self, samples: np.ndarray) -> bytes:
        target = io.BytesIO()
        with av.open(target, "w", format=self.kind) as container:
            track = container.add_stream(
                self.codec, rate=self.rate, layout="stereo" if self.channels == 2 else "mono", **self.options
            )
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T), format="fltp", layout=track.codec_context.layout.name
            )
            frame.sample_rate, frame.pts, frame.time_base = self.rate, 0, Fraction(1, self.rate)
            sizes = {"frame_size": track.codec_context.frame_size or 1024}
            context = track.codec_context
            resampler = av.AudioResampler(format=context.format, layout=context.layout, rate=self.rate, **sizes)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(track.encode(part))
            container.mux(track.encode(None))
        return target.getvalue()


def half_wav(samples: np.ndarray) -> bytes:
    data = samples.astype("<f2").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 1, RATE, RATE * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


ENCODINGS = {
    "wav 16": Encoding("WAV", "PCM_16"),
    "wav 8": Encoding("WAV", "PCM_U8", tolerance=LOSSY),
    "wav 24": Encoding("WAV", "PCM_24", channels=2),
    "wav 32": Encoding("WAV", "PCM_32"),
    "wav float": Encoding("WAV", "FLOAT"),
    "wav double": Encoding("WAV", "DOUBLE"),
    "wav a-law": Encoding("WAV", "ALAW", tolerance=LOSSY),
    "wav u-law": Encoding("WAV", "ULAW", tolerance=LOSSY),
    "wav ima adpcm": Encoding("WAV", "IMA_ADPCM", tolerance=LOSSY),
    "wav ms adpcm": Encoding("WAV", "MS_ADPCM", tolerance=LOSSY),
    "wav 44.1": Encoding("WAV", "PCM_16", 44_100, 0.02),
    "wav big": Encoding("WAV", "PCM_16", endian="BIG"),
    "wavex": Encoding("WAVEX", "PCM_16", channels=2),
    "rf64": Encoding("RF64", "PCM_16"),
    "w64": Encoding("W64", "PCM_24"),
    "aiff": Encoding("AIFF", "PCM_16"),
    "aifc little": Encoding("AIFF", "PCM_16", endian="LITTLE"),
    "au": Encoding("AU", "PCM_16"),
    "caf": Encoding("CAF", "PCM_16"),
    "caf alac": Encoding("CAF", "ALAC_16"),
    "flac": Encoding("FLAC", "PCM_16"),
    "flac 24": Encoding("FLAC", "PCM_24", channels=2),
    "ogg vorbis": Encoding("OGG", "VORBIS", tolerance=LOSSY),
    "ogg opus": Encoding("OGG", "OPUS", 48_000, LOSSY),
    "mp3": Encoding("MP3", "MPEG_LAYER_III", tolerance=LOSSY),
    "mp3 vbr": Encoding("MP3", "MPEG_LAYER_III", 44_100, LOSSY, bitrate_mode="VARIABLE", compression_level=0.3),
    "mp2": Encoding("mp2", "mp2", tolerance=LOSSY),
    "m4a aac": Encoding("ipod", "aac", 44_100, LOSSY, 2),
    "m4a alac": Encoding("ipod", "alac"),
    "mp4 aac": Encoding("mp4", "aac", tolerance=LOSSY),
    "3gp aac": Encoding("3gp", "aac", tolerance=LOSSY),
    "mov": Encoding("mov", "pcm_s16le", channels=2),
    "adts aac": Encoding("adts", "aac", tolerance=LOSSY),
    "ac3": Encoding("ac3", "ac3", 48_000, LOSSY, 2),
    "eac3": Encoding("eac3", "eac3", 48_000, LOSSY, 2),
    "webm opus": Encoding("webm", "libopus", 48_000, LOSSY),
    "mkv flac": Encoding("matroska", "flac"),
    "mpegts aac": Encoding("mpegts", "aac", 48_000, LOSSY),
    "flv mp3": Encoding("flv", "libmp3lame", 44_100, LOSSY),
    "avi": Encoding("avi", "pcm_s16le"),
    "wma": Encoding("asf", "wmav2", 44_100, LOSSY, 2, bit_rate=128_000),
    "wavpack": Encoding("wv", "wavpack", tolerance=LOSSY),  # of 8 bits, as is the next
    "tta": Encoding("tta", "tta", tolerance=LOSSY),
    "amr": Encoding("amr", "libopencore_amrnb", 8_000, TELEPHONE),
}


@pytest.fixture(scope="module")
def tagger():
    return Tagger.from_pretrained("dymn04_open", "cpu")


@pytest.fixture(scope="module")
def sound():
    return reading.read(SOUND)[: 5 * RATE]


@pytest.fixture(scope="module")
def expected(tagger, sound):
    return tagger.tag(sound, RATE, top_k=3)


def check(tagger, data: bytes, expected, seconds: float, tolerance: float) -> None:
    notes = Notes()
    samples = reading.read(io.BytesIO(data), notes=notes)
    assert not notes.lines
    assert len(samples) / RATE == pytest.approx(seconds, abs=0.08)
    info = reading.probe(io.BytesIO(data))
    if info.seconds is not None:
        assert info.seconds == pytest.approx(len(samples) / RATE, abs=0.05)
    if info.frames is not None:
        assert info.frames / info.sample_rate == pytest.approx(len(samples) / RATE, abs=2e-3)
    found = tagger.tag(io.BytesIO(data), top_k=3)
    assert found[0].end == pytest.approx(len(samples) / RATE, abs=1e-4)
    if tolerance < TELEPHONE:  # the same best label, or one that scores as high but for what the encoding changes
        best = {tag.label: tag.score for tag in expected}
        assert best[found[0].label] == pytest.approx(expected[0].score, abs=tolerance)
        assert {tag.label: tag.score for tag in found} == pytest.approx(best, abs=tolerance)
    scores = {tag.label: tag.score for tag in tagger.tag(io.BytesIO(data), top_k=0)}
    assert scores[expected[0].label] == pytest.approx(expected[0].score, abs=tolerance)


@pytest.mark.parametrize("name", ENCODINGS)
def test_one_sound_has_one_answer(tagger, sound, expected, name):
    encoding = ENCODINGS[name]
    try:
        data = encoding.encode(sound)
    except (soundfile.LibsndfileError, av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"it cannot be written here: {error}")
    check(tagger, data, expected, len(sound) / RATE, encoding.tolerance)


def test_one_sound_in_half_floats(tagger, sound, expected):
    check(tagger, half_wav(sound), expected, len(sound) / RATE, LOSSLESS)
