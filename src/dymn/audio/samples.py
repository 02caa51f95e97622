"""Conversion of samples of any type and number of channels to mono float32, and checks of their levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.audio.band import is_offset
from dymn.audio.notes import Notes
from dymn.audio.settings import ReadSettings
from dymn.errors import AudioError
from dymn.system.arrays import Floats

MAX_PEAK = 1e10
"""The largest sample accepted; full scale is 1, and beyond this the power spectrum leaves float32."""
INTEGER_PEAK = 64.0
"""A float recording with a larger peak was not scaled to 1: even an editor's overs stay far below."""
QUIET_PEAK = 0.01
"""A recording whose largest sample is below -40 dBFS is noted: networks begin to call it silence."""
MIX_GAP_DB = 18.0
"""A mix that is this far below the loudest channel is noted.

One live channel of eight is at 18.06 dB; of six, as in films, at 15.6 dB.
"""

_FULL_SCALES = (2**7, 2**15, 2**23, 2**31)
_SILENCE = 1e-9  # mean power, -90 dB
_NEAR = 0.06  # of the power of all channels


def to_float32(array: npt.NDArray[Any]) -> Floats:
    """Return samples as float32 with full scale 1: unsigned 8-bit, signed 8, 16 and 32-bit integers, and floats.

    Raises:
        AudioError: for another type, whose full scale is not known.
    """
    with np.errstate(over="ignore"):  # what leaves float32 becomes infinite, and `check_finite` refuses it
        if array.dtype.kind == "f":
            return array.astype(np.float32, copy=False)
        if array.dtype == np.uint8:
            return (array.astype(np.float32) - np.float32(128)) / np.float32(128)
        if array.dtype.kind == "i" and array.dtype.itemsize <= 4:
            return array.astype(np.float32) * np.float32(2.0 ** (1 - 8 * array.dtype.itemsize))
    raise AudioError(
        f"Samples have type {array.dtype}; allowed: float16, float32, float64, int8, int16, int32, uint8. Convert them "
        "first."
    )


def to_mono(name: str, samples: Floats, start: float = 0.0, rate: int | None = None) -> Floats:
    """Return the mean over channels: float32 [N, channels] to [N].

    Raises:
        AudioError: if a sample is NaN, infinite or beyond `MAX_PEAK`; the message counts from `start`, in seconds.
    """
    mono = mean(samples)
    check_finite(name, mono, start, rate)
    return mono


def mean(samples: Floats) -> Floats:
    """Return the mean over channels, [N, channels] to [N]; unlike a matrix product it does not depend on N."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):
        total: Floats = samples[:, 0] + samples[:, 1]
        for channel in range(2, channels):
            total += samples[:, channel]
        total *= np.float32(1 / channels)
    return total


def check_finite(name: str, mono: Floats, start: float = 0.0, rate: int | None = None) -> float:
    """Return the largest absolute value of [N], 0 if N is 0.

    Raises:
        AudioError: as `to_mono`.
    """
    if not len(mono):
        return 0.0
    peak = float(max(-mono.min(), mono.max()))
    if not peak <= MAX_PEAK:  # false for NaN too
        index = int(np.argmin(np.abs(mono) <= MAX_PEAK))
        value, where = mono[index], f"sample {index}" if rate is None else f"{start + index / rate:.3f} s"
        raise AudioError(
            f"{name} contains the value {value:g} at {where}; samples must be finite, with full scale at 1. Replace "
            "them, for example with numpy.nan_to_num, or export the recording again as 16-bit PCM."
        )
    return peak


class Levels:
    """Levels of a recording and of its channels, for the notes that only the whole of it allows."""

    def __init__(self) -> None:
        self._peak = 0.0
        self._sum, self._power, self._n = 0.0, 0.0, 0
        self._mix = 0.0
        self._channels = np.zeros(0)
        self._frames = 0

    def add(self, samples: Floats, mono: Floats, peak: float) -> None:
        """Take in samples [n, channels], their mean [n], and the peak of that."""
        self._peak = max(self._peak, peak)
        if peak <= INTEGER_PEAK:
            self._sum += float(mono.sum(dtype=np.float64))
            self._power += float(np.dot(mono, mono))
            self._n += len(mono)
        if samples.shape[1] == 1 or peak > INTEGER_PEAK:
            return
        if samples.shape[1] != len(self._channels):
            self._channels, self._mix, self._frames = np.zeros(samples.shape[1]), 0.0, 0
        self._frames += len(mono)
        flat = samples.ravel(order="K")
        mix, total = float(np.dot(mono, mono)), float(np.dot(flat, flat))
        self._mix += mix
        if mix > _NEAR * total:  # far from a note: there is no need to know the channels one by one
            self._channels += total / samples.shape[1]
            return
        for channel in range(samples.shape[1]):
            self._channels[channel] += float(np.dot(samples[:, channel], samples[:, channel]))

    def add_notes(self, notes: Notes, settings: ReadSettings) -> None:
        """Add notes on unusual levels, except those that settings correct: a gain low ones, a band an offset."""
        if self._peak > INTEGER_PEAK:
            notes.add(
                f"samples reach {self._peak:.0f}, but full scale is 1: they are probably integers stored as floats. "
                f"Divide them by {next((full for full in _FULL_SCALES if self._peak <= full), _FULL_SCALES[-1])}."
            )
        loudest = float(self._channels.max()) if len(self._channels) else 0.0
        if self._frames and np.isfinite(loudest) and loudest > _SILENCE * self._frames:
            gap = min(100.0, 10 * np.log10(loudest / max(self._mix, 1e-30 * self._frames)))
            if gap > MIX_GAP_DB:
                live = int((self._channels > 1e-4 * loudest).sum())
                one = live == 1 and len(self._channels) > 2
                why = "only one of them has a signal" if one else "they cancel each other out, as with inverted phase"
                notes.add(
                    f"the mix of its {len(self._channels)} channels is {gap:.0f} dB below the loudest one: {why}.",
                    "Select a channel with --channel, for example --channel loudest.",
                )
                return
        mean = 0.0 if settings.is_high_pass else self._sum / max(1, self._n)
        if is_offset(mean, self._power / max(1, self._n)):
            auto = settings.gain == "auto"
            notes.add(
                f"its samples have an offset of {mean:.2g} of full scale (DC).",
                "--gain auto removes it if it amplifies, --band 20- always." if auto else "--band 20- removes it.",
            )
        if self._n and self._peak == 0:  # also with a gain, which does not help
            notes.add("it is silent: all of its samples are 0, as from a microphone that is switched off.")
        elif 0 < self._peak < QUIET_PEAK and settings.gain == 0:
            level = 20 * np.log10(self._peak)
            notes.add(f"it is quiet: its largest sample is at {level:.0f} dBFS.", "--gain auto amplifies it.")
