"""Tables of clips, with a row for each clip or for each label of a clip.

Columns are identified by their names, in any case; columns with other names are ignored. Columns that suggest an effect
on training that dymn does not support are rejected.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dymn.audio.annotations import Annotation
from dymn.audio.reading import SUFFIXES as AUDIO_SUFFIXES
from dymn.data.catalog import Catalog
from dymn.data.readers import csv_rows, multi_hot, number, split_name
from dymn.data.stores import FileStore, Store, inside
from dymn.errors import DataError
from dymn.weights.labels import audioset_labels

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
DELIMITERS = (",", ";", "\t")
PATH_COLUMNS = ("path", "filename", "file", "fname", "filepath", "audio", "audiopath", "audiofile")
LABEL_COLUMNS = ("labels", "label", "category", "categories", "class", "classes", "tags", "tag", "eventlabel")
START_COLUMNS, END_COLUMNS = ("start", "onset", "starttime", "startseconds"), ("end", "offset", "endtime", "endseconds")
REFUSED = {
    "weight": "Clips cannot be weighted",
    "sampleweight": "Clips cannot be weighted",
    "confidence": "Confidences are not used; write soft labels as dog:0.7",
    "probability": "Probabilities in a column are not used; write soft labels as dog:0.7",
}
SOFT = re.compile(r"(?P<name>.+):(?P<value>[01]?\.\d+|[01](?:\.0*)?)")


class Columns(NamedTuple):
    """The positions of the columns in a row."""

    path: int
    label: int
    split: int | None
    fold: int | None
    start: int | None
    end: int | None


class Entry(NamedTuple):
    """A clip: its file, the part of it in seconds, its labels with their targets, split and fold."""

    key: str
    path: Path
    span: tuple[float, float]
    targets: dict[str, float]
    split: str
    fold: int


def read_csv(
    manifest: Path,
    *,
    root: str | Path | None = None,
    labels: Sequence[str] | None = None,
    separator: str | None = None,
    ignore: Sequence[str] = (),
) -> tuple[Catalog, Store]:
    """A manifest: a table with the columns path and labels and, if wanted, split, fold, start and end.

    Values are separated by commas, semicolons or tabs. A clip with several labels has them in one row, or a row for
    each. A label with a probability, `dog:0.7`, is a soft label. With `start` and `end`, in seconds, a clip is that
    part of its file.

    Args:
        manifest: the CSV file, in UTF-8.
        root: the folder that relative paths start from; None for that of the manifest.
        labels: names of the classes in the wanted order; None for those found, sorted.
        separator: between the labels of a row; None for ";" if any row has one. Else it is ",", but a comma within a
            known label, such as AudioSet's "Child speech, kid speaking", belongs to it.
        ignore: columns that are ignored, although they could change what is learned.

    Raises:
        DataError: if a column is missing, or is not used; a relative path leads outside `root`; a class is unknown; or
            a table can be read in two ways.
    """
    header, rows = _table(manifest)
    columns = _columns(header, manifest, ignore)
    folder = Path(root) if root is not None else manifest.parent
    cells = [row[columns.label] for row in rows]
    paths = [row[columns.path].strip() for row in rows]
    targets_of_rows = _soft(_separated(cells, separator, labels, manifest), labels, manifest)
    entries: dict[str, Entry] = {}
    for row, path, targets in zip(rows, paths, targets_of_rows, strict=True):
        entry = _entry(row, path, targets, columns, folder, manifest)
        entries[entry.key] = _joined(entries[entry.key], entry, manifest) if entry.key in entries else entry
    clips = list(entries.values())
    if columns.split is not None and (without := sum(not clip.split for clip in clips)):
        logger.warning("%s: %d of %d clips have no split; no split contains them.", manifest, without, len(clips))
    classes = tuple(labels) if labels is not None else tuple(sorted({name for clip in clips for name in clip.targets}))
    return Catalog(
        keys=tuple(clip.key for clip in clips),
        labels=classes,
        targets=multi_hot([clip.targets for clip in clips], classes, manifest),
        splits=tuple(clip.split for clip in clips) if columns.split is not None else (),
        folds=tuple(clip.fold for clip in clips) if columns.fold is not None else (),
        spans=np.array([clip.span for clip in clips]) if columns.start is not None or columns.end is not None else None,
    ), FileStore([clip.path for clip in clips])


def read_events(manifest: Path) -> dict[Path, list[Annotation]]:
    """Return the annotated events of each recording: a table with the columns path, start, end and label.

    A row without start, end and label names a recording without any event. Several labels are separated by ";".

    Raises:
        DataError: if a column or a value is missing, or a recording does not exist.
    """
    header, rows = _table(manifest)
    columns = _columns(header, manifest, [name for name in header if _plain(name) in REFUSED])
    start, end = columns.start, columns.end
    if start is None or end is None:
        raise DataError(
            f"{manifest} needs a column {' or '.join(START_COLUMNS if start is None else END_COLUMNS)}; it has "
            f"{', '.join(header)}."
        )
    found: dict[Path, set[Annotation]] = {}
    for row in rows:
        name, file = _file(row[columns.path].strip(), manifest.parent)
        if not file.is_file():
            raise DataError(f"{manifest}: the recording {name!r} does not exist; paths start from the table's folder.")
        events, labels = found.setdefault(file, set()), _split(row[columns.label], ";")
        if not labels and not row[start].strip() and not row[end].strip():
            continue
        span = _seconds(row, start, math.nan, manifest), _seconds(row, end, math.nan, manifest)
        if not labels or not span[0] < span[1]:
            raise DataError(
                f"{manifest}: an event of {name!r} from {row[start]!r} to {row[end]!r} with the label "
                f"{row[columns.label]!r}; it needs a label, and an end after its start."
            )
        events.update(Annotation(file, *span, label) for label in labels)
    return {file: sorted(events) for file, events in found.items()}


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return a table's header and rows, using the delimiter that gives the header the columns a manifest needs."""
    for delimiter in DELIMITERS:
        header, *rows = csv_rows(path, delimiter) or [[]]
        if _place(header, PATH_COLUMNS) is not None and _place(header, LABEL_COLUMNS) is not None:
            break
    else:
        found = max((csv_rows(path, delimiter) or [[]] for delimiter in DELIMITERS), key=lambda rows: len(rows[0]))[0]
        lacking = PATH_COLUMNS if _place(found, PATH_COLUMNS) is None else LABEL_COLUMNS
        raise DataError(f"{path} needs a column {' or '.join(lacking)}; it has {', '.join(found) or 'no rows'}.")
    numbered = [(line, row) for line, row in enumerate(rows, start=2) if any(value.strip() for value in row)]
    if not numbered:
        raise DataError(f"{path} is empty; it needs a header and at least one row.")
    for line, row in numbered:
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {line}: {len(row)} values where the header has {len(header)}. Put values that contain "
                f"{delimiter!r} in quotes."
            )
    return header, [row for _, row in numbered]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _place(header: Sequence[str], names: Iterable[str]) -> int | None:
    """Return the number of the first of these columns that there is."""
    found = [_plain(name) for name in header]
    return next((found.index(name) for name in names if name in found), None)


