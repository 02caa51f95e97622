"""Decoded clips in the memory of the device that computes: batches are cut there by index, nothing is decoded or copied in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dymn.data.batch import BadClip, Batch, Collated
from dymn.data.cache import FULL_SCALE, quantised
from dymn.data.presented import Presented
from dymn.data.samplers import Draw
from dymn.data.source import Source
from dymn.errors import DataError, resource_error


class Resident:
    """The audio of a whole dataset in 16 bits on a device, by position in its catalog.

    At 32 kHz an hour takes 230 MB. Samples are those of the decoded cache, if the source has one; else they are decoded now.

    Args:
        source: any split of the dataset.
        device: where the samples lie.
        workers: processes that decode.

    Raises:
        DataError: if no clip can be read, or they do not fit the memory.
    """

    def __init__(self, source: Source, device: torch.device, workers: int = 0) -> None:
        whole = source.where_all()
        n = len(whole)
        self.device = device
        self.bad: dict[int, str] = {}
        self.starts, self.lengths, self.marks = (np.zeros(n, dtype=np.int64) for _ in range(3))
        self.scales = np.ones(n, dtype=np.float32)
        parts: list[Tensor] = []
        end = 0
        try:
            for i, item in enumerate(quantised(whole, 0 if whole.decoded is not None else workers)):
                if isinstance(item, str):
                    self.bad[i] = item
                    continue
                samples, self.scales[i], self.marks[i] = item
                self.starts[i], self.lengths[i] = end, len(samples)
                end += len(samples)
                parts.append(torch.from_numpy(np.array(samples)))
            if not parts:
                raise DataError(f"No clip of {whole.name or 'the dataset'} can be read.")
            self.audio = torch.cat(parts).to(device)  # [samples] int16
        except (RuntimeError, MemoryError) as error:
            if resource_error(error) is None:
                raise
            raise DataError(f"{device} has no room for the decoded clips. Leave data.resident out, or use data.cache alone.") from error

    def waveforms(self, clips: Sequence[int], offsets: Sequence[int], samples: int, fill: str) -> Tensor:
        """Return [B, samples] float32 of some clips, each from its offset on; what is too short is repeated or followed by zeros."""
        rows = np.asarray(clips)
        columns = np.stack([self.starts[rows], np.asarray(offsets), self.lengths[rows]])
        start, offset, length = torch.from_numpy(columns).to(self.device)[..., None]
        scale = torch.from_numpy(self.scales[rows] / np.float32(FULL_SCALE)).to(self.device)[:, None]
        place = offset + torch.arange(samples, device=self.device)
        waveform = self.audio[start + place % length] * scale
        return waveform if fill == "repeat" else torch.where(place < length, waveform, 0.0)


class ResidentBatches:
    """The batches of an epoch as a loader's workers make them, of clips that lie on the device."""

    def __init__(self, presented: Presented, resident: Resident) -> None:
        self.presented, self.resident = presented, resident
        catalog, device = presented.source.catalog, resident.device
        self.targets = torch.from_numpy(catalog.target_rows(slice(None))).to(device)
        self.masks = torch.from_numpy(catalog.mask_rows(slice(None))).to(device)

    def __iter__(self) -> Iterator[Collated]:
        epoch, first = self.presented.start.tolist()
        for share in self.presented.batches.shares(epoch, first):
            yield self._collated(share)

    def _collated(self, share: list[Draw]) -> Collated:
        source, resident, teacher = self.presented.source, self.resident, self.presented.teacher
        places = source.indices[[draw.clip for draw in share]]
        bad = [
            BadClip(source.keys[draw.clip], resident.bad[place])
            for draw, place in zip(share, places.tolist(), strict=True)
            if place in resident.bad
        ]
        good = [(draw, place) for draw, place in zip(share, places.tolist(), strict=True) if place not in resident.bad]
        if not good:
            return Collated(None, bad, [])
        clips = [draw.clip for draw, _ in good]
        lengths = [int(resident.lengths[place]) for _, place in good]
        samples = self.presented.samples or max(lengths)
        offsets = [self.presented.offset(draw, n, samples) for (draw, _), n in zip(good, lengths, strict=True)]
        rows = torch.tensor(clips, device=resident.device)
        logits = np.zeros((len(good), self.targets.shape[1]), dtype=np.float32)
        known = np.zeros(len(good), dtype=np.bool_)
        if teacher is not None and self.presented.rows is not None:
            taught = self.presented.rows[clips]
            known = taught >= 0
            logits[known] = teacher.logits[taught[known]]
            marks = [int(resident.marks[place]) for _, place in good]
            strangers = [self.presented.stranger(draw.clip, mark) for (draw, _), mark in zip(good, marks, strict=True)]
            bad += [stranger for stranger in strangers if stranger is not None]
        batch = Batch(
            waveform=resident.waveforms([place for _, place in good], offsets, samples, self.presented.fill),
            target=self.targets[rows],
            teacher=torch.from_numpy(logits).to(resident.device),
            has_teacher=torch.from_numpy(known).to(resident.device),
            mask=self.masks[rows],
            keys=[source.keys[clip] for clip in clips],
        )
        return Collated(batch, bad, [int(resident.marks[place]) for _, place in good])
