"""AudioSet as published by Google: lists of segments, and a folder with the audio files."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio import listing
from dymn.audio.reading import probe
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
FILE_NAME = re.compile(r"(?P<id>[\w-]{11})(?:[_-](?P<start>[\d.]+))?(?:[_-][\d.]+)?", re.ASCII)
"""A file's name without its extension: the YouTube id, perhaps with a Y before it, and start and end (in s or ms) after
it."""
NEAR = 1.0  # seconds that the start in a file's name, which may be rounded, may be away from that in the list
LONGER = 2.0  # seconds that a file may be longer than its segment
PROBED = 100  # files whose lengths are looked at, at most


class ListedSegment(NamedTuple):
    """A row of a list."""

    key: str  # YouTube id
    classes: list[int]
    start: float  # seconds
    end: float


def read_audioset(root: Path, *, report: str | None = None) -> tuple[Catalog, Store]:
    """AudioSet: its lists (`SEGMENT_FILES`) in `root`, or one of them, and the audio anywhere below their folder.

    Files are named by their YouTube id: ID.wav, YID.flac, ID_30.000.opus, ID_30000_40000.m4a and so on. Segments
    without audio, which every copy of AudioSet has, are left out and counted in a warning, as are those whose only
    files state another start. A warning tells of files that are longer than their segments, as whole videos are, and of
    segments with several files, of which one that states its start is used.

    Args:
        root: the folder, or one list.
        report: a CSV file to write, with a row (list, key, reason) for each segment that is left out.

    Raises:
        DataError: if there is no list, a list is not one of AudioSet's, or no audio is there.
    """
    folder = root if root.is_dir() else root.parent
    lists = named_files(root, SEGMENT_FILES, "train")
    try:
        files = _files(folder)
    except AudioError as error:
        raise DataError(f"{folder} contains AudioSet's lists, but no audio. {error}") from error
    keys: list[str] = []
    paths: list[Path] = []
    splits: list[str] = []
    targets: list[npt.NDArray[np.uint8]] = []
    missing: list[tuple[str, str, str]] = []
    elsewhere: list[str] = []
    several: list[str] = []
    lengths: list[float] = []
    for path, split in lists.items():
        n_listed, n_silent, n_elsewhere = 0, 0, len(elsewhere)
        for segment in segments(path):
            n_listed += 1
            there = files.get(segment.key, [])
            file = _file_of(segment, there)
            if file is None:
                missing.append(
                    (path.name, segment.key, f"start differs: {there[0].path.name}" if there else "no audio")
                )
                n_silent += not there
                elsewhere += [f"{one.path.name} for {segment.key}" for one in there[:1]]
                continue
            if len(there) > 1:
                several.append(segment.key)
            keys.append(segment.key)
            paths.append(file)
            splits.append(split)
            targets.append(_packed(segment.classes))
            lengths.append(segment.end - segment.start)
        if n_silent:
            logger.warning("%s: %d of %d segments have no audio.", path.name, n_silent, n_listed)
        if n_elsewhere := len(elsewhere) - n_elsewhere:
            what = "%s: for %d of %d segments, only files with another start were found."
            logger.warning(what, path.name, n_elsewhere, n_listed)
    if several:
        logger.warning("Segments with several files: %d, such as %s; one of each is used.", len(several), several[0])
    _warn_of_long_files(paths, lengths)
    if report is not None:
        write_csv(report, [("list", "key", "reason"), *missing])
    if not keys and elsewhere:
        raise DataError(
            f"No file below {folder} matches the start of any of the {len(missing)} segments, such as {elsewhere[0]}. "
            "Name files by id and start, such as ID_30.000.flac."
        )
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
        try:
            start, end = float(row[1]), float(row[2])
            if not math.isfinite(start + end):
                raise ValueError("not a time")
        except ValueError as error:
            raise DataError(
                f"{path}, row {line}: {row[1]!r:.40} or {row[2]!r:.40} is not a number of seconds."
            ) from error
        yield ListedSegment(row[0].strip(), [column[mid] for mid in mids], start, end)


class File(NamedTuple):
    """A file and the start that its name states, in seconds or milliseconds; None without."""

    path: Path
    start: float | None


def _files(folder: Path) -> dict[str, list[File]]:
    """Return the files below a folder by the YouTube ids that their names may stand for."""
    found: dict[str, list[File]] = {}
    for path in sorted(listing.expand(folder)):
        for name in {path.stem, path.stem.removeprefix("Y")}:
            match = FILE_NAME.fullmatch(name)
            if match:
                found.setdefault(match["id"], []).append(File(path, _number(match["start"])))
    return found


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # "1.2.3"
        return None


def _file_of(segment: ListedSegment, files: list[File]) -> Path | None:
    """Return the file of a segment: one that states its start, or else one without a start."""
    near = [(_distance(file.start, segment.start), file.path) for file in files if file.start is not None]
    if near and (nearest := min(near))[0] <= NEAR:
        return nearest[1]
    return next((file.path for file in files if file.start is None), None)


def _distance(stated: float, start: float) -> float:
    """Return by how many seconds the start in a name, in seconds or from 1000 on perhaps in milliseconds, differs."""
    return min(abs(stated - start), abs(stated / 1000 - start) if stated >= 1000 else math.inf)


def _warn_of_long_files(paths: list[Path], lengths: list[float]) -> None:
    """Warn where some of the files, evenly drawn, are longer than their segments: whole videos, or other segments."""
    longer: list[Path] = []
    drawn = range(0, len(paths), max(1, math.ceil(len(paths) / PROBED)))
    for i in drawn:
        try:
            seconds = probe(paths[i]).seconds
        except AudioError:  # told when it is read
            continue
        if seconds is not None and seconds > lengths[i] + LONGER:
            longer.append(paths[i])
    if longer:
        logger.warning(
            "%d of the %d files checked are longer than their segments, such as %s. Labels apply to the segments only: "
            "cut the files to their segments.", len(longer), len(drawn), longer[0],
        )  # fmt: skip


def _packed(classes: list[int]) -> npt.NDArray[np.uint8]:
    target = np.zeros(len(audioset_labels()), dtype=np.uint8)
    target[classes] = 1
    return np.packbits(target)
