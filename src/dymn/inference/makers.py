"""From windows to frames: the windows of each method, and the frames that are complete after each window."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from dymn.audio.settings import ReadSettings
from dymn.inference.methods import LONG, FrameSettings, Times, odd_frames
from dymn.inference.selection import Selection
from dymn.inference.windows import Piece
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores
from dymn.system.arrays import Floats


class FrameMaker(ABC):
    """How windows become frames: how they are cut and computed, and the frames that are complete after each.

    It is a `dymn.inference.windows.Cutting`; `joins` states whether a short remainder joins the window before it.
    """

    fill: str
    joins = True

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        self.window, self.hop = settings.cutting()
        self.read: ReadSettings = settings
        self._backend, self._settings = backend, settings
        self._chosen = Selection(backend.card, settings.tagging()).allowed

    @abstractmethod
    def compute(self, features: Floats) -> Floats:
        """Return a row [B, ...] for each of a batch of windows."""

    @abstractmethod
    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return times [n] and probabilities [n, C] of the frames that no later window changes."""

    def finish(self, seconds: float | None) -> tuple[Times, Scores]:
        """Return the remaining frames of a recording of `seconds`, none if it failed (None), and forget it."""
        return np.empty(0), np.empty((0, len(self._chosen)), np.float32)


class _WindowFrames(FrameMaker):
    """One frame a window, in its middle."""

    fill = "repeat"

    def compute(self, features: Floats) -> Floats:
        """Return probabilities [B, C]."""
        return self._backend.run(features).probabilities[:, self._chosen]

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return the frame of a window."""
        return np.array([(piece.start + piece.end) / 2]), row[None]


class _ActivationFrames(FrameMaker):
    """The frames of the last feature map.

    Windows begin at multiples of a frame, so that frames of overlapping windows coincide. They are averaged, with the
    largest weights in the middle of a window.
    """

    fill = "bare"

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        super().__init__(backend, settings)
        self._frame = backend.frame_samples / backend.sample_rate  # seconds
        self.window, self.hop = (max(1, round(seconds / self._frame)) * self._frame for seconds in settings.cutting())
        self._smoothing = odd_frames(settings.smoothing, self._frame)
        self._reset()

    def _reset(self) -> None:
        self._first = 0  # index of the first frame in `_total`
        self._total = np.zeros((0, len(self._chosen)), np.float32)
        self._weights = np.zeros((0, 1), np.float32)

    def compute(self, features: Floats) -> Floats:
        """Return probabilities of frames [B, T, C]."""
        output = self._backend.frame_run(features, self._smoothing)
        frames, clip, share = (
            output.frames[:, :, self._chosen],
            output.probabilities[:, None, self._chosen],
            self._settings.clip,
        )
        return frames if share == 0 else frames ** (1 - share) * clip**share

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Add the frames [T, C] of a window; return those before it, which no later window reaches."""
        done = self._take(round(piece.start / self.read.speed / self._frame) - self._first)
        length = len(row)
        missing = ((0, max(0, length - len(self._total))), (0, 0))
        self._total, self._weights = np.pad(self._total, missing), np.pad(self._weights, missing)
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)[:, None]
        self._total[:length] += row * ramp
        self._weights[:length] += ramp
        return done

    def finish(self, seconds: float | None) -> tuple[Times, Scores]:
        """Return the other frames that begin within the recording."""
        is_first = self._first == 0
        times, scores = self._take(len(self._total))
        self._reset()
        if seconds is None:
            return super().finish(seconds)
        count = max(int(is_first), int(np.searchsorted(times, seconds)))
        return times[:count], scores[:count]

    def _take(self, count: int) -> tuple[Times, Scores]:
        # Convolutions of stride s centre frame i on frame i * s of the spectrogram.
        times: Times = np.arange(self._first, self._first + count, dtype=np.float64) * self._frame * self.read.speed
        scores = self._total[:count] / self._weights[:count]
        self._total, self._weights = self._total[count:], self._weights[count:]
        self._first += count
        return times, scores


