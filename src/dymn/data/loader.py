"""Loading of batches in worker processes; unreadable clips are skipped, counted and listed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from dymn.data.batch import FILLS, BadClip, Batch, Collated, as_it_is, first_bad
from dymn.data.presented import Presented
from dymn.data.resident import Resident, ResidentBatches
from dymn.data.samplers import Batches, Sampler
from dymn.data.source import Source
from dymn.data.teacher import TeacherTable
from dymn.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

CROPPED = ("random", "start", "windows")


class Loader:
    """Iterates over the batches of an epoch.

    The content of an epoch depends on the sampler's seed, `seed` and the epoch's number, not on workers or processes.
    With several processes, `batch_size` is the total, and each process receives its share of every batch.

    Args:
        source: the clips.
        sampler: the order of an epoch.
        batch_size: number of clips of a (global) batch, including unreadable ones, which are left out.
        seconds: length of every clip; by default, that of the longest clip in the batch.
        crop: "random" crops at a random position in each epoch, "start" uses the beginning, and "windows" divides whole
            recordings of any length into windows of `longest` seconds (see `dymn.data.windows`), in batches of equal
            length.
        longest: length of a window in seconds; by default, `seconds`.
        fill: "pad" (with zeros) or "repeat", for clips that are shorter.
        seed: seed of the random crops.
        teacher: table of the teacher's logits.
        partial_teacher: whether clips without logits of the teacher are allowed.
        workers: number of processes that decode clips; 0 decodes in this process.
        rank: number of this process.
        world: number of processes.
        drop_last: whether an incomplete last batch is left out.
        max_bad: maximum share of unreadable clips in an epoch.
        pin_memory: whether batches are copied to page-locked memory.
        context: start method of workers ("fork", "spawn", "forkserver"); by default, the platform's.
        resident: decoded audio of the dataset on a device, where batches are created; there are then no workers.

    Attributes:
        bad: unreadable clips found so far, with their reasons.
        fingerprints: fingerprints of the clips read so far [N], otherwise 0. A clip with another fingerprint than
            before ends the run.
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        batch_size: int,
        *,
        seconds: float | None = None,
        crop: str = "random",
        longest: float | None = None,
        fill: str = "pad",
        seed: int = 0,
        teacher: TeacherTable | None = None,
        partial_teacher: bool = False,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        max_bad: float = 0.05,
        pin_memory: bool = False,
        context: str | None = None,
        resident: Resident | None = None,
    ) -> None:
        if crop not in CROPPED or fill not in FILLS:
            raise ConfigError(
                f"crop and fill are {crop!r} and {fill!r}; allowed: {', '.join(CROPPED)}, and {', '.join(FILLS)}."
            )
        if crop == "windows" and (seconds is None or (longest or seconds) < seconds):
            raise ConfigError(
                f"seconds and longest are {seconds} and {longest}; with crop 'windows', seconds must be set, and "
                "longest must be at least seconds."
            )
        if seconds is not None and not 0 < seconds <= source.max_seconds:
            raise ConfigError(f"seconds is {seconds}; it must be above 0 and at most {source.max_seconds}.")
        if not 0 <= max_bad <= 1 or workers < 0 or seed < 0:
            raise ConfigError(
                f"max_bad, workers and seed are {max_bad}, {workers} and {seed}; max_bad must be from 0 to 1, the "
                "others at least 0."
            )
        samples = None if seconds is None else round(seconds * source.sample_rate)
        longest_samples = None if longest is None else round(longest * source.sample_rate)
        self.source, self.max_bad, self.seed = source, max_bad, seed
        self.bad: dict[str, str] = {}
        self.fingerprints = np.zeros(len(source), dtype=np.int64)
        self.batches = Batches(sampler, batch_size, rank=rank, world=world, drop_last=drop_last)
        self._presented = Presented(
            source,
            self.batches,
            teacher,
            partial_teacher,
            samples,
            crop=crop,
            fill=fill,
            seed=seed,
            longest=longest_samples,
        )
        workers = 0 if resident is not None else workers
        if workers:
            self._presented.start.share_memory_()  # type: ignore[no-untyped-call]
        self._at = (0, 0)  # epoch, and how many of its batches were handed out
        self._met = 0  # bad clips in those batches
        self._first: dict[int, tuple[int, int]] = {}  # of resumed epochs: the first batch, and bad clips before it
        self._loader: Iterable[Collated] = (
            self._decoding(workers, pin_memory, context)
            if resident is None
            else ResidentBatches(self._presented, resident)
        )

    def _decoding(self, workers: int, pin_memory: bool, context: str | None) -> DataLoader[Collated]:
        return DataLoader(
            self._presented,
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            multiprocessing_context=context if workers else None,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch (`Raises` as for `collated`)."""
        for collated in self.collated(number):
            if collated.batch is not None:
                yield collated.batch

    def collated(self, number: int) -> Iterator[Collated]:
        """Yield the batches of an epoch with their unreadable clips.

        Raises:
            DataError: if more than `max_bad` of the epoch's clips are unreadable, all clips of a batch are unreadable
                while other processes wait, or a clip differs from the one that the teacher received, or from an earlier
                one of the same name.
        """
        first, self._met = self._first.pop(number, (0, 0))
        self._presented.start.copy_(torch.tensor([number, first]))
        allowed = self.max_bad * len(self.batches.sampler) / self.batches.world
        for done, collated in enumerate(self._loader, start=first + 1):
            self._at = (number, done)
            self._compare(collated)
            for clip in collated.bad:
                self._met += 1
                self._note(clip)
            if self._met > allowed:
                raise DataError(
                    f"{self._met} bad clips in epoch {number + 1}, more than {self.max_bad:.1%} of its "
                    f"{len(self.batches.sampler)} clips: {first_bad(self.bad)}. Repair or remove them, or allow a "
                    "larger share (max_bad)."
                )
            if collated.batch is None and self.batches.world > 1:
                raise DataError(
                    f"All clips of a batch are bad: {', '.join(clip.key for clip in collated.bad)}. Repair or remove "
                    "them."
                )
            yield collated

    def state_dict(self) -> dict[str, int]:
        """Return the position (epoch, batches returned, their bad clips) and the settings that determine the order."""
        epoch, batch = self._at
        size, draws = self.batches.batch_size, len(self.batches.sampler)
        return {"epoch": epoch, "batch": batch, "bad": self._met, "seed": self.seed, "draws": draws, "batch_size": size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the epoch of a state after the batches that were returned.

        The number of workers may differ, and also the number of processes if it divides the batch.

        Raises:
            ConfigError: if the state belongs to another order.
        """
        now = self.state_dict()
        differing = [name for name in ("seed", "draws", "batch_size") if state.get(name) != now[name]]
        if differing:
            raise ConfigError(
                f"The state belongs to a loader with another {' and '.join(differing)}: {state}; this one has {now}."
            )
        self._at, self._met = (state["epoch"], state["batch"]), state.get("bad", 0)
        self._first[state["epoch"]] = (state["batch"], self._met)

    def _compare(self, collated: Collated) -> None:
        for clip, fingerprint in zip(collated.clips, collated.fingerprints, strict=True):
            if fingerprint and self.fingerprints[clip] not in (0, fingerprint):
                raise DataError(
                    f"The audio of {self.source.keys[clip]} has changed since this run read it. Restore the file, or "
                    "start over in another folder (--output, run.out)."
                )
            self.fingerprints[clip] = fingerprint

    def _note(self, clip: BadClip) -> None:
        if clip.fatal:
            raise DataError(f"{clip.key}: {clip.reason}. Create the table again from this dataset (dymn teach).")
        if clip.key not in self.bad:
            logger.warning("Skipping %s: %s", clip.key, clip.reason)
            self.bad[clip.key] = clip.reason
