"""A zero-phase band-pass: a symmetric filter, applied by fast convolution to samples that arrive in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dymn.system.arrays import Floats

_TRANSITION = 0.25
"""How wide the slope at an edge is, as a share of its frequency."""
_MIN_TRANSITION, _MAX_TAPS = 4.0, 2**15 - 1
_BLACKMAN = 5.5
"""The slope of a filter of N taps under Blackman's window, in units of the sample rate / N; 74 dB below it is gone."""


OFFSET, _LEAST_OFFSET = 0.02, 1e-4
"""A mean of the samples, as a share of full scale, is an offset above the first, or above the second if it outweighs
the sound."""


def is_offset(mean: float, power: float) -> bool:
    """Whether samples with this mean and mean square have an offset (DC)."""
    return abs(mean) > OFFSET or (abs(mean) > _LEAST_OFFSET and mean**2 > 0.5 * power)


def band_filter(rate: float, low: float | None, high: float | None) -> Floats:
    """Return the taps [n], n odd, of a linear-phase filter that keeps `low` to `high` Hz at a rate in Hz."""
    edges = [edge for edge in (low, high) if edge is not None and edge < rate / 2]
    slope = max(_MIN_TRANSITION, _TRANSITION * min(edges, default=rate))
    taps = min(_MAX_TAPS, int(_BLACKMAN * rate / slope) // 2 * 2 + 1)
    place = np.arange(taps) - taps // 2
    window = np.blackman(taps + 2)[1:-1]

    def low_pass(edge: float | None) -> Any:
        if edge is None or edge >= rate / 2:
            return (place == 0).astype(float)
        ideal = np.sinc(2 * edge / rate * place) * window
        return ideal / ideal.sum()

    kernel = low_pass(high) - (0.0 if low is None else low_pass(low))
    return np.asarray(kernel, np.float32)


def band_passed(chunks: Iterable[Floats], rate: int, low: float | None, high: float | None) -> Iterator[Floats]:
    """Yield samples [n] of which only a band of frequencies is left: as many as there were, at the same times.

    Beyond its ends, the recording is taken to be mirrored: with silence there, an offset would leave a click at each
    end. The sizes of the chunks change no bit of the result.

    Args:
        chunks: mono samples.
        rate: of the samples, in Hz.
        low: the lowest frequency in Hz, or None.
        high: the highest frequency in Hz, or None.
    """
    kernel = band_filter(rate, low, high)
    half, size = len(kernel) // 2, 1 << (4 * len(kernel) - 1).bit_length()
    spectrum, step = np.fft.rfft(kernel.astype(np.float64), size), size - len(kernel) + 1
    pending = np.zeros(0, np.float32)
    for chunk in _mirrored(chunks, half):
        pending = np.concatenate([pending, chunk])
        while len(pending) >= size:
            yield _valid(pending[:size], spectrum, size, len(kernel))
            pending = pending[step:]
    left = len(pending) - 2 * half
    while left > 0:
        part = _valid(np.pad(pending[:size], (0, max(0, size - len(pending)))), spectrum, size, len(kernel))[:left]
        yield part
        left -= len(part)
        pending = pending[step:]


def centred(chunks: Iterable[Floats], rate: int, offsets_only: bool = False) -> Iterator[Floats]:
    """Yield samples [n] less the mean of their first second; the sizes of the chunks change no bit of the result.

    A band with a lower limit leaves nothing of that constant, but resampling would make a click of it at each end.

    Args:
        chunks: mono samples.
        rate: their rate in Hz.
        offsets_only: leave samples as they are, bit for bit, whose mean is no offset.
    """
    waiting, rest = list[Floats](), iter(chunks)
    for chunk in rest:
        waiting.append(chunk)
        if sum(map(len, waiting)) >= rate:
            break
    if not any(map(len, waiting)):
        return
    start = np.concatenate(waiting)
    first = start[:rate].astype(np.float64)
    mean = np.float32(first.mean())
    if offsets_only and not is_offset(float(mean), float(np.mean(first**2))):
        mean = np.float32(0)
    yield start - mean
    for chunk in rest:
        yield chunk - mean


def _mirrored(chunks: Iterable[Floats], margin: int) -> Iterator[Floats]:
    """Yield samples [n] with `margin` more at each end: their mirror image."""
    last, begun = np.zeros(0, np.float32), False
    for chunk in chunks:
        last = np.concatenate([last, chunk])
        if begun:
            yield chunk
        elif len(last) > margin:
            begun = True
            yield np.pad(last, (margin, 0), "reflect")
        last = last[-margin - 1 :] if begun else last
    if begun:
        yield last[-2::-1][:margin]
    elif len(last):
        yield np.pad(last, margin, "reflect" if len(last) > 1 else "edge")


def _valid(samples: Floats, spectrum: np.ndarray, size: int, taps: int) -> Floats:
    """Return the part of a circular convolution that equals the linear one, [size - taps + 1]."""
    whole = np.fft.irfft(np.fft.rfft(samples.astype(np.float64)) * spectrum, size)
    return np.asarray(whole[taps - 1 :], np.float32)
