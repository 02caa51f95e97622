"""Microphones, and a bounded queue between recording and computation.

Computation may be slower than recording. The queue is limited to a few seconds, so that the delay does not grow. Audio
that does not fit is dropped, and the next chunk states how much.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import check
from dymn.errors import AudioError, ConfigError, MissingExtraError

BLOCK_SECONDS = 0.05
"""The length of the blocks that a device records."""


class Notice(NamedTuple):
    """A change of a source, with the reason: its audio was `lost`, or is `back` after some seconds."""

    kind: str
    reason: str
    seconds: float = 0.0


class Chunk(NamedTuple):
    """Samples [n, channels], the number of frames that were dropped before them, and earlier changes of the source."""

    samples: npt.NDArray[Any]
    dropped: int
    notice: Notice | None = None


class BoundedQueue:
    """A queue of chunks between two threads, limited to `limit` frames."""

    def __init__(self, limit: int) -> None:
        check(limit >= 1, f"limit is {limit}; it must be at least one frame.")
        self._limit = limit
        self._chunks: deque[Chunk] = deque()
        self._waiting = 0
        self._dropped = 0
        self._ready = threading.Condition()
        self._closed = False
        self._error: Exception | None = None

    def put(self, samples: npt.NDArray[Any]) -> bool:
        """Append samples [n, channels], or drop them if they do not fit; return whether they fitted."""
        with self._ready:
            if self._waiting and self._waiting + len(samples) > self._limit:
                self._dropped += len(samples)
                return False
            self._chunks.append(Chunk(samples, self._dropped))
            self._waiting += len(samples)
            self._dropped = 0
            self._ready.notify()
            return True

    def has_room(self, frames: int) -> bool:
        """Whether so many frames would fit."""
        with self._ready:
            return not self._waiting or self._waiting + frames <= self._limit

    def notify(self, notice: Notice) -> None:
        """Append a change of the source, regardless of the limit."""
        with self._ready:
            self._chunks.append(Chunk(np.zeros((0, 1), np.float32), 0, notice))
            self._ready.notify()

    def lose(self, frames: int) -> None:
        """Count frames that were lost before the queue."""
        with self._ready:
            self._dropped += frames

    def close(self, error: Exception | None = None) -> None:
        """Mark the end of the audio, with its error, if any."""
        with self._ready:
            self._closed, self._error = True, error
            self._ready.notify_all()

    def get(self, timeout: float | None = None) -> Chunk | None:
        """Return the next chunk, or None if it does not arrive within `timeout` seconds (None: no limit).

        Raises:
            EOFError: if the queue is closed and empty.
            Exception: the error that it was closed with.
        """
        with self._ready:
            if not self._chunks and not self._closed:
                self._ready.wait(timeout)
            if self._chunks:
                chunk = self._chunks.popleft()
                self._waiting -= len(chunk.samples)
                return chunk
            if self._error is not None:
                raise self._error
            if self._closed:
                raise EOFError
            return None


class Microphone(NamedTuple):
    """A device that is recording: its name, its sample rate in Hz, and the queue of its audio."""

    name: str
    sample_rate: int
    queue: BoundedQueue


@contextmanager
def microphone(device: str | int | None = None, max_lag: float = 2.0) -> Iterator[Microphone]:
    """Record from an input device, in mono at its own sample rate, until the context ends.

    Args:
        device: number or part of the name of a device, see `devices`; by default, the system's default device.
        max_lag: maximum length of the audio in the queue, in seconds.

    Raises:
        MissingExtraError: if sounddevice is not installed.
        AudioError: if PortAudio is missing, or the device cannot be opened; the message states the remedy.
        ConfigError: if there is no such device.
    """
    sounddevice = _sounddevice()
    info = _input_device(sounddevice, device)
    rate = int(info["default_samplerate"])
    queue = BoundedQueue(max(1, round(max_lag * rate)))

    def record(samples: Any, frames: int, time: Any, status: Any) -> None:
        if status and status.input_overflow:
            queue.lose(frames)  # PortAudio does not say how many; a block is its usual loss
        queue.put(samples.copy())

    def ended() -> None:
        queue.close(AudioError(f"{info['name']} has stopped recording. Check that it is still connected."))

    try:
        stream = sounddevice.InputStream(
            samplerate=rate,
            blocksize=round(BLOCK_SECONDS * rate),
            device=info["index"],
            channels=1,
            dtype="float32",
            callback=record,
            finished_callback=ended,
        )
        stream.start()
    except sounddevice.PortAudioError as error:
        raise AudioError(
            f"The microphone {info['name']} cannot be opened ({_reason(error)}). It may be in use by another "
            "program, or access may be denied: close the other program, allow access in the system's settings, or "
            "select another --microphone; --devices lists them."
        ) from error
    try:
        yield Microphone(str(info["name"]), rate, queue)
    finally:
        with suppress(sounddevice.PortAudioError):  # the device may be gone
            stream.abort()
            stream.close()


def devices() -> list[dict[str, Any]]:
    """Return the input devices.

    Each has index, name, default_samplerate, max_input_channels, and whether it is the default of the system (default).

    Raises:
        MissingExtraError: if sounddevice is not installed.
        AudioError: if PortAudio is missing.
    """
    sounddevice = _sounddevice()
    preferred = sounddevice.default.device[0]
    found = enumerate(sounddevice.query_devices())
    return [dict(info) | {"index": i, "default": i == preferred} for i, info in found if info["max_input_channels"] > 0]


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("Listening to a microphone", "mic") from error
    except OSError as error:  # the wheel for Linux comes without PortAudio
        raise AudioError(
            "The library PortAudio, which microphones need, is not installed. On Debian and Ubuntu: apt install "
            "libportaudio2. Alternatively, pipe raw samples: arecord -f S16_LE -r 16000 -c 1 -t raw | dymn listen - "
            "--rate 16000"
        ) from error
    return sounddevice


def _input_device(sounddevice: Any, device: str | int | None) -> dict[str, Any]:
    if not devices():
        raise AudioError(
            "There is no microphone. Connect one, or pipe raw samples: arecord -f S16_LE -r 16000 -c 1 -t raw | "
            "dymn listen - --rate 16000"
        )
    wanted = int(device) if isinstance(device, str) and device.isdecimal() else device
    try:
        info = dict(sounddevice.query_devices(wanted, "input"))
    except (ValueError, sounddevice.PortAudioError) as error:
        names = "; ".join(f"{info['index']} {info['name']}" for info in devices())
        raise ConfigError(f"There is no input device {device!r} ({_reason(error)}). Available: {names}.") from error
    return info


def _reason(error: Exception) -> str:
    return str(error.args[0] if error.args else error).strip().rstrip(".")