def _columns(header: Sequence[str], where: Path, ignore: Sequence[str]) -> Columns:
    ignored = {_plain(name) for name in ignore}
    seen = ["" if _plain(name) in ignored else name for name in header]
    for name in seen:
        if _plain(name) in REFUSED:
            raise DataError(
                f"{where} has a column {name!r}. {REFUSED[_plain(name)]}. Remove it, or for `dymn "
                f"train` give --set data.options.ignore=['{name}']."
            )
    path, label = _place(header, PATH_COLUMNS), _place(header, LABEL_COLUMNS)
    assert path is not None and label is not None  # as `_table` has seen
    split, fold = _place(seen, ("split", "subset", "partition")), _place(seen, ("fold",))
    return Columns(path, label, split, fold, _place(seen, START_COLUMNS), _place(seen, END_COLUMNS))


def _entry(
    row: Sequence[str], path: str, targets: dict[str, float], columns: Columns, folder: Path, where: Path
) -> Entry:
    start = _seconds(row, columns.start, 0.0, where)
    end = _seconds(row, columns.end, math.inf, where)
    if not start < end:
        raise DataError(
            f"{where}: the part of {path!r} is from {start:g} to {end:g} s; the end must be after the start."
        )
    key, file = _file(path, folder)
    if (start, end) != (0.0, math.inf):
        key = f"{key}#{start:.15g}-{end:.15g}" if end < math.inf else f"{key}#{start:.15g}-"
    split = "" if columns.split is None else split_name(row[columns.split], where)
    fold = 0 if columns.fold is None else number(row[columns.fold], where)
    return Entry(key, file, (start, end), targets, split, fold)


