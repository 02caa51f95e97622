"""Published tables of teacher logits (Sec. IV-B): their files, their download, and the clip of each row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.data.pickles import NPY_FAILURES, read_header, read_index
from dymn.data.readers import number, table
from dymn.errors import DataError, WeightsError
from dymn.system.files import open_regular, read_lines
from dymn.weights.download import fetch
from dymn.weights.files import DownloadProgress, hash_file
from dymn.weights.registry import TEACHER_FILES

CHUNK = 2**24  # bytes that are read at once
AUDIOSET_NAME = re.compile(r"Y([\w-]{11})\.\w+", re.ASCII)  # of a clip in the HDF5 files: Y, its YouTube id, an ending


class Rows(NamedTuple):
    """Which clip each row of an array belongs to."""

    keys: tuple[str, ...]
    rows: npt.NDArray[np.int64] | None  # row of each key; None where the keys are in the order of the rows
    skipped: dict[str, int]  # what the index or the array has that is not used, counted


class LogitsFile(NamedTuple):
    """An .npy file of logits: its rows and columns, the type of its numbers, and where they begin."""

    rows: int
    columns: int
    dtype: str
    offset: int


def find(name: str | Path, beside: Path, progress: DownloadProgress | None = None) -> Path:
    """Return the path of a table's file.

    It is `name` itself, or the file of this name in the folder `beside`, or one of the PaSST ensemble's published files
    (`dymn.weights.registry.TEACHER_FILES`), which is downloaded into the cache if need be.

    Raises:
        DataError: if there is no such file, or it cannot be downloaded; the message states where to get it.
    """
    for path in (Path(name), beside / name):
        if path.exists():
            return path
    published = TEACHER_FILES.get(Path(name).name)
    if published is None:
        raise DataError(
            f"There is neither a teacher's file {name} nor {beside / name}. Create a table with dymn teach, or use "
            f"the files published by EfficientAT, which are downloaded: {', '.join(TEACHER_FILES)}."
        )
    try:
        return fetch(published, lambda file: _check(file.path), progress, hash_file).path
    except WeightsError as error:
        raise DataError(f"{error} Or put it into the dataset's folder.") from error


def _check(path: Path) -> None:
    """Reject a downloaded file that is neither an array of logits nor an index."""
    try:
        with open_regular(path) as file:
            is_array = file.read(6) == b"\x93NUMPY"
        if is_array:
            read_array(path)
        else:
            read_index(path)
    except (DataError, OSError) as error:
        raise WeightsError(str(error)) from error


def read_array(path: Path) -> LogitsFile:
    """Return the header of an .npy file of logits [clips, classes].

    Raises:
        DataError: if it is no such file.
    """
    try:
        with open_regular(path) as file:
            shape, is_fortran, kind = read_header(file)
            offset, size = file.tell(), file.seek(0, 2)
    except (OSError, *NPY_FAILURES) as error:
        raise DataError(f"{path} is not a readable .npy file of numbers: {error}.") from error
    numbers = kind.kind == "f" and kind.itemsize <= 8 and not is_fortran
    if not numbers or len(shape) != 2 or min(shape) < 1 or size - offset < shape[0] * shape[1] * kind.itemsize:
        raise DataError(
            f"{path} must be an .npy file of logits [clips, classes]; it contains {kind!s:.40} {shape!s:.80}."
        )
    return LogitsFile(shape[0], shape[1], kind.str, offset)


def rows_not_finite(path: Path, array: LogitsFile) -> npt.NDArray[np.int64]:
    """Return the rows of an .npy file of logits that contain NaN, or infinity in float32, in order."""
    logits = np.memmap(path, array.dtype, "r", array.offset, (array.rows, array.columns))
    step = max(1, CHUNK // (array.columns * logits.itemsize))
    parts = []
    for start in range(0, array.rows, step):
        with np.errstate(over="ignore"):
            chunk = logits[start : start + step].astype(np.float32, copy=False)
        parts.append(np.isfinite(chunk).all(axis=1))
    return np.flatnonzero(~np.concatenate(parts))


def without_rows(found: Rows, left_out: npt.NDArray[np.int64], why: str) -> Rows:
    """Return the rows without some of them, counted as `why`."""
    rows = np.arange(len(found.keys)) if found.rows is None else found.rows
    kept = ~np.isin(rows, left_out)
    if kept.all():
        return found
    keys = tuple(key for key, is_kept in zip(found.keys, kept, strict=True) if is_kept)
    return Rows(keys, rows[kept], found.skipped | {why: int((~kept).sum())})


def read_rows(index: Path, n_rows: int) -> Rows:
    """Return the clips of an array's rows out of its index.

    Args:
        index: a .pkl (dict name → row, read without executing it), or a .csv with a column key and one row for each of
            the array's in its order, or with a column row. Rows may lack a name, several names may share a row, and a
            row of -1 is none: these are counted. Names such as "Y<id>.mp3" are YouTube ids, as in AudioSet's files.
        n_rows: of the array.

    Raises:
        DataError: if the file cannot be read, or does not belong to the array.
    """
    found = _index_csv(index, n_rows) if index.suffix == ".csv" else read_index(index)
    named = {_plain(name): row for name, row in found.items() if row >= 0}
    beyond = [name for name, row in named.items() if row >= n_rows]
    if beyond or not named:
        what = f"{beyond[0]!r} in row {named[beyond[0]]}" if beyond else "no row"
        raise DataError(
            f"{index} names {what}, but the array has {n_rows} rows, from 0. The two do not belong together."
        )
    keys = tuple(sorted(named, key=named.__getitem__))
    rows = np.array([named[key] for key in keys], dtype=np.int64)
    used = len(np.unique(rows))
    skipped = {
        "rows without a name": n_rows - used,
        "names that share a row": len(rows) - used,
        "names without a row": sum(row < 0 for row in found.values()),
        "names given twice": sum(row >= 0 for row in found.values()) - len(named),
    }
    in_order = used == len(rows) == n_rows
    return Rows(keys, None if in_order else rows, {what: n for what, n in skipped.items() if n})


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names of a table's columns, one per line; raise a DataError if the file cannot be read."""
    try:
        return tuple(read_lines(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _plain(name: str) -> str:
    audioset = AUDIOSET_NAME.fullmatch(name)
    return audioset[1] if audioset else name


def _index_csv(path: Path, n_rows: int) -> Mapping[str, int]:
    rows = table(path)
    if "key" not in rows[0]:
        raise DataError(f"{path} needs a column key; it has {', '.join(rows[0])}.")
    index = {row["key"]: number(row["row"], path) if "row" in row else i for i, row in enumerate(rows)}
    if len(index) != len(rows):
        raise DataError(f"{path} names a clip twice.")
    if "row" not in rows[0] and len(rows) != n_rows:
        raise DataError(
            f"{path} must name every one of the {n_rows} rows once, in their order; it names {len(rows)}. If rows "
            "are left out, add a column row."
        )
    return index
