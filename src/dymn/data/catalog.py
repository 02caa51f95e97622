"""Catalogs: names, labels and annotations of the clips of a dataset, without audio and without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.errors import DataError
from dymn.system.arrays import Floats

SPLITS = ("train", "val", "test")
NEGATIVES = ("background", "noise", "other")
"""Folders and labels that `dymn fit` and `dymn evaluate` do not treat as classes: clips without any of the classes."""


@dataclass(frozen=True)
class Catalog:
    """Names, labels and annotations of N clips.

    Attributes:
        keys: a unique name for each clip.
        labels: names of the C classes.
        targets: annotation, [N, C] float32, or uint8 [N, ceil(C / 8)] with `packed` (as from `np.packbits`).
        masks: [N, C], 1 where annotated; None if everything is annotated.
        splits: "train", "val", "test" or "" for each clip; empty if the dataset has no splits.
        folds: number of the fold of each clip; empty if the dataset has none.
        packed: whether `targets` are packed bits.
        spans: start and end of each clip in its file, in seconds [N, 2] (inf for the end of the file); None if clips
            are whole files.
        task: properties of the task that the data contain, by the names of `TASK_FACTS`; empty for most datasets.
        groups: recording device of each clip, for metrics by device; empty if unknown.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    targets: npt.NDArray[np.generic]
    masks: npt.NDArray[np.generic] | None = None
    splits: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    packed: bool = False
    spans: npt.NDArray[np.float64] | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, classes = len(self.keys), len(self.labels)
        if n == 0:
            raise DataError("The dataset contains no clips. Check its path and the split.")
        if len(set(self.keys)) != n:
            raise DataError(
                f"The dataset contains {_first_duplicate(self.keys)!r} twice; every clip needs a unique name."
            )
        if classes == 0 or len(set(self.labels)) != classes:
            raise DataError("The dataset needs at least one class, and every class needs a unique name.")
        strange = [name for name in (*self.keys, *self.labels) if not name.isascii() and not _is_text(name)]
        if strange:
            raise DataError(f"The name {strange[0]!r} is not valid UTF-8. Rename the file or folder.")
        columns = (classes + 7) // 8 if self.packed else classes
        if self.targets.shape != (n, columns):
            raise DataError(
                f"Targets have shape {list(self.targets.shape)}; for {n} clips and {classes} classes it must be "
                f"{[n, columns]}."
            )
        if self.masks is not None and self.masks.shape != (n, classes):
            raise DataError(f"Masks have shape {list(self.masks.shape)}; it must be {[n, classes]}.")
        if not self.packed and not np.isfinite(self.targets.astype(np.float32)).all():
            raise DataError("The dataset's targets contain values that are not finite.")
        if self.spans is not None and self.spans.shape != (n, 2):
            raise DataError(f"Spans have shape {list(self.spans.shape)}; it must be {[n, 2]}.")
        for name in ("splits", "folds", "groups"):
            if len(getattr(self, name)) not in (0, n):
                raise DataError(f"{name} has {len(getattr(self, name))} entries for {n} clips.")

    def take(self, indices: Sequence[int]) -> Catalog:
        """Return the catalog of some of the clips."""
        rows = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            keys=tuple(self.keys[i] for i in rows),
            targets=self.targets[rows],
            masks=None if self.masks is None else self.masks[rows],
            splits=tuple(self.splits[i] for i in rows) if self.splits else (),
            folds=tuple(self.folds[i] for i in rows) if self.folds else (),
            spans=None if self.spans is None else self.spans[rows],
            groups=tuple(self.groups[i] for i in rows) if self.groups else (),
        )

    def target_rows(self, rows: slice | npt.NDArray[np.int64]) -> Floats:
        """Return the targets of some clips as float32 [rows, C]."""
        chosen = self.targets[rows]
        if self.packed:
            chosen = np.unpackbits(chosen.astype(np.uint8), axis=1, count=len(self.labels))
        return chosen.astype(np.float32)

    def mask_rows(self, rows: slice | npt.NDArray[np.int64]) -> Floats:
        """Return the masks of some clips as float32 [rows, C]."""
        if self.masks is None:
            return np.ones((len(self.targets[rows]), len(self.labels)), dtype=np.float32)
        return self.masks[rows].astype(np.float32)


def _first_duplicate(names: Sequence[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
