"""AudioSet as published by Google: lists of segments, and a folder with the audio files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio import listing
from dymn.data.catalog import Catalog
from dymn.data.readers import csv_rows, named_files
from dymn.data.stores import FileStore, Store
from dymn.errors import AudioError, DataError
from dymn.system.files import write_csv
from dymn.weights.labels import audioset_labels, audioset_mids

logger = logging.getLogger(__name__)

SEGMENT_FILES = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}
FILE_NAME = re.compile(r"(?P<id>[\w-]{11})(?:[_-][\d.]+){0,2}", re.ASCII)
"""A file's name without its extension: the YouTube id, perhaps with a Y before it, and start and end (in s or ms) after
it."""


class ListedSegment(NamedTuple):
    """A row of a list."""

    key: str  # YouTube id
    classes: list[int]


def read_audioset(root: Path, *, report: str | None = None) -> tuple[Catalog, Store]:
    """AudioSet: its lists (`SEGMENT_FILES`) in `root`, or one of them, and the audio anywhere below their folder.

    Files are named by their YouTube id: ID.wav, YID.flac, ID_30.000.opus, ID_30000_40000.m4a and so on. Segments
    without audio, which every copy of AudioSet has, are left out and counted in a warning.

    Args:
        root: the folder, or one list.
        report: a CSV file to write, with a row (list, key) for each segment without audio.

    Raises:
        DataError: if there is no list, a list is not one of AudioSet's, or no audio is there.
    """
    folder = root if root.is_dir() else root.parent
    lists = named_files(root, SEGMENT_FILES, "train")
    try:
        files = {name: path for path in sorted(listing.expand(folder)) for name in _ids(path)}
    except AudioError as error:
        raise DataError(f"{folder} contains AudioSet's lists, but no audio. {error}") from error
    keys: list[str] = []
    paths: list[Path] = []
    splits: list[str] = []
    targets: list[npt.NDArray[np.uint8]] = []
    missing: list[tuple[str, str]] = []
    for path, split in lists.items():
        n_listed = n_found = 0
        for segment in segments(path):
            n_listed += 1
            if segment.key not in files:
                missing.append((path.name, segment.key))
                continue
            n_found += 1
            keys.append(segment.key)
            paths.append(files[segment.key])
            splits.append(split)
            targets.append(_packed(segment.classes))
        if n_found < n_listed:
            logger.warning("%s: %d of %d segments have no audio.", path.name, n_listed - n_found, n_listed)
    if report is not None:
        write_csv(report, [("list", "key"), *missing])
    if not keys:
        raise DataError(
            f"None of the {len(missing)} segments has a file below {folder}. Files are named by their YouTube id, such "
            f"as {missing[0][1] if missing else 'ID'}.wav."
        )
    return Catalog(tuple(keys), audioset_labels(), np.stack(targets), splits=tuple(splits), packed=True), FileStore(
        paths
    )


def segments(path: Path) -> Iterator[ListedSegment]:
    """Yield the rows of a list: YouTube id, start, end, and the machine ids of the classes.

    Raises:
        DataError: if the file cannot be read or is no such list.
    """
    column = {mid: i for i, mid in enumerate(audioset_mids())}
    for line, row in enumerate(csv_rows(path), start=1):
        if not row or row[0].startswith("#"):
            continue
        mids = [mid.strip().strip('"') for mid in row[3:]]  # the list of classes is in quotes after a space
        unknown = [mid for mid in mids if mid not in column]
        if not mids or unknown:
            what = f"the class {unknown[0]!r:.40}, which is not one of AudioSet's 527" if unknown else "no classes"
            raise DataError(f"{path}, row {line}: {what}. A row has YTID, start, end, and classes such as /m/09x0r.")
        yield ListedSegment(row[0].strip(), [column[mid] for mid in mids])


def _ids(path: Path) -> Iterator[str]:
    """Yield the YouTube ids that a file's name may stand for."""
    for name in {path.stem, path.stem.removeprefix("Y")}:
        if match := FILE_NAME.fullmatch(name):
            yield match["id"]


def _packed(classes: list[int]) -> npt.NDArray[np.uint8]:
    target = np.zeros(len(audioset_labels()), dtype=np.uint8)
    target[classes] = 1
    return np.packbits(target)
