"""Log-mel spectrograms in compiled code, see `log_mel.c`, of arrays of samples and without PyTorch."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import FrontEndConfig, check
from dymn.native import library, within_bounds

Floats = npt.NDArray[np.float32]

SHORTEST = 32  # Fourier transform, which has as many samples as a power of two
PREEMPHASIS = 0.97
LOG_OFFSET, LOG_SHIFT, LOG_SCALE = 1e-5, 4.5, 0.2
_POINTERS = ("frames", "window", "turns", "basis", "ranges", "out", "memory")
_INTEGERS = ("clips", "clip_stride", "n_frames", "frame_stride", "n_fft", "n_mels")
_FLOATS = ("offset", "shift", "scale")


class Spectrogram(ctypes.Structure):
    """What the compiled code is given: frames in memory, the transform's constants, and where results go."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in _INTEGERS),
        *((name, ctypes.c_float) for name in _FLOATS),
    ]


class Constants(NamedTuple):
    """What the transform multiplies with, as `dymn.LogMel.constants` gives it."""

    window: Floats  # [n_fft], zeros on both sides
    turns: Floats  # [n_fft, 2]: cosine and sine of -2 pi i / n_fft
    basis: Floats  # [n_mels, n_fft / 2 + 1]
    ranges: npt.NDArray[np.int32]  # [n_mels, 2]: where a filter is not zero


class CompiledLogMel:
    """The front end of `dymn.LogMel` for arrays, its numbers but for the rounding of the pre-emphasis."""

    def __init__(self, config: FrontEndConfig, constants: Constants) -> None:
        """Take the constants, which the compiled code trusts.

        Raises:
            ConfigError: if there is no compiled code for this CPU, or a constant is of another shape than the config says.
        """
        self._library = library()
        check(self._library is not None, "There is no compiled code for this CPU. Take dymn.LogMel.")
        n_bins = config.n_fft // 2 + 1
        shapes = ((config.n_fft,), (config.n_fft, 2), (config.n_mels, n_bins), (config.n_mels, 2))
        fits = [values.shape for values in constants] == [*shapes] and config.n_fft >= SHORTEST and config.n_fft & (config.n_fft - 1) == 0
        start, end = constants.ranges.T if fits else (np.ones(1), np.zeros(1))
        check(fits and bool(((start >= 0) & (start <= end) & (end <= n_bins)).all()), "The constants do not fit the front end's config.")
        self.config = config
        window, turns, basis = (np.ascontiguousarray(values, np.float32) for values in constants[:3])
        self._constants = Constants(window, turns, basis, np.ascontiguousarray(constants.ranges, np.int32))

    def __call__(self, samples: Floats, n_threads: int = 1) -> Floats:
        """Return the log-mel spectrogram [1, n_mels, frames] of samples [N] at `config.sample_rate`."""
        return self.columns(self.frames(samples), n_threads)[None]

    def frames(self, samples: Floats) -> Floats:
        """Return the pre-emphasised samples of each frame, [N] to [frames, n_fft], as a view that repeats what frames share."""
        c = self.config
        samples = np.pad(samples, (0, max(0, c.n_fft // 2 + 2 - len(samples))))
        emphasised = (samples[1:] - np.float64(np.float32(PREEMPHASIS)) * samples[:-1]).astype(np.float32)
        reflected = np.pad(emphasised, c.n_fft // 2, mode="reflect")
        return np.lib.stride_tricks.sliding_window_view(reflected, c.n_fft)[:: c.hop_length]

    def columns(self, frames: Floats, n_threads: int = 1) -> Floats:
        """Return the log-mel spectrogram [n_mels, n] of samples [n, n_fft] that `frames` gave, each frame by itself."""
        c = self.config
        frames = frames if frames.strides[1] == frames.itemsize else np.ascontiguousarray(frames)
        out = np.empty((c.n_mels, len(frames)), np.float32)
        arguments = Spectrogram(
            frames=frames.ctypes.data,
            out=out.ctypes.data,
            clips=1,
            clip_stride=0,
            n_frames=len(frames),
            frame_stride=frames.strides[0] // frames.itemsize,
            n_fft=c.n_fft,
            n_mels=c.n_mels,
            offset=LOG_OFFSET,
            shift=LOG_SHIFT,
            scale=LOG_SCALE,
            **{name: values.ctypes.data for name, values in zip(Constants._fields, self._constants, strict=True)},
        )
        build: ctypes.CDLL = self._library  # type: ignore[assignment]
        memory = np.empty(build.dymn_log_mel_memory(ctypes.byref(arguments), within_bounds(n_threads)), np.float32)
        arguments.memory = memory.ctypes.data
        build.dymn_log_mel(ctypes.byref(arguments), within_bounds(n_threads))
        return out
