"""Annotations of recordings by Raven and Audacity: passages with a label.

Raven's selection tables have a header and columns separated by tabs; Audacity's label tracks have start, end and label
in each line. Times have a decimal point or comma. If neither names the recording, it is the one of the same name in the
same folder.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dymn.audio.listing import SUFFIXES
from dymn.audio.sources import display
from dymn.errors import DataError

logger = logging.getLogger(__name__)

MAX_TABLE = 2**28
"""The most bytes of a table."""
BEGIN, END, OFFSET = "begin time (s)", "end time (s)", "file offset (s)"
FILES = ("begin path", "begin file")
LABELS = ("annotation", "label", "species", "common name", "tag", "call type", "class", "sound type", "type", "id")
"""The columns of a selection table that may hold its labels; the first that there is counts."""


class Annotation(NamedTuple):
    """A passage of a recording, in seconds from the start of its file, with the label that somebody gave it."""

    recording: Path
    start: float
    end: float
    label: str


def read_annotations(
    path: str | Path, *, root: str | Path | None = None, label_column: str | None = None
) -> list[Annotation]:
    """Return the annotations of a table, or of all tables below a folder: by recording, then by time, each once.

    Args:
        path: a selection table of Raven or a label track of Audacity, or a folder with such files (.txt) and perhaps
            others. `street.txt`, `street.Table.1.selections.txt` and `street.labels.txt` belong to `street.wav`, unless
            the table names its recordings.
        root: the folder of the recordings; None for that of each table.
        label_column: the column of labels in selection tables; None for the first of `LABELS`.

    Raises:
        DataError: if there is no table, one cannot be read, a row has no label or no length, or a recording is missing
            or not clear. The message names the table and the row.

    Example:
        >>> read_annotations("street.txt")[0]  # doctest: +SKIP
        Annotation(recording=PosixPath('street.wav'), start=1.2, end=3.0, label='Dog')
    """
    found = read_annotated(path, root=root, label_column=label_column)
    return [annotation for recording in sorted(found) for annotation in found[recording]]


def read_annotated(
    path: str | Path, *, root: str | Path | None = None, label_column: str | None = None
) -> dict[Path, list[Annotation]]:
    """Return the annotations of each recording, and none for a recording whose selection table has no rows.

    Args, raised errors: those of `read_annotations`.
    """
    path = Path(path)
    found: dict[Path, set[Annotation]] = {}
    for table in [path] if path.is_file() else tables_below(path):
        folder = Path(root) if root is not None else table.parent
        rows = list(_table(table, folder, label_column))
        if not rows and (silent := _Recordings(folder).of(table)):
            found.setdefault(silent, set())
        for annotation in rows:
            found.setdefault(annotation.recording, set()).add(annotation)
    if not any(found.values()):
        raise DataError(f"{path} contains no annotation. Give a Raven selection table or an Audacity label track.")
    return {recording: sorted(annotations) for recording, annotations in found.items()}


def warn_late(recording: Path, seconds: float, annotations: Sequence[Annotation]) -> int:
    """Return how many annotations begin after the end of their recording, and log a warning if any do."""
    late = [one for one in annotations if one.start >= seconds]
    if late:
        logger.warning(
            "%s ends after %.2f s: %d of its annotations begin after the end and are left out, such as %r at %g s. "
            "Check that they belong to this recording, and that their times are in seconds.",
            display(recording), seconds, len(late), late[0].label, late[0].start,
        )  # fmt: skip
    return len(late)


def tables_below(folder: Path) -> list[Path]:
    """Return the tables of annotations below a folder, sorted; other text files are left out.

    Raises:
        DataError: if there is no such folder, or a text file with the name of a recording is not a table.
    """
    if not folder.is_dir():
        raise DataError(f"There is neither a table nor a folder at {folder}.")
    found = []
    for path in sorted(folder.rglob("*.txt")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        if is_table(path):
            found.append(path)
        elif path.stat().st_size and any(path.with_suffix(ending).is_file() for ending in SUFFIXES):
            raise DataError(
                f"{path} is in the same folder as a recording of the same name, but is neither a Raven selection "
                "table nor an Audacity label track. Correct or remove it."
            )
    return found


def is_table(path: Path) -> bool:
    """Whether a file begins like a selection table or a label track."""
    try:
        with path.open("rb") as file:
            line = file.readline(2**16).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    cells = line.strip("\r\n").split("\t")
    return BEGIN in map(_plain, cells) or (
        len(cells) in (2, 3) and not any(math.isnan(_number(cell)) for cell in cells[:2])
    )


def _table(path: Path, folder: Path, label_column: str | None) -> Iterator[Annotation]:
    lines = _lines(path)
    header = [_plain(name) for name in lines[0][1].split("\t")] if lines else []
    if BEGIN in header:
        yield from _selections(path, header, lines[1:], folder, label_column)
    elif lines:
        yield from _labels(path, lines, folder)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a file that are not blank, with their numbers."""
    try:
        if (size := path.stat().st_size) > MAX_TABLE:
            raise DataError(f"{path} has {size:,} bytes; a table has at most {MAX_TABLE:,}. Split it.")
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}. It must be UTF-8 text.") from error
    return [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), 1) if line.strip()]


