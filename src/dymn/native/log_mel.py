"""Log-mel spectrograms of arrays in compiled code (`log_mel.c`), without PyTorch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from dymn.audio import mel
from dymn.audio.mel import LOG_SCALE, LOG_SHIFT, Constants, is_compilable
from dymn.config import FrontEndConfig, check
from dymn.native import library, structure, within_bounds
from dymn.system.arrays import Floats

Spectrogram = structure(
    ("frames", "window", "twiddles", "basis", "ranges", "out", "memory"),
    ("clips", "clip_stride", "n_frames", "frame_stride", "n_fft", "n_mels"),
    ("offset", "shift", "scale"),
)


class ArrayLogMel:
    """The front end for arrays of samples in NumPy, for use without compiled code for this CPU and transform length."""

    def __init__(self, config: FrontEndConfig) -> None:
        self.config = config
        self._constants = mel.constants(config)
        self._offset, self._lowest = mel.log_offset(config), mel.lowest(config)

    def __call__(self, samples: Floats, n_threads: int = 1) -> Floats:
        """Return the log-mel spectrogram [1, n_mels, frames] of samples [N] at `config.sample_rate`."""
        return self.columns(self.frames(samples), n_threads)[None]

    def frames(self, samples: Floats) -> Floats:
        """Return the pre-emphasised samples of each frame, [N] to [frames, n_fft], as a view of shared samples."""
        c = self.config
        samples = np.pad(samples, (0, max(0, c.n_fft // 2 + 2 - len(samples))))
        emphasised = (samples[1:] - np.float64(np.float32(mel.PREEMPHASIS)) * samples[:-1]).astype(np.float32)
        reflected = np.pad(emphasised, c.n_fft // 2, mode="reflect")
        return np.lib.stride_tricks.sliding_window_view(reflected, c.n_fft)[:: c.hop_length]

    def columns(self, frames: Floats, n_threads: int = 1) -> Floats:
        """Return the log-mel spectrogram [n_mels, n] of samples [n, n_fft] that `frames` gave, each frame by itself."""
        spectrum = np.fft.rfft(frames * self._constants.window).astype(np.complex64)
        power = spectrum.real**2 + spectrum.imag**2
        logarithm = np.log(self._constants.basis @ power.T + np.float32(self._offset))
        return self._floored(np.asarray((logarithm + np.float32(LOG_SHIFT)) * np.float32(LOG_SCALE), np.float32))

    def _floored(self, values: Floats) -> Floats:
        """Raise values to that of the floor, in place; the logarithm of a maximum is the maximum of logarithms."""
        return values if self._lowest is None else np.maximum(values, np.float32(self._lowest), out=values)


class CompiledLogMel(ArrayLogMel):
    """The front end of `dymn.LogMel` for arrays in compiled code, equal except for the rounding of the pre-emphasis."""

    def __init__(self, config: FrontEndConfig) -> None:
        """Prepare the constants.

        Raises:
            ConfigError: if there is no compiled code for this CPU, or for this length of transform.
        """
        super().__init__(config)
        self._library = library()
        check(self._library is not None, "There is no compiled code for this CPU. Use ArrayLogMel or dymn.LogMel.")
        check(
            is_compilable(config),
            f"n_fft is {config.n_fft}; compiled code supports powers of two from {mel.SHORTEST}.",
        )

    def columns(self, frames: Floats, n_threads: int = 1) -> Floats:
        """Return the log-mel spectrogram [n_mels, n] of samples [n, n_fft] that `frames` gave, each frame by itself."""
        c = self.config
        frames = frames if frames.strides[1] == frames.itemsize else np.ascontiguousarray(frames)
        out = np.empty((c.n_mels, len(frames)), np.float32)
        arguments: Any = Spectrogram(
            frames=frames.ctypes.data,
            out=out.ctypes.data,
            clips=1,
            clip_stride=0,
            n_frames=len(frames),
            frame_stride=frames.strides[0] // frames.itemsize,
            n_fft=c.n_fft,
            n_mels=c.n_mels,
            offset=self._offset,
            shift=LOG_SHIFT,
            scale=LOG_SCALE,
            **{name: values.ctypes.data for name, values in zip(Constants._fields, self._constants, strict=True)},
        )
        build: ctypes.CDLL = self._library  # type: ignore[assignment]
        memory = np.empty(build.dymn_log_mel_memory(ctypes.byref(arguments), within_bounds(n_threads)), np.float32)
        arguments.memory = memory.ctypes.data
        build.dymn_log_mel(ctypes.byref(arguments), within_bounds(n_threads))
        return self._floored(out)


def array_log_mel(config: FrontEndConfig) -> ArrayLogMel:
    """Return the fastest front end for arrays that this machine has."""
    return CompiledLogMel(config) if library() is not None and is_compilable(config) else ArrayLogMel(config)
