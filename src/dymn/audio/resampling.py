"""Resampling with soxr at its HQ setting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dymn.audio.decoder import MAX_RATE, MIN_PLAYED_RATE, MIN_RATE
from dymn.config import check_number
from dymn.errors import ConfigError


class Resampler:
    """Another sample rate for mono samples that come in chunks; the sizes of the chunks change no bit of the result."""

    def __init__(self, source_rate: float, rate: int) -> None:
        """Prepare to resample from `source_rate` to `rate`, in Hz.

        Raises:
            ConfigError: if a rate is not allowed; that of the source need not be a whole number.
        """
        check_number("sample_rate", source_rate, MIN_PLAYED_RATE, MAX_RATE)
        rates = source_rate, whole_rate(rate, "rate")
        self._stream: Any = None
        if rates[0] != rates[1]:
            import soxr

            self._stream = soxr.ResampleStream(*rates, 1, dtype="float32", quality="HQ")

    def feed(self, chunk: np.ndarray) -> np.ndarray:
        """Take float32 samples [n] and return those [m] at the new rate that are ready, a few milliseconds later."""
        if self._stream is None or len(chunk) == 0:
            return chunk
        block: np.ndarray = self._stream.resample_chunk(np.ascontiguousarray(chunk))
        return block

    def finish(self) -> np.ndarray:
        """Return the rest [m] at the end of the recording."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)


def resampled(chunks: Iterable[np.ndarray], source_rate: float, rate: int) -> Iterator[np.ndarray]:
    """Yield chunks at another rate; none of them is empty."""
    if source_rate == rate:
        yield from chunks
        return
    resampler = Resampler(source_rate, rate)
    for chunk in chunks:
        block = resampler.feed(chunk)
        if len(block):
            yield block
    block = resampler.finish()
    if len(block):
        yield block


def whole_rate(rate: Any, name: str) -> int:
    """Return a sample rate as an int.

    Raises:
        ConfigError: if it is no whole number of Hz in the allowed range; the message calls it `name`.
    """
    number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    whole = int(rate) if number and rate == rate // 1 else 0
    if not MIN_RATE <= whole <= MAX_RATE:
        raise ConfigError(f"{name} is {rate!r}; it must be a whole number of Hz from {MIN_RATE} to {MAX_RATE}.")
    return whole
