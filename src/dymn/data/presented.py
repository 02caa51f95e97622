"""The batches of an epoch, with crops and the teacher's logits, in the main process or a worker."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dymn.data.batch import BadClip, Clip, Collated, collate, fit
from dymn.data.samplers import Batches, Draw
from dymn.data.source import Source
from dymn.data.streams import read_ahead
from dymn.data.teacher import TeacherTable
from dymn.data.windows import ClipWindow, Length, batches, windows
from dymn.system.arrays import Floats

CROPS = 1
"""Keeps the random numbers of crops apart from those of the order, which have 0 in this place."""


class Presented(IterableDataset[Collated]):
    """The batches of an epoch, with crops and the teacher's logits: each worker process makes every n-th of them.

    `start` holds the epoch and its first batch; workers see what the main process writes there.
    """

    def __init__(
        self,
        source: Source,
        batches: Batches,
        teacher: TeacherTable | None,
        partial: bool,
        samples: int | None,
        *,
        crop: str,
        fill: str,
        seed: int,
        longest: int | None = None,
    ) -> None:
        self.source, self.batches, self.teacher = source, batches, teacher
        self.samples, self.crop, self.fill, self.seed = samples, crop, fill, seed
        self.rows = None if teacher is None else teacher.match(source, partial=partial)
        self.columns = None if teacher is None else teacher.columns(source.labels)
        self._longer = 0  # clips of a batch that are cut by more than a tenth
        self.start = torch.zeros(2, dtype=torch.int64)
        self.length = None if crop != "windows" or samples is None else Length(samples, longest or samples)

    def __iter__(self) -> Iterator[Collated]:
        info = get_worker_info()
        mine, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, first = self.start.tolist()
        for share, contents in read_ahead(self.source, self.batches.shares(epoch, first + mine, workers)):
            if self.length is not None:
                windows_of = functools.partial(self._windows, self.length, contents)
                yield from batches(share, windows_of, self._logits, self.batches.batch_size)
                continue
            self._longer = 0
            items = [self._presented(draw, contents.get(draw.clip)) for draw in share]
            collated = collate([clip for clip, _ in items], teachers=[logits for _, logits in items], fill=self.fill)
            places = [draw.clip for draw, (clip, _) in zip(share, items, strict=True) if isinstance(clip, Clip)]
            yield collated._replace(clips=places, cut=self._longer)

    def _windows(self, length: Length, contents: dict[int, bytes | Exception], draw: Draw) -> Iterator[ClipWindow]:
        for clip, seconds in windows(self.source, draw, length, self.fill, contents.get(draw.clip)):
            yield ClipWindow(self._checked(clip, draw), seconds)

    def _checked(self, clip: Clip | BadClip, draw: Draw) -> Clip | BadClip:
        return clip if isinstance(clip, BadClip) else self.mismatch(draw.clip, clip.fingerprint) or clip

    def _logits(self, draw: Draw) -> Floats | None:
        if self.teacher is None or self.rows is None or self.rows[draw.clip] < 0:
            return None
        logits: Floats = self.teacher.take(int(self.rows[draw.clip]), self.columns).astype(np.float32)
        return logits

    def _presented(self, draw: Draw, content: bytes | Exception | None) -> tuple[Clip | BadClip, Floats | None]:
        cut = None if self.samples is None else functools.partial(self._fitted, draw, self.samples)
        clip = self._checked(self.source.clip(draw.clip, cut, content), draw)
        return clip, None if isinstance(clip, BadClip) else self._logits(draw)

    def _fitted(self, draw: Draw, samples: int, waveform: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._longer += self.crop == "start" and 10 * len(waveform) > 11 * samples
        return fit(waveform, samples, self._rng(draw), self.fill)

    def _rng(self, draw: Draw) -> np.random.Generator | None:
        return np.random.default_rng((self.seed, draw.epoch, draw.place, CROPS)) if self.crop == "random" else None

    def offset(self, draw: Draw, n: int, samples: int) -> int:
        """Return where in a clip of `n` samples a crop begins: where `fit` has it begin."""
        rng = self._rng(draw) if n > samples else None
        return 0 if rng is None else int(rng.integers(0, n - samples + 1))

    def mismatch(self, clip: int, fingerprint: int) -> BadClip | None:
        """Return why a clip with this fingerprint is not the one that the teacher received; None if it may be."""
        if self.teacher is None or self.rows is None or self.rows[clip] < 0:
            return None
        known = int(self.teacher.fingerprints[int(self.rows[clip])])
        if not known or not fingerprint or known == fingerprint:
            return None
        return BadClip(self.source.keys[clip], "its audio differs from that of the teacher's logits", fatal=True)
