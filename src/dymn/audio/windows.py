"""Windows of recordings, and the filling of shorter recordings.

The networks were trained on clips of 10 s (Sec. IV-A.1). A longer recording is cut; a shorter one is repeated, padded
with zeros, or left as it is. Repetition scores best with the published weights, see `benchmarks/zero_shot.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from dymn.config import check
from dymn.system.arrays import Floats

JOINED_SHARE = 10
"""A remainder of up to a tenth of a window joins the window before it: 10.03 s are one window, not two."""


class Window(NamedTuple):
    """A passage of a recording: the index of its first sample, and the samples [N]."""

    start: int
    samples: Floats


class Filled(NamedTuple):
    """A window of a recording [N] after filling, and the number of its samples that are the recording's."""

    samples: Floats
    n_samples: int


class Cutter:
    """Cuts samples that come in blocks into windows of `length` samples that begin every `hop` samples.

    Holds no more than a block and a window at a time. The last window holds the rest: between a tenth of `length` and
    `length` samples, or up to a tenth more than `length`; so a window is complete only once a tenth beyond it has come.
    A shorter recording is one window. With a hop above the length, samples between the windows are skipped. Where
    nothing `joins`, a remainder of any length is a window of its own.
    """

    def __init__(self, length: int, hop: int, joins: bool = True) -> None:
        self._length, self._hop = length, hop
        self._joined = length // JOINED_SHARE if joins else 0
        self._buffer = np.empty(0, np.float32)
        self._start = 0
        self._to_skip = 0

    def feed(self, block: Floats) -> Iterator[Window]:
        """Take samples [n] and yield the windows that are complete with them; consume these before the next call."""
        skipped = min(self._to_skip, len(block))
        self._to_skip -= skipped
        self._buffer = np.concatenate([self._buffer, block[skipped:]]) if len(self._buffer) else block[skipped:]
        begin = 0
        while len(self._buffer) - begin > self._length + self._joined:
            yield Window(self._start, self._buffer[begin : begin + self._length])
            self._start += self._hop
            begin += self._hop
        self._to_skip += max(0, begin - len(self._buffer))
        self._buffer = self._buffer[begin:]

    def finish(self) -> Iterator[Window]:
        """Yield the last window, if samples are left."""
        if len(self._buffer) > self._joined or (self._start == 0 and len(self._buffer) > 0):
            yield Window(self._start, self._buffer)
        self._buffer = np.empty(0, np.float32)


def cut(blocks: Iterable[Floats], length: int, hop: int, joins: bool = True) -> Iterator[Window]:
    """Cut a stream of blocks [n] into windows, see `Cutter`."""
    cutter = Cutter(length, hop, joins)
    for block in blocks:
        yield from cutter.feed(block)
    yield from cutter.finish()


def repeated(samples: Floats, length: int) -> Floats:
    """Repeat the samples [n] from their beginning until there are `length`."""
    return np.resize(samples, length)


def padded(samples: Floats, length: int) -> Floats:
    """Append zeros to the samples [n] until there are `length`."""
    return np.pad(samples, (0, length - len(samples)))


def bare(samples: Floats, length: int) -> Floats:
    """Return the samples [n] as they are; the networks take any length."""
    return samples


FILLS: dict[str, Callable[[Floats, int], Floats]] = {"repeat": repeated, "pad": padded, "bare": bare}


def fill(samples: Floats, length: int, how: str) -> Floats:
    """Fill samples [n] up to `length` if they are fewer; `how` is a key of `FILLS`."""
    return samples if len(samples) >= length else FILLS[how](samples, length)


def check_windows(window: float, hop: float | None, how: str) -> None:
    """Raise a ConfigError if the settings of windows, in seconds, or of the filling are not allowed."""
    for name, value in (("window", window), ("hop", hop)):
        allowed = (name == "hop" and value is None) or (value is not None and 0.05 <= value <= 600)
        check(allowed, f"{name} is {value}; it must be from 0.05 to 600 seconds.")
    check(how in FILLS, f"fill is {how!r}; allowed: {', '.join(FILLS)}.")
