"""From a seekable binary handle to mono float32 samples: libsndfile first, FFmpeg through PyAV for what libsndfile does not know.

Everything is read in chunks. Lengths in headers are compared with what is there and never used to reserve memory. A recording
that ends before its header says is an error, not a short recording: its tags would silently be those of a part.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from dymn.audio.containers import data_chunk, mp3_goes_on, mp3_says_length, needs_ffmpeg, ogg_is_cut, promised_share
from dymn.audio.sources import Source, display, opened, reason
from dymn.errors import AudioError, MissingExtraError

logger = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 256
MAX_PEAK = 1e10
"""The largest sample accepted; full scale is 1, and beyond this the power spectrum leaves float32."""
SLACK_SECONDS = 0.25
"""How much earlier than its header says a recording may end: codecs pad and trim."""

_CHUNK_SAMPLES = 2**19  # 10 s at 48 kHz come in one piece
_PLAIN: dict[str, np.dtype[Any]] = {"PCM_16": np.dtype("<i2"), "FLOAT": np.dtype("<f4")}
_UNKNOWN_FRAMES = 2**62  # libsndfile says 2^63 - 1 when it cannot tell
_FFMPEG_SUFFIXES = frozenset(
    f".{ending}"
    for group in ("m4a m4b mp4 m4v mov 3gp aac ac3 amr", "webm weba mkv mka wma wmv asf avi flv", "mpg mpeg mp2 ape wv tta spx")
    for ending in group.split()
)
_LIBSNDFILE_SUFFIXES = frozenset(
    (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64", ".bwf")
)
SUFFIXES = _LIBSNDFILE_SUFFIXES | _FFMPEG_SUFFIXES
"""The file name endings, in lower case, that count as recordings when a directory is searched."""


class MissingDecoderError(MissingExtraError, AudioError):
    """A recording needs FFmpeg, and the extra that brings it is not installed."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says. `frames` (samples per channel) and `seconds` are None where the format does not say."""

    sample_rate: int
    channels: int
    frames: int | None
    seconds: float | None
    format: str


@dataclass(frozen=True)
class Recording:
    """An open recording: its name for messages, its header, and its samples as mono float32 chunks at the recording's own rate."""

    name: str
    info: AudioInfo
    chunks: Iterator[np.ndarray]


@contextlib.contextmanager
def recording(source: Source) -> Iterator[Recording]:
    """Open a recording for reading once; it closes at the end of the `with` block.

    Raises:
        AudioError: if it cannot be opened or is not audio. `chunks` raises it too: for samples that are not finite, and for a
            recording that is damaged or ends more than `SLACK_SECONDS` before its header says.
        MissingDecoderError: an AudioError, if FFmpeg is needed and PyAV is not installed.
    """
    name = display(source)
    with contextlib.ExitStack() as stack:
        handle = _Guarded(stack.enter_context(opened(source)))
        promised = promised_share(handle)
        try:
            result = _with_libsndfile(name, handle, stack, promised)
        except _NotKnownError as error:
            result = _with_ffmpeg(name, handle, stack, promised, str(error))
        yield result


class _NotKnownError(Exception):
    """libsndfile does not know the format."""