def _selections(
    path: Path, header: Sequence[str], lines: Sequence[tuple[int, str]], folder: Path, label_column: str | None
) -> Iterator[Annotation]:
    """Yield the rows of a selection table of Raven, which has one for each view of a selection."""
    wanted = LABELS if label_column is None else (_plain(label_column),)
    label = next((name for name in wanted if name in header), None)
    if END not in header or label is None:
        needed = "End Time (s)" if END not in header else label_column or "Annotation, Species or Common Name"
        raise DataError(
            f"{path} needs a column {needed}; it has {', '.join(header)}. Rename the column of labels, or specify it "
            "for `dymn train` with --set data.options.label_column=NAME."
        )
    rows = [_row(path, number, line, header) for number, line in lines]
    named = next((name for name in FILES if name in header and all(row[name] for _, row in rows)), None)
    if named is not None and OFFSET not in header and len({row[named] for _, row in rows}) > 1:
        raise DataError(
            f"{path} names several recordings and has no column File Offset (s), so the positions in them are "
            "unknown. Add that measurement in Raven, and save the table again."
        )
    files = _Recordings(folder)
    for number, row in rows:
        begin, end = (_seconds(path, number, row[name]) for name in (BEGIN, END))
        start = _seconds(path, number, row[OFFSET]) if named is not None and row.get(OFFSET) else begin
        recording = files.beside(path) if named is None else files.named(row[named], path, number)
        yield _annotation(path, number, recording, start, start + end - begin, row[label])


def _row(path: Path, number: int, line: str, header: Sequence[str]) -> tuple[int, Mapping[str, str]]:
    cells = [cell.strip().removeprefix('"').removesuffix('"') for cell in line.split("\t")]
    if len(cells) > len(header):
        raise DataError(f"{path}, row {number}: {len(cells)} values where the header has {len(header)}.")
    return number, dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))


def _labels(path: Path, lines: Sequence[tuple[int, str]], folder: Path) -> Iterator[Annotation]:
    """Yield the rows of a label track of Audacity; a line that begins with a backslash holds frequencies."""
    recording = _Recordings(folder).beside(path)
    for number, line in lines:
        if line.startswith("\\"):
            continue
        start, end, label = [*line.split("\t", 2), "", ""][:3]
        yield _annotation(path, number, recording, _seconds(path, number, start), _seconds(path, number, end), label)


def _annotation(path: Path, number: int, recording: Path, start: float, end: float, label: str) -> Annotation:
    if not label.strip():
        raise DataError(f"{path}, row {number}: it has no label. Name the sound, or remove the row.")
    if not start < end:
        raise DataError(
            f"{path}, row {number}: {label!r} is from {start:g} to {end:g} s; the end must be after the start. Mark "
            "a segment, not a point in time."
        )
    return Annotation(recording, start, end, label.strip())


class _Recordings:
    """The recordings of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of_stem: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix.lower() in SUFFIXES and path.is_file():
                self._of_stem.setdefault(path.stem.casefold(), []).append(path)

    def beside(self, table: Path) -> Path:
        """Return the recording of a table that names none; raise a DataError unless there is exactly one."""
        if found := self.of(table):
            return found
        raise DataError(
            f"{table} does not name a recording, and {self._folder} has none of the same name, such as "
            f"{table.stem}.wav. Put them into one folder, or specify the folder of the recordings for `dymn train` "
            "with --set data.options.root=FOLDER."
        )

    def of(self, table: Path) -> Path | None:
        """Return the recording whose stem is that of a table up to one of its dots, or None; several are an error."""
        stem = table.stem
        while stem:
            found = self._of_stem.get(stem.casefold(), [])
            if len(found) > 1:
                raise DataError(
                    f"{table} could belong to {' or '.join(path.name for path in found)}. Remove one of them."
                )
            if found:
                return found[0]
            stem = stem.rpartition(".")[0]
        return None

    def named(self, name: str, table: Path, number: int) -> Path:
        """Return the recording that a row names: its path as given, or below the folder, or its name in the folder."""
        parts = PurePosixPath(name.replace("\\", "/"))
        tries = [Path(name)] if os.path.isabs(name) else [] if ".." in parts.parts else [self._folder / parts]
        for path in (*tries, self._folder / parts.name):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                return path
        raise DataError(
            f"{table}, row {number}: the recording {name!r} does not exist, and there is none of that name in "
            f"{self._folder}. Put it there, or specify the folder of the recordings for `dymn train` with --set "
            "data.options.root=FOLDER."
        )


def _plain(name: str) -> str:
    return name.strip().strip('"').lower()


def _number(text: str) -> float:
    """Return a number with a decimal point or, as tabs separate the columns, a decimal comma; NaN if it is none."""
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _seconds(path: Path, number: int, text: str) -> float:
    value = _number(text)
    if not value >= 0:
        raise DataError(f"{path}, row {number}: {text!r:.40} is not a time in seconds of at least 0.")
    return value
