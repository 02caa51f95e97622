"""Clips, and batches of fixed length."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dymn.errors import ConfigError, DataError
from dymn.system.arrays import Floats
from dymn.system.files import write_csv

T = TypeVar("T")
Number = TypeVar("Number", bound=np.generic)

FILLS = ("pad", "repeat")


class Clip(NamedTuple):
    """One decoded clip with its annotation.

    Attributes:
        key: name of the clip in its dataset.
        waveform: mono samples [N], float32.
        target: annotation [C], float32: multi-hot, or probabilities.
        mask: [C], float32; 1 where the class is annotated, else 0 (all zeros for a clip without labels).
        fingerprint: 64-bit digest of the stored (encoded) bytes; 0 if unknown.
    """

    key: str
    waveform: Floats
    target: Floats
    mask: Floats
    fingerprint: int = 0


class BadClip(NamedTuple):
    """A clip that cannot be used, and the reason; a `fatal` one is not of the expected data and ends the run."""

    key: str
    reason: str
    fatal: bool = False


def write_bad(path: Path, bad: Mapping[str, str]) -> None:
    """Write unreadable clips as CSV (key, reason), if there are any."""
    if bad:
        write_csv(path, [("key", "reason"), *sorted(bad.items())])


def read_bad(path: Path) -> dict[str, str]:
    """Return the clips that `write_bad` wrote; empty if there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["key"]: row["reason"] for row in csv.DictReader(file)}


class Batch(NamedTuple):
    """B clips of N samples with C classes.

    Attributes:
        waveform: [B, N] float32.
        target: [B, C] float32.
        teacher: logits of the teacher [B, C] float32; zeros if there are none.
        has_teacher: [B] bool.
        mask: [B, C] float32; 1 where annotated.
        keys: names of the B clips.
    """

    waveform: Tensor
    target: Tensor
    teacher: Tensor
    has_teacher: Tensor
    mask: Tensor
    keys: list[str]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        waveform, target, teacher, has_teacher, mask = (change(tensor) for tensor in self[:5])
        return Batch(waveform, target, teacher, has_teacher, mask, self.keys)


class Collated(NamedTuple):
    """A batch of the usable clips (None if there are none) with their fingerprints, and the unusable clips.

    `clips` are the positions of the usable clips in their source, `cut` is the number of clips whose end was cut by
    more than a tenth of the batch's length. If recordings are divided into windows, `weights` are the lengths of the
    windows in seconds, and a batch may contain several windows of one clip.
    """

    batch: Batch | None
    bad: list[BadClip]
    fingerprints: list[int]
    clips: Sequence[int] = ()
    cut: int = 0
    weights: Sequence[float] = ()

    def pin_memory(self) -> Collated:
        """Return the same in page-locked memory (called by torch's DataLoader)."""
        return self if self.batch is None else self._replace(batch=self.batch.pin_memory())


def check_bad(bad: Mapping[str, str], total: int, max_bad: float) -> None:
    """Reject data if too large a share of the clips cannot be read.

    Args:
        bad: unreadable clips with their reasons.
        total: number of clips.
        max_bad: maximum share of unreadable clips.

    Raises:
        DataError: naming the first ones.
    """
    if len(bad) > max_bad * total:
        raise DataError(
            f"{len(bad)} of {total} clips are bad, more than {max_bad:.1%}: {first_bad(bad)}. Repair or remove them, "
            "or allow a larger share (max_bad)."
        )


def first_bad(bad: Mapping[str, str]) -> str:
    """Return the first five clips that could not be read, with their reasons, as text."""
    return "; ".join(f"{key}: {reason}" for key, reason in list(bad.items())[:5])


def as_it_is(item: T) -> T:
    """Return an item; a function that other processes can import, for PyTorch's DataLoader."""
    return item


def fit(
    waveform: npt.NDArray[Number], samples: int, rng: np.random.Generator | None = None, fill: str = "pad"
) -> npt.NDArray[Number]:
    """Cut or extend a waveform [N] of any type to [samples].

    A longer waveform is cut at a random position drawn from `rng` or, without `rng`, after the first `samples`. A
    shorter one is extended at the end, with zeros or by repetition.

    Raises:
        ConfigError: if `samples` or `fill` is not allowed.
    """
    if samples < 1:
        raise ConfigError(f"samples is {samples}; a clip must have at least 1.")
    if fill not in FILLS:
        raise ConfigError(f"fill is {fill!r}; allowed: {', '.join(FILLS)}.")
    n = len(waveform)
    if n > samples:
        start = int(rng.integers(0, n - samples + 1)) if rng is not None else 0
        return waveform[start : start + samples]
    if n == samples:
        return waveform
    if fill == "repeat" and n:
        return np.tile(waveform, -(-samples // n))[:samples]
    return np.pad(waveform, (0, samples - n))


def collate(
    clips: Sequence[Clip | BadClip],
    samples: int | None = None,
    teachers: Sequence[Floats | None] | None = None,
    fill: str = "pad",
) -> Collated:
    """Stack clips into one batch, leaving the bad ones out.

    Args:
        clips: B clips, good and bad.
        samples: length of the batch; by default, that of the longest clip. Longer clips are cut at the end.
        teachers: the teacher's logits [C] of each clip, or None.
        fill: how shorter clips are extended, see `fit`.
    """
    logits = list(teachers) if teachers is not None else [None] * len(clips)
    bad = [clip for clip in clips if isinstance(clip, BadClip)]
    good = [(clip, row) for clip, row in zip(clips, logits, strict=True) if isinstance(clip, Clip)]
    if not good:
        return Collated(None, bad, [])
    length = samples if samples is not None else max(len(clip.waveform) for clip, _ in good)
    nothing = np.zeros_like(good[0][0].target)
    batch = Batch(
        waveform=_stack([fit(clip.waveform, length, fill=fill) for clip, _ in good]),
        target=_stack([clip.target for clip, _ in good]),
        teacher=_stack([nothing if row is None else row for _, row in good]),
        has_teacher=torch.tensor([row is not None for _, row in good]),
        mask=_stack([clip.mask for clip, _ in good]),
        keys=[clip.key for clip, _ in good],
    )
    return Collated(batch, bad, [clip.fingerprint for clip, _ in good])


def _stack(rows: Sequence[Floats]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32, copy=False))
