"""Whole recordings for evaluation: divided into windows like in `dymn tag`, in batches of equal length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dymn.audio.windows import cut, fill
from dymn.data.batch import BadClip, Clip, Collated, collate
from dymn.data.samplers import Draw
from dymn.data.source import Source
from dymn.errors import AudioError, DataError
from dymn.system.arrays import Floats

WHOLE = 60.0
"""Seconds per window where whole clips are evaluated (FSD50K: at most 30 s); longer ones are cut."""


class Length(NamedTuple):
    """How recordings are cut: into windows of `longest` samples; what is shorter than `least` is filled up to it."""

    least: int
    longest: int


class ClipWindow(NamedTuple):
    """A window of a recording, with its annotation and its length in seconds; or why there is none, or no more."""

    clip: Clip | BadClip
    seconds: float = 0.0


def windows(
    source: Source, draw: Draw, length: Length, how: str, content: bytes | Exception | None
) -> Iterator[ClipWindow]:
    """Yield the windows of a clip; where the recording is damaged, a `BadClip` comes last.

    A remainder of up to a tenth of a window is a part of the window before it, as in `dymn.audio.windows`.
    """
    key, row = source.keys[draw.clip], slice(draw.clip, draw.clip + 1)
    target, mask = source.catalog.target_rows(row)[0], source.catalog.mask_rows(row)[0]
    n = 0
    try:
        blocks, fingerprint = source.whole(draw.clip, content)
        for _, samples in cut(blocks, length.longest, length.longest):
            n += 1
            yield ClipWindow(
                Clip(key, fill(samples, length.least, how), target, mask, fingerprint),
                len(samples) / source.sample_rate,
            )
        if n == 0:
            raise AudioError("The file contains no samples.")
    except (AudioError, DataError, OSError) as error:
        yield ClipWindow(BadClip(key, (str(error) or type(error).__name__).rstrip(".")))


def spans(n: int, length: Length) -> list[tuple[int, int]]:
    """Return where the windows of `n` samples begin, and how many samples each has."""
    return [(start, len(samples)) for start, samples in cut([np.empty(n, np.float32)], length.longest, length.longest)]


Group = list[tuple[int, Clip, float, "Floats | None"]]


def batches(
    share: Sequence[Draw],
    windows_of: Callable[[Draw], Iterator[ClipWindow]],
    logits: Callable[[Draw], Floats | None],
    size: int,
) -> Iterator[Collated]:
    """Yield the windows of some clips in batches of one length, of at most `size` windows, from these clips alone."""
    waiting: dict[int, Group] = {}
    bad: list[BadClip] = []
    for draw in share:
        row = logits(draw)
        for clip, seconds in windows_of(draw):
            if isinstance(clip, BadClip):
                bad.append(clip)
                continue
            group = waiting.setdefault(len(clip.waveform), [])
            group.append((draw.clip, clip, seconds, row))
            if len(group) == size:
                yield _batch(waiting.pop(len(clip.waveform)))
    for group in waiting.values():
        yield _batch(group)
    if bad:
        yield Collated(None, bad, [])


def _batch(group: Group) -> Collated:
    places, clips, seconds, rows = zip(*group, strict=True)
    return collate(clips, teachers=rows)._replace(clips=places, weights=seconds)
