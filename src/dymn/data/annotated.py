"""Clips from recordings that were annotated with Raven or Audacity: each annotated passage is a clip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from dymn.audio.annotations import Annotation, read_annotations
from dymn.data.catalog import Catalog
from dymn.data.readers import multi_hot
from dymn.data.stores import FileStore, Store

SHARE = 0.5
"""The part of a clip or of another annotation that their overlap covers at least, for the clip to have its label."""


def read_annotated(
    path: Path, *, root: str | Path | None = None, labels: Sequence[str] | None = None, label_column: str | None = None
) -> tuple[Catalog, Store]:
    """Raven's selection tables or Audacity's label tracks, one or a folder of them: each annotated passage is a clip.

    A clip has its own label, and those of other annotations of its recording that cover at least half of it, or of
    which at least half is in it.

    Args:
        path: as in `dymn.audio.annotations.read_annotations`.
        root: the folder of the recordings; None for that of each table.
        labels: names of the classes in the wanted order; None for those found, sorted.
        label_column: the column of labels in selection tables.

    Raises:
        DataError: as `read_annotations`, or if a label is not among `labels`.
    """
    home = Path(os.path.abspath(root if root is not None else path if path.is_dir() else path.parent))
    keys, names, spans, paths = list[str](), list[set[str]](), list[tuple[float, float]](), list[Path]()
    for recording, group in groupby(read_annotations(path, root=root, label_column=label_column), _recording):
        annotations = list(group)
        places = np.array([(one.start, one.end) for one in annotations])
        file = Path(os.path.abspath(recording))
        name = file.relative_to(home).as_posix() if file.is_relative_to(home) else file.as_posix()
        for start, end in dict.fromkeys((one.start, one.end) for one in annotations):
            overlap = np.minimum(places[:, 1], end) - np.maximum(places[:, 0], start)
            audible = overlap >= SHARE * np.minimum(places[:, 1] - places[:, 0], end - start)
            keys.append(f"{name}#{start:.15g}-{end:.15g}")
            names.append({annotations[i].label for i in np.flatnonzero(audible)})
            spans.append((start, end))
            paths.append(recording)
    classes = tuple(labels) if labels is not None else tuple(sorted(set().union(*names)))
    targets = multi_hot(names, classes, path)
    return Catalog(tuple(keys), classes, targets, spans=np.array(spans)), FileStore(paths)


def _recording(annotation: Annotation) -> Path:
    return annotation.recording
