"""How tags are written: a table to read, JSON, JSON lines, CSV, labels for Audacity, and Parquet.

Each format of text is a function that turns recordings into pieces of it as they come, so that nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dymn.errors import ConfigError, visible
from dymn.inference.formats import parquet
from dymn.system.files import csv_text, text_in

if TYPE_CHECKING:
    from dymn.inference.files import Recording
    from dymn.inference.selection import Tag, WindowTags

BAR_LENGTH = 20
ROW_GROUP = 2**15
CSV_COLUMNS = ("file", "start", "end", "label", "score", "error")


@dataclass(frozen=True)
class Run:
    """What made the tags: the version of dymn, the model, the SHA-256 of its file, and the settings.

    `per_window` asks for a timeline beside the answer for each recording; `plain` for a table in ASCII.
    """

    version: str
    model: str
    digest: str
    parameters: dict[str, Any]
    per_window: bool = False
    plain: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON types."""
        parameters = self.parameters | {"per_window": self.per_window}
        return {"version": self.version, "model": self.model, "digest": self.digest, "parameters": parameters}


def table(recordings: Iterable[Recording], run: Run) -> Iterator[str]:
    """Write for people: a bar for each label, and a line for each window. Failed recordings are left to the error messages."""
    for recording in recordings:
        if recording.error is not None:
            continue
        yield f"{visible(recording.name)}  ({clock(recording.seconds)})\n"
        for tag in recording.tags:
            yield f"  {tag.score:.3f}  {bar(tag.score, run.plain)}  {tag.label}\n"
        if not recording.tags:
            yield "  No label reaches the threshold.\n"
        for window in recording.timeline if run.per_window else ():
            dash = "-" if run.plain else "–"
            labels = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in window.tags)
            yield f"  {clock(window.start)} {dash} {clock(window.end)}  {labels or dash}\n"
        yield "\n"


def json_document(recordings: Iterable[Recording], run: Run) -> Iterator[str]:
    """Write one JSON object: version, model, digest, parameters, and a list of recordings."""
    yield _dump(run.to_dict())[:-1] + ', "recordings": ['
    before = "\n"
    for recording in recordings:
        yield before
        yield from _json_recording(recording, run)
        before = ",\n"
    yield "\n]}\n"


def json_lines(recordings: Iterable[Recording], run: Run) -> Iterator[str]:
    """Write a JSON object a line, one for each recording, each with version, model, digest and parameters."""
    origin = _dump(run.to_dict())[1:]
    for recording in recordings:
        yield from _json_recording(recording, run, end=f", {origin}\n")


def csv_rows(recordings: Iterable[Recording], run: Run) -> Iterator[str]:
    """Write a row for each label of each recording, or of each window; a failed recording has a row with its error."""
    yield csv_text([CSV_COLUMNS])
    for recording in recordings:
        if recording.error is not None:
            yield csv_text([(recording.name, "", "", "", "", str(recording.error))])
        for tag in _shown_tags(recording, run):
            yield csv_text([(recording.name, f"{tag.start:.3f}", f"{tag.end:.3f}", tag.label, f"{tag.score:.6f}", "")])


def audacity_labels(recordings: Iterable[Recording], run: Run) -> Iterator[str]:
    """Write a label track: start, end and label with tabs between; windows that touch and share a label are one stretch."""
    for recording in recordings:
        for tag in joined(recording.timeline):
            yield f"{tag.start:.6f}\t{tag.end:.6f}\t{tag.label}\n"


