"""Log-mel spectrograms of overlapping windows, in which shared frames are computed once.

Away from its ends, the spectrogram of a window is a slice of that of the recording: a frame depends on nothing but the
samples below its transform's window. At the ends (frames 0, 1 and the last, with the usual settings) the transform's
reflection has an effect, and after a filled window's last sample the filling; those frames are computed again for each
window.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dymn.config import FrontEndConfig
from dymn.system.arrays import Floats


class FrontEnd(Protocol):
    """Log-mel spectrograms of arrays, frame by frame, such as those of `dymn.native.log_mel`."""

    config: FrontEndConfig

    def frames(self, samples: Floats) -> Floats:
        """Return the pre-emphasised samples of each frame, [N] to [T, n_fft]."""

    def columns(self, frames: Floats) -> Floats:
        """Return the log-mel spectrogram [n_mels, n] of samples [n, n_fft] that `frames` gave."""


class SlidingLogMel:
    """The front end for the windows of one recording, given one after the other in their order; on the CPU.

    What two windows share is taken from the one before if their distance is a multiple of `hop_length`, for only then
    their frames have the same places. With another distance, or none of them shared, each window is computed by itself.
    Results are those of the front end bit for bit where it is compiled, and else within 1e-6: the order of a sum in mel
    bands differs.
    """

    def __init__(self, front_end: FrontEnd, hop: int) -> None:
        """Say how far apart in samples the windows begin."""
        c = front_end.config
        self._front_end = front_end
        before = c.n_fft // 2 - (c.n_fft - c.win_length) // 2  # samples in a frame before its middle
        self._after = c.win_length - before
        self._first = -(-before // c.hop_length)  # the first frame with nothing from before the window
        self._shift = hop // c.hop_length if hop % c.hop_length == 0 else None
        self._previous = np.empty((c.n_mels, 0), np.float32)
        self._shared_end = 0

    def __call__(self, samples: Floats, n_samples: int) -> Floats:
        """Return the log-mel spectrogram [1, F, T] of the next window [N]; its first `n_samples` are recorded ones."""
        frames = self._front_end.frames(samples)  # [T, n_fft]
        if self._shift is None:
            return self._front_end.columns(frames)[None]
        # Sample t of the pre-emphasised window needs sample t + 1 of the recording.
        last = (n_samples - 1 - self._after) // self._front_end.config.hop_length
        shared_end = max(0, min(len(frames), last + 1))
        start = self._first
        end = max(start, min(shared_end, self._shared_end - self._shift))
        known = self._previous[:, start + self._shift : end + self._shift]
        if known.shape[1]:
            fresh = self._front_end.columns(np.concatenate([frames[:start], frames[end:]]))
            whole = np.concatenate([fresh[:, :start], known, fresh[:, start:]], axis=1)
        else:
            whole = self._front_end.columns(frames)
        self._previous, self._shared_end = whole, shared_end
        return whole[None]