class _Guarded:
    """A handle for decoders written in C, which cannot pass on an exception: it is kept, and the handle then looks ended."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return self.handle.read(size)
        except Exception as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            self.handle.seek(offset, whence)
            return self.handle.tell()
        except Exception as error:
            self.error = error
            return -1

    def tell(self) -> int:
        try:
            return self.handle.tell()
        except Exception as error:
            self.error = error
            return -1


def _with_libsndfile(name: str, handle: _Guarded, stack: contextlib.ExitStack, promised: float) -> Recording:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise AudioError(f"{name} cannot be decoded: libsndfile is not usable ({reason(error)}). Reinstall soundfile.") from error
    ogg_cut = ogg_is_cut(handle)
    handle.seek(0)
    try:
        sound = stack.enter_context(soundfile.SoundFile(handle))
    except soundfile.LibsndfileError as error:
        raise _NotKnownError(_libsndfile_reason(error)) from error
    except Exception as error:
        raise _NotKnownError(reason(error)) from error
    rate, channels = int(sound.samplerate), int(sound.channels)
    _check_format(name, rate, channels)
    frames = sound.frames if 0 <= sound.frames < _UNKNOWN_FRAMES else None
    if sound.format == "MP3" and not mp3_says_length(handle):
        frames = None  # libsndfile guesses from the first frame
    if frames == 0:
        raise AudioError(
            f"{name} holds no samples. Record it again; if it was cut off while it was being recorded, repair its header with: "
            "ffmpeg -ignore_length 1 -i IN OUT.wav"
        )
    if frames is not None and promised > 1:
        _check_length(name, frames / rate, frames * promised / rate)
        logger.warning("%s ends %.3f s before its header says; what is there is read.", name, frames * (promised - 1) / rate)
    if ogg_cut:
        raise _broken(name, None if frames is None else frames / rate, None, "its last page is incomplete")
    info = AudioInfo(rate, channels, frames, None if frames is None else frames / rate, f"{sound.format} {sound.subtype}")
    samples = data_chunk(handle) if frames is not None and sound.format in ("WAV", "WAVEX", "RF64") and sound.endian == "FILE" else None
    if samples is not None and sound.subtype in _PLAIN and info.frames is not None:
        return Recording(name, info, _plain_chunks(name, handle, samples.start, _PLAIN[sound.subtype], info))
    return Recording(name, info, _libsndfile_chunks(name, handle, sound, info))


def _plain_chunks(name: str, handle: _Guarded, start: int, kind: np.dtype[Any], info: AudioInfo) -> Iterator[np.ndarray]:
    """Yield samples that stand in the file as they are. libsndfile would ask for them in pieces of 8 kB, with a call of Python for each."""
    handle.seek(start)
    size = kind.itemsize * info.channels
    done, frames = 0, info.frames or 0
    while done < frames:
        content = handle.read(min(max(1, _CHUNK_SAMPLES // info.channels), frames - done) * size)
        if handle.error is not None:
            raise _broken(name, done / info.sample_rate, info.seconds, reason(handle.error)) from handle.error
        if len(content) < size:
            break
        stored = np.frombuffer(content, kind, len(content) // size * info.channels).reshape(-1, info.channels)
        samples = stored.astype(np.float32) if kind.kind == "f" else to_float32(stored)  # `stored` cannot be written to
        yield to_mono(name, samples, done / info.sample_rate, info.sample_rate)
        done += len(samples)
    _check_length(name, done / info.sample_rate, info.seconds)


def _libsndfile_chunks(name: str, handle: _Guarded, sound: Any, info: AudioInfo) -> Iterator[np.ndarray]:
    done = 0
    sound.seekable = lambda: False  # else soundfile seeks after every read, which a FLAC of unknown length does not survive
    while True:
        buffer = np.empty((max(1, _CHUNK_SAMPLES // info.channels), info.channels), np.float32)
        failure: Exception | None = None
        try:
            block = sound.read(out=buffer)
        except Exception as error:
            failure = error
        if failure is not None or handle.error is not None:
            why = _libsndfile_reason(handle.error or failure)
            raise _broken(name, done / info.sample_rate, info.seconds, why) from failure
        if len(block) == 0:
            break
        yield to_mono(name, block, done / info.sample_rate, info.sample_rate)
        done += len(block)
    _check_length(name, done / info.sample_rate, info.seconds)
    if sound.format == "MP3" and mp3_goes_on(handle):
        raise AudioError(
            f"{name} goes on after {done / info.sample_rate:.2f} s, where its header says that it ends. "
            "Repair it with: ffmpeg -i IN OUT.wav"
        )


def _with_ffmpeg(name: str, handle: _Guarded, stack: contextlib.ExitStack, promised: float, not_known: str) -> Recording:
    try:
        import av
    except ImportError as error:
        if os.path.splitext(name)[1].lower() in _FFMPEG_SUFFIXES or needs_ffmpeg(handle):
            raise MissingDecoderError(f"Reading {name}", "av") from error
        raise AudioError(
            f"{name} is not a recording that libsndfile can read ({not_known}). Check that it is audio; "
            "more formats can be read after: pip install 'dymn[av]'"
        ) from error
    if promised > 1.01:
        raise _broken(name, None, None, f"{1 / promised:.0%} of the samples that its header promises are there")
    handle.seek(0)
    try:
        # No protocol is allowed: a playlist must not open other files or addresses.
        container = stack.enter_context(av.open(handle, metadata_errors="ignore", options={"protocol_whitelist": "none"}))
        tracks = container.streams.audio
        rate, channels = (int(tracks[0].codec_context.sample_rate), int(tracks[0].codec_context.channels)) if tracks else (0, 0)
    except Exception as error:
        raise AudioError(
            f"{name} is not a recording that can be decoded (libsndfile: {not_known}; FFmpeg: {_ffmpeg_reason(error)}). "
            "Check that it is audio and complete."
        ) from error
    if not tracks:
        raise AudioError(f"{name} has no audio track. Choose another file.")
    _check_format(name, rate, channels)
    seconds = _ffmpeg_seconds(container)
    info = AudioInfo(rate, channels, None, seconds, f"{container.format.name} {tracks[0].codec_context.name}")
    return Recording(name, info, _ffmpeg_chunks(name, container, info))


def _ffmpeg_chunks(name: str, container: Any, info: AudioInfo) -> Iterator[np.ndarray]:
    rate, done, end = info.sample_rate, 0, 0.0
    pending: list[np.ndarray] = []
    frames = container.decode(container.streams.audio[0])
    while True:
        try:
            frame = next(frames, None)
            samples = None if frame is None else _ffmpeg_samples(frame)
        except Exception as error:
            raise _broken(name, done / rate, info.seconds, _ffmpeg_reason(error)) from error
        if frame is not None and samples is not None:
            if frame.sample_rate != rate:
                raise AudioError(f"{name} changes from {rate} to {frame.sample_rate} Hz. Convert it with: ffmpeg -i IN OUT.wav")
            pending.append(to_mono(name, samples, done / rate, rate))
            done += len(samples)
            end = done / rate if frame.time is None else frame.time + len(samples) / rate
        if pending and (samples is None or sum(map(len, pending)) >= _CHUNK_SAMPLES):
            yield np.concatenate(pending)
            pending.clear()
        if samples is None:
            break
    _check_length(name, max(end, done / rate), info.seconds)


def _libsndfile_reason(error: Exception | None) -> str:
    words = reason(Exception(getattr(error, "error_string", error))).removeprefix("Error : ")
    return "no MPEG audio found" if "not a regular file" in words else words  # what it says of an MP3 without frames


def _ffmpeg_samples(frame: Any) -> np.ndarray:
    """Return a decoded frame as float32 [samples, channels]."""
    array = to_float32(frame.to_ndarray())  # planar [channels, samples], packed [1, samples * channels]
    return array.T if frame.format.is_planar else array.reshape(frame.samples, -1)


def _ffmpeg_seconds(container: Any) -> float | None:
    """Return when the audio ends by the header, in the formats whose header knows; others only estimate."""
    if not any(part in ("mov", "matroska") for part in container.format.name.split(",")):
        return None
    track = container.streams.audio[0]
    if track.duration is not None:
        return float((track.duration + (track.start_time or 0)) * track.time_base)
    return container.duration / 1e6 if container.duration is not None and len(container.streams) == 1 else None


def _ffmpeg_reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or "the codec is not known").rstrip(".")


def to_float32(array: np.ndarray) -> np.ndarray:
    """Return samples as float32 with full scale 1: unsigned 8-bit, signed 8, 16 and 32-bit integers, and floats.

    Raises:
        AudioError: for another type, whose full scale is not known.
    """
    with np.errstate(over="ignore"):  # what leaves float32 becomes infinite and is refused by `to_mono`
        if array.dtype.kind == "f":
            return array.astype(np.float32, copy=False)
        if array.dtype == np.uint8:
            return (array.astype(np.float32) - 128) / 128
        if array.dtype.kind == "i" and array.dtype.itemsize <= 4:
            return array.astype(np.float32) * np.float32(2.0 ** (1 - 8 * array.dtype.itemsize))
    raise AudioError(f"Samples have type {array.dtype}; allowed: float16, float32, float64, int8, int16, int32, uint8. Convert them first.")


def to_mono(name: str, samples: np.ndarray, start: float = 0.0, rate: int | None = None) -> np.ndarray:
    """Return the mean over channels: float32 [N, channels] to [N].

    Raises:
        AudioError: if a sample is NaN, infinite or beyond `MAX_PEAK`; the message counts from `start`, in seconds.
    """
    channels = samples.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):
        mono = samples[:, 0] if channels == 1 else _mean(samples)
    if len(mono) and not max(-mono.min(), mono.max()) <= MAX_PEAK:  # false for NaN too
        index = int(np.argmin(np.abs(mono) <= MAX_PEAK))
        value, where = mono[index], f"sample {index}" if rate is None else f"{start + index / rate:.3f} s"
        raise AudioError(
            f"{name} holds the value {value:g} at {where}; samples must be finite, with full scale at 1. "
            "Replace them, for example with numpy.nan_to_num, or export the recording again as 16-bit PCM."
        )
    return mono


def _mean(samples: np.ndarray) -> np.ndarray:
    """Return the mean over channels, channel by channel: unlike a matrix product it does not depend on how many samples there are."""
    total: np.ndarray = samples[:, 0] + samples[:, 1]
    for channel in range(2, samples.shape[1]):
        total += samples[:, channel]
    total *= np.float32(1 / samples.shape[1])
    return total


def _check_format(name: str, rate: int, channels: int) -> None:
    remedy = "Its header is damaged, or it is not audio; if it is, convert it with: ffmpeg -i IN -ar 32000 -ac 1 OUT.wav"
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name} says that its sample rate is {rate} Hz; {MIN_RATE} to {MAX_RATE} Hz is allowed. {remedy}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{name} says that it has {channels} channels; 1 to {MAX_CHANNELS} is allowed. {remedy}")


def _check_length(name: str, there: float, promised: float | None) -> None:
    if promised is not None and promised - there > SLACK_SECONDS:
        raise _broken(name, there, promised, "its end is missing")
    if there == 0:
        raise AudioError(f"{name} holds no samples. Record or copy it again.")


def _broken(name: str, there: float | None, promised: float | None, why: str) -> AudioError:
    after = "" if there is None else f" after {_duration(there)}"
    of = "" if promised is None else f" of {_duration(promised)}"
    return AudioError(f"{name} is cut off or damaged{after}{of}: {why}. Get a whole copy, or save what is there with: ffmpeg -i IN OUT.wav")


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"