def _file(path: str, folder: Path) -> tuple[str, Path]:
    """Return the name of a clip, the same for all spellings of its path, and its file.

    Only an absolute path may lead outside the folder.
    """
    if not os.path.isabs(path):
        file = inside(folder, path)
        return file.relative_to(folder).as_posix(), file
    file, home = Path(os.path.normpath(path)), Path(os.path.abspath(folder))
    if file.is_relative_to(home):
        return file.relative_to(home).as_posix(), file
    if file.suffix.lower() not in AUDIO_SUFFIXES:
        raise DataError(f"{path!r} is outside the folder {folder} and does not have the extension of a recording.")
    return file.as_posix(), file


def _seconds(row: Sequence[str], column: int | None, default: float, where: Path) -> float:
    if column is None or not row[column].strip():
        return default
    try:
        seconds = float(row[column])
    except ValueError as error:
        raise DataError(f"{where}: {row[column]!r} is not a time in seconds.") from error
    if not 0 <= seconds < math.inf:
        raise DataError(f"{where}: {row[column]!r} is not a time in seconds of at least 0.")
    return seconds


def _joined(first: Entry, more: Entry, where: Path) -> Entry:
    """Return a clip with the labels of two rows."""
    if set(more.targets) <= set(first.targets):
        raise DataError(
            f"{where} contains {first.key!r} twice; every clip needs a unique name, or each row another label."
        )
    if (first.split, first.fold) != (more.split, more.fold):
        raise DataError(f"{where} has {first.key!r} in two splits or folds.")
    return first._replace(targets=first.targets | more.targets)


def _separated(
    cells: Sequence[str], separator: str | None, labels: Sequence[str] | None, where: Path
) -> list[list[str]]:
    """Return the labels of each row (see `read_csv`, separator)."""
    if separator is not None or any(";" in cell for cell in cells):
        return [_split(cell, separator or ";") for cell in cells]
    known = set(audioset_labels() if labels is None else labels)
    found = {cell: _known(cell, known) for cell in set(cells)}
    used = Counter(name for names in found.values() for name in set(names))
    for cell, names in found.items():
        if ", " in cell and len(names) > 1 and not known.issuperset(names) and all(used[name] == 1 for name in names):
            raise DataError(
                f"{where} has the label {cell!r}, which could be one label or {len(names)}. Separate labels by ';', "
                "or set the separator (--separator, or for `dymn train` --set data.options.separator=…): ';' if it is "
                "one label, ',' if it is several."
            )
    return [found[cell] for cell in cells]


def _split(cell: str, separator: str) -> list[str]:
    return [name.strip() for name in cell.split(separator) if name.strip()]


def _known(cell: str, known: set[str]) -> list[str]:
    """Return the labels between the commas of a row; a known label, such as "Child speech, kid speaking", is one."""
    parts, names = cell.split(","), list[str]()
    while parts:
        length = next((n for n in range(len(parts), 1, -1) if ",".join(parts[:n]).strip() in known), 1)
        names.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return [name for name in names if name]


def _soft(rows: Sequence[list[str]], labels: Sequence[str] | None, where: Path) -> list[dict[str, float]]:
    """Return the target of each label of each row: that which it brings, `dog:0.7`, or 1."""
    found = {name: None if name in (labels or ()) else SOFT.fullmatch(name) for row in rows for name in row}
    soft, hard = (
        next((name for name, match in found.items() if (match is not None) is wanted), None) for wanted in (True, False)
    )
    if soft is None:
        return [dict.fromkeys(row, 1.0) for row in rows]
    if hard is not None:
        raise DataError(
            f"{where} has labels with a probability, such as {soft!r}, and labels without, such as {hard!r}. Add a "
            "probability to all of them."
        )
    values = {
        name: (match["name"].strip(), float(match["value"])) for name, match in found.items() if match is not None
    }
    above = next((name for name, (_, value) in values.items() if value > 1), None)
    if above is not None:
        raise DataError(f"{where}: {above!r} has a probability above 1.")
    return [dict(values[name] for name in row) for row in rows]