class _CombinedFrames(FrameMaker):
    """Frames of short windows, each joined with the frames of the last feature map of the long window around it.

    A long window overlaps the next one by as much as short windows overlap, so that none is computed twice.
    """

    fill = "bare"

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        super().__init__(backend, settings)
        inner, step = settings.cutting()
        rate, hop_length = backend.sample_rate, backend.front_end.hop_length
        # short windows begin with a frame of the spectrogram
        self._length, self._step = (
            max(1, round(seconds * rate / hop_length)) * hop_length for seconds in (inner, step)
        )
        self.hop = max(1, round(LONG * rate / self._step)) * self._step / rate
        self.window = self.hop + (self._length - self._step) / rate
        self._smoothing = odd_frames(settings.smoothing * rate, backend.frame_samples)

    def compute(self, features: Floats) -> Floats:
        """Return probabilities of frames [B, T, C], for spectrograms [B, 1, F, t] or samples [B, N]."""
        unit = 1 if features.ndim == 2 else self._backend.front_end.hop_length
        length, step = self._length // unit, self._step // unit
        starts = range(0, max(1, features.shape[-1] - length + 1), step)
        short = np.stack([features[..., start : start + length] for start in starts], axis=1)  # [B, T, ...]
        flat, size = short.reshape(-1, *short.shape[2:]), self._backend.batch_size
        runs = [self._backend.run(flat[i : i + size]).probabilities for i in range(0, len(flat), size)]
        when = np.concatenate(runs)[:, self._chosen].reshape(*short.shape[:2], -1)
        what = self._backend.frame_run(features, self._smoothing).frames[:, :, self._chosen]
        middles = (np.array(starts) + short.shape[-1] / 2) * unit / self._backend.frame_samples  # in frames of `what`
        share = self._settings.clip
        return when ** (1 - share) * between(what, middles) ** share

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return the frames of a window."""
        rate, speed = self._backend.sample_rate, self.read.speed
        middle = min(piece.end - piece.start, self._length / rate * speed) / 2
        places = np.arange(len(row), dtype=np.float64)
        return piece.start + middle + places * (self._step / rate * speed), row


def between(frames: Floats, places: Times) -> Floats:
    """Return probabilities [B, n, C] at places [n] between frames [B, T, C]: the geometric mean of two neighbours."""
    before = np.clip(places.astype(int), 0, frames.shape[1] - 1)
    after = np.minimum(before + 1, frames.shape[1] - 1)
    share = np.clip(places - before, 0, 1).astype(np.float32)[:, None]
    found: Floats = frames[:, before] ** (1 - share) * frames[:, after] ** share
    return found


class _NetworkFrames(FrameMaker):
    """The frames of a frame-wise network, window by window, end to end; the last window is filled with zeros.

    The frames in the zeros are kept, because the median filter at the end of the recording uses them, as published.
    """

    fill = "pad"
    joins = False

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        super().__init__(backend, settings)
        self._frame = backend.frame_samples / backend.sample_rate
        self.window = self.hop = backend.frame_seconds or 0.0

    def compute(self, features: Floats) -> Floats:
        """Return probabilities of frames [B, T, C]."""
        return self._backend.frame_run(features).frames[:, :, self._chosen]

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return the frames of a window."""
        speed = self.read.speed
        first = round(piece.start / speed / self._frame)
        middles: Times = (np.arange(first, first + len(row), dtype=np.float64) + 0.5) * self._frame * speed
        return middles, row


_MAKERS: dict[str, type[FrameMaker]] = {
    "combined": _CombinedFrames,
    "activation": _ActivationFrames,
    "windows": _WindowFrames,
    "frames": _NetworkFrames,
}


def frame_maker(backend: Backend, settings: FrameSettings) -> FrameMaker:
    """Return what makes frames of windows.

    Raises:
        ConfigError: if a pattern matches no label, or the backend cannot score frames and the method needs it.
    """
    settings = settings.of(backend)
    return _MAKERS[settings.method or "combined"](backend, settings)
