"""Decoded clips in the memory of the training device, where batches are created by index, without copying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dymn.data.batch import BadClip, Batch, Collated
from dymn.data.cache import FULL_SCALE, quantised
from dymn.data.presented import Presented
from dymn.data.samplers import Draw
from dymn.data.source import Source
from dymn.data.windows import Length, spans
from dymn.errors import DataError, resource_error


class Crop(NamedTuple):
    """A part of a clip that is resident."""

    draw: Draw
    place: int  # of the clip in the whole dataset
    offset: int  # where it begins, in samples
    end: int  # what counts as the end of the clip
    seconds: float = 0.0  # of sound in a window


class Resident:
    """The audio of a whole dataset in 16 bits on a device, by position in its catalog.

    At 32 kHz an hour takes 230 MB. Samples are read from the cache of decoded clips, if the source has one; otherwise,
    clips are decoded now.

    Args:
        source: any split of the dataset.
        device: where the samples are stored.
        workers: number of processes that decode clips.

    Raises:
        DataError: if no clip can be read, or they do not fit the memory.
    """

    def __init__(self, source: Source, device: torch.device, workers: int = 0) -> None:
        whole = source.where_all()
        n = len(whole)
        self.device = device
        self.bad: dict[int, str] = {}
        self.starts, self.lengths, self.fingerprints = (np.zeros(n, dtype=np.int64) for _ in range(3))
        self.scales = np.ones(n, dtype=np.float32)
        parts: list[Tensor] = []
        end = 0
        try:
            for i, item in enumerate(quantised(whole, 0 if whole.decoded is not None else workers)):
                if isinstance(item, str):
                    self.bad[i] = item
                    continue
                samples, self.scales[i], self.fingerprints[i] = item
                self.starts[i], self.lengths[i] = end, len(samples)
                end += len(samples)
                parts.append(torch.from_numpy(np.array(samples)))
            if not parts:
                raise DataError(f"No clip of {whole.name or 'the dataset'} can be read.")
            self.audio = torch.cat(parts).to(device)  # [samples] int16
        except (RuntimeError, MemoryError) as error:
            if resource_error(error) is None:
                raise
            raise DataError(
                f"{device} does not have enough memory for the decoded clips. Leave data.resident out, or use only "
                "data.cache."
            ) from error

    def waveforms(
        self, clips: Sequence[int], offsets: Sequence[int], samples: int, fill: str, ends: Sequence[int] | None = None
    ) -> Tensor:
        """Return [B, samples] float32 of some clips, each from its offset to its end.

        Args:
            clips: B positions in the whole dataset.
            offsets: start of each result in its clip, in samples.
            samples: length of each result.
            fill: "pad" (with zeros) or "repeat", for clips that are shorter.
            ends: end of each clip, in samples; by default, its actual end.
        """
        rows = np.asarray(clips)
        columns = np.stack(
            [self.starts[rows], np.asarray(offsets), self.lengths[rows] if ends is None else np.asarray(ends)]
        )
        start, offset, end = torch.from_numpy(columns).to(self.device)[..., None]
        scale = torch.from_numpy(self.scales[rows] / np.float32(FULL_SCALE)).to(self.device)[:, None]
        place = torch.arange(samples, device=self.device)
        waveform = self.audio[start + offset + place % (end - offset)] * scale
        return waveform if fill == "repeat" else torch.where(place < end - offset, waveform, 0.0)


class ResidentBatches:
    """The batches of an epoch as a loader's workers make them, of clips on the device."""

    def __init__(self, presented: Presented, resident: Resident) -> None:
        self.presented, self.resident = presented, resident
        catalog, device = presented.source.catalog, resident.device
        self.targets = torch.from_numpy(catalog.target_rows(slice(None))).to(device)
        self.masks = torch.from_numpy(catalog.mask_rows(slice(None))).to(device)

    def __iter__(self) -> Iterator[Collated]:
        epoch, first = self.presented.start.tolist()
        for share in self.presented.batches.shares(epoch, first):
            places = self.presented.source.indices[[draw.clip for draw in share]].tolist()
            drawn = list(zip(share, places, strict=True))
            bad = [
                BadClip(self.presented.source.keys[draw.clip], self.resident.bad[place])
                for draw, place in drawn
                if place in self.resident.bad
            ]
            good = [(draw, place) for draw, place in drawn if place not in self.resident.bad]
            yield from (
                self._crops(good, bad)
                if self.presented.length is None
                else self._windows(good, bad, self.presented.length)
            )

    def _crops(self, good: list[tuple[Draw, int]], bad: list[BadClip]) -> Iterator[Collated]:
        lengths = [int(self.resident.lengths[place]) for _, place in good]
        samples = self.presented.samples or max(lengths, default=0)
        crops = [
            Crop(draw, place, self.presented.offset(draw, n, samples), n)
            for (draw, place), n in zip(good, lengths, strict=True)
        ]
        yield self._collated(crops, samples, bad)

    def _windows(self, good: list[tuple[Draw, int]], bad: list[BadClip], length: Length) -> Iterator[Collated]:
        """Yield whole clips as windows, in the batches that `dymn.data.windows.batches` makes."""
        waiting: dict[int, list[Crop]] = {}
        for draw, place in good:
            for start, n in spans(int(self.resident.lengths[place]), length):
                samples = max(n, length.least)
                group = waiting.setdefault(samples, [])
                group.append(Crop(draw, place, start, start + n, n / self.presented.source.sample_rate))
                if len(group) == self.presented.batches.batch_size:
                    yield self._collated(waiting.pop(samples), samples, [])
        for samples, group in waiting.items():
            yield self._collated(group, samples, [])
        if bad:
            yield Collated(None, bad, [])

    def _collated(self, crops: list[Crop], samples: int, bad: list[BadClip]) -> Collated:
        if not crops:
            return Collated(None, bad, [])
        source, resident, teacher = self.presented.source, self.resident, self.presented.teacher
        clips = [crop.draw.clip for crop in crops]
        rows = torch.tensor(clips, device=resident.device)
        logits = np.zeros((len(crops), self.targets.shape[1]), dtype=np.float32)
        known = np.zeros(len(crops), dtype=np.bool_)
        fingerprints = [int(resident.fingerprints[crop.place]) for crop in crops]
        if teacher is not None and self.presented.rows is not None:
            in_table = self.presented.rows[clips]
            known = in_table >= 0
            logits[known] = teacher.take(in_table[known], self.presented.columns)
            foreign = [
                self.presented.mismatch(clip, fingerprint)
                for clip, fingerprint in zip(clips, fingerprints, strict=True)
            ]
            bad = bad + [mismatch for mismatch in foreign if mismatch is not None]
        batch = Batch(
            waveform=resident.waveforms(
                [crop.place for crop in crops],
                [crop.offset for crop in crops],
                samples,
                self.presented.fill,
                [crop.end for crop in crops],
            ),
            target=self.targets[rows],
            teacher=torch.from_numpy(logits).to(resident.device),
            has_teacher=torch.from_numpy(known).to(resident.device),
            mask=self.masks[rows],
            keys=[source.keys[clip] for clip in clips],
        )
        weights = () if self.presented.length is None else [crop.seconds for crop in crops]
        return Collated(batch, bad, fingerprints, clips=clips, weights=weights)