def write_parquet(recordings: Iterable[Recording], run: Run, file: BinaryIO) -> None:
    """Write the rows of `csv_rows`, scores as float32, as Parquet in row groups; the schema's metadata has the run under "dymn".

    Raises:
        MissingExtraError: if pyarrow is not installed.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for recording in recordings:
            if recording.error is not None:
                yield (recording.name, None, None, None, None, str(recording.error))
            for tag in _shown_tags(recording, run):
                yield (recording.name, tag.start, tag.end, tag.label, tag.score, None)

    def fields(arrow: Any) -> list[tuple[str, Any]]:
        text, time = arrow.string(), arrow.float64()
        return list(zip(CSV_COLUMNS, (text, time, time, text, arrow.float32(), text), strict=True))

    def arrays(arrow: Any, group: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [arrow.array([row[i] for row in group], kind) for i, (_, kind) in enumerate(fields(arrow))]

    parquet.write(file, rows(), fields, arrays, run.to_dict(), ROW_GROUP)


FORMATS: dict[str, Callable[[Iterable[Recording], Run], Iterator[str]]] = {
    "table": table,
    "json": json_document,
    "jsonl": json_lines,
    "csv": csv_rows,
    "audacity": audacity_labels,
}
BINARY: dict[str, Callable[[Iterable[Recording], Run, BinaryIO], None]] = {"parquet": write_parquet}
"""Formats that are no text."""
SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


ROWS = ("json", "jsonl", "csv", "parquet")
"""Formats that tell of each recording by itself, failed ones too."""


def choose(name: str | None, output: Path | None) -> str:
    """Return the format that was named, or that of the output's ending, or a table.

    Raises:
        ConfigError: if a binary format would go to standard output.
        MissingExtraError: if the format needs what is not installed.
    """
    chosen = name or SUFFIXES.get(output.suffix.lower() if output else "", "table")
    if chosen in BINARY:
        if output is None:
            raise ConfigError(f"The format {chosen} is binary. Give a file as --output to write to.")
        parquet.require()
    return chosen


def write_file(run: Run, name: str, recordings: Iterable[Recording], file: BinaryIO) -> None:
    """Write recordings in a format to an open file, text as UTF-8."""
    if name in BINARY:
        BINARY[name](recordings, run, file)
        return
    with text_in(file) as text:
        text.writelines(FORMATS[name](recordings, run))


def joined(timeline: Sequence[WindowTags]) -> list[Tag]:
    """Join the tags of windows that touch or overlap and share a label, with the best score; in the order of their start."""
    done: list[Tag] = []
    current: dict[str, Tag] = {}
    for window in timeline:
        for tag in window.tags:
            before = current.get(tag.label)
            if before is not None and window.start <= before.end:
                current[tag.label] = before._replace(end=window.end, score=max(before.score, tag.score))
                continue
            if before is not None:
                done.append(before)
            current[tag.label] = tag
    return sorted([*done, *current.values()], key=lambda tag: (tag.start, -tag.score))


def clock(seconds: float) -> str:
    """Return a time such as 5.0 s as text such as 0:05.0, with hours where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def _shown_tags(recording: Recording, run: Run) -> Iterator[Tag]:
    if not run.per_window:
        yield from recording.tags
        return
    for window in recording.timeline:
        yield from window.tags


def _json_recording(recording: Recording, run: Run, end: str = "}") -> Iterator[str]:
    """Yield the pieces of one JSON object; the last one is `end`."""
    if recording.error is not None:
        yield _dump({"file": recording.name, "error": str(recording.error)})[:-1]
    else:
        tags = [_tag_dict(tag) | {"start": round(tag.start, 6), "end": round(tag.end, 6)} for tag in recording.tags]
        yield _dump({"file": recording.name, "seconds": round(recording.seconds, 6), "tags": tags})[:-1]
        if run.per_window:
            before = ', "windows": ['
            for window in recording.timeline:
                tags = [_tag_dict(tag) for tag in window.tags]
                yield before + _dump({"start": round(window.start, 6), "end": round(window.end, 6), "tags": tags})
                before = ", "
            yield "]"
    yield end


def _tag_dict(tag: Tag) -> dict[str, Any]:
    return {"label": tag.label, "score": round(tag.score, 6)}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def bar(score: float, plain: bool = False) -> str:
    """Return a probability as a bar of up to 20 letters, in ASCII if `plain`."""
    if plain:
        return ("#" * round(score * BAR_LENGTH)).ljust(BAR_LENGTH)
    whole, eighths = divmod(round(score * BAR_LENGTH * 8), 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[eighths] * (eighths > 0)).ljust(BAR_LENGTH)
