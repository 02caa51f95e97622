"""One writer per format, for tags, events and embeddings, which differ in their `Layout` only.

A writer of text is a generator of its pieces, a binary one writes to a file. Results are written as they come; only
NPY, which is one array, keeps them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dymn.audio.clocks import Begin
from dymn.errors import ConfigError
from dymn.inference.formats import annotators
from dymn.inference.formats.layout import Column, Layout, R
from dymn.inference.formats.origin import Origin
from dymn.system.extras import needing
from dymn.system.files import csv_text, text_in


def text(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write lines for people. Failed recordings are left to the error messages."""
    for result in results:
        if result.error is None:
            lines = iter(layout.text(result, origin))
            yield next(lines)
            if result.partial:
                yield from (f"  {line}\n" for line in result.notes)
            yield from lines


def json_document(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write one JSON object: version, model, digest, parameters, and a list of recordings."""
    yield _dump(origin.to_dict())[:-1] + ', "recordings": ['
    before = "\n"
    for result in results:
        yield before
        yield from _object(_fields(result, layout, origin))
        before = ",\n"
    yield "\n]}\n"


def json_lines(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write a JSON object a line, one for each recording, each with version, model, digest and parameters."""
    for result in results:
        yield from _object(_fields(result, layout, origin) | origin.to_dict())
        yield "\n"


def csv_rows(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write a header and the rows, with one column for each value of a vector."""
    yield csv_text([[name for column in layout.columns for name in column.names or [column.name]]])
    for row in layout.rows_of(results, origin):
        yield csv_text(
            [[cell for value, column in zip(row, layout.columns, strict=True) for cell in _cells(value, column)]]
        )


def rttm(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write lines like those of NIST's Rich Transcription Time Marked files, which have ten fields with blanks between.

    The label stands where RTTM has the speaker and the score where it has the confidence; blanks in names become
    underscores.
    """
    for result in results:
        name = _field(result.name)
        for span in layout.spans(result) if result.error is None else ():
            place = f"{result.read_channel or 1} {span.start:.3f} {span.end - span.start:.3f}"
            yield f"SPEAKER {name} {place} <NA> <NA> {_field(span.label)} {span.score:.4f} <NA>\n"


def parquet(results: Iterable[R], layout: Layout[R], origin: Origin, file: BinaryIO) -> None:
    """Write rows reproducibly, a row group at a time; the schema's metadata has the origin under "dymn".

    Raises:
        MissingExtraError: if pyarrow is not installed.
    """
    arrow, arrow_parquet = require_parquet()
    made = origin.to_dict()
    for column in layout.columns:
        made |= {"names": column.names} if column.kind == "vector" else {}
    types = [(column.name, _arrow_type(arrow, column)) for column in layout.columns]
    schema = arrow.schema(types, metadata={"dymn": _dump(made)})
    rows = layout.rows_of(results, origin)
    with arrow_parquet.ParquetWriter(file, schema) as writer:
        while some := list(itertools.islice(rows, layout.row_group)):
            arrays = [
                _array(arrow, column, values)
                for column, values in zip(layout.columns, zip(*some, strict=True), strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def npy(results: Iterable[R], layout: Layout[R], origin: Origin, file: BinaryIO) -> None:
    """Write one array of records whose fields are the columns; `numpy.load` reads it without pickle."""
    kept = list(layout.rows_of(results, origin))
    kinds: list[Any] = []
    for i, column in enumerate(layout.columns):
        longest = max([len(row[i]) for row in kept], default=1) or 1 if column.kind == "text" else 0
        shape = (len(column.names),) if column.kind == "vector" else ()
        kinds.append(
            (column.name, {"text": f"U{longest}", "float64": "f8", "int32": "i4"}.get(column.kind, "f4"), shape)
        )
    np.lib.format.write_array(file, np.array(kept, dtype=kinds), allow_pickle=False)


Pieces = Callable[[Iterable[Any], Layout[Any], Origin], Iterator[str]]
ToFile = Callable[[Iterable[Any], Layout[Any], Origin, BinaryIO], None]

TEXT: dict[str, Pieces] = {
    "table": text,
    "text": text,
    "json": json_document,
    "jsonl": json_lines,
    "csv": csv_rows,
    "audacity": annotators.audacity,
    "raven": annotators.raven,
    "label-studio": annotators.label_studio,
    "rttm": rttm,
}
BINARY: dict[str, ToFile] = {"parquet": parquet, "npy": npy}
ROWS = ("json", "jsonl", "csv", "parquet", "npy")
"""Formats for programs, which hold each recording by itself."""
PASSAGES = ("audacity", "raven", "label-studio")
"""Formats of tags that have passages instead of windows."""


def marks_damage(layout: Layout[Any], name: str) -> bool:
    """Whether a format has a place for the notes on a recording that was read in part."""
    return name in ("table", "text", "json", "jsonl") or (layout.has_errors and name in ("csv", "parquet"))


def write_file(results: Iterable[R], layout: Layout[R], origin: Origin, name: str, file: BinaryIO) -> None:
    """Write results in a format to an open file, text as UTF-8."""
    if name in BINARY:
        BINARY[name](results, layout, origin, file)
        return
    with text_in(file) as stream:
        stream.writelines(TEXT[name](results, layout, origin))


def choose(layout: Layout[Any], name: str | None, output: Path | None) -> str:
    """Return the format that was named, or that of the output's ending.

    Raises:
        ConfigError: if the ending names no format, or a binary format would go to standard output.
        MissingExtraError: if the format needs what is not installed.
    """
    by_ending = layout.standard if output is None else layout.suffixes.get(output.suffix.lower())
    chosen = name or by_ending
    if chosen is None:
        endings = ", ".join(filter(None, layout.suffixes))
        raise ConfigError(f"--output {output} has an unknown extension. Allowed: {endings}; or give --format.")
    if chosen in BINARY and output is None:
        raise ConfigError(f"The format {chosen} is binary. Give a file with --output.")
    if chosen == "parquet":
        require_parquet()
    return chosen


def require_parquet() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet, or raise a `MissingExtraError`."""
    with needing("Writing Parquet", "parquet"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet


def _fields(result: R, layout: Layout[R], origin: Origin) -> dict[str, Any]:
    about: dict[str, Any] = {"file": result.name}
    about |= {"channel": result.channel.number} if result.channel else {}
    if result.error is not None:
        return about | {"error": str(result.error)}
    about |= {"seconds": round(result.seconds, 6)}
    begin = result.begin
    about |= {"clock": {"start": begin.at(0), "source": begin.source}} if begin else {}
    about |= {"partial": True} if result.partial else {}
    about |= {"notes": list(result.notes)} if result.notes else {}
    fields = layout.fields(result, origin.per_window)
    return about | (fields if begin is None else {name: _timed(value, begin) for name, value in fields.items()})


def _timed(value: Any, begin: Begin) -> Any:
    """Return JSON types with a "time" in each object that has a "start"; iterators stay iterators."""
    if isinstance(value, Iterator):
        return (_timed(item, begin) for item in value)
    if isinstance(value, list):
        return [_timed(item, begin) for item in value]
    if isinstance(value, dict) and "start" in value:
        return {"time": begin.at(value["start"])} | value
    return value


def _object(fields: dict[str, Any]) -> Iterator[str]:
    """Yield the pieces of a JSON object, of an iterator among its values one item at a time."""
    before = "{"
    for name, value in fields.items():
        yield f"{before}{_dump(name)}: "
        before = ", "
        if not isinstance(value, Iterator):
            yield _dump(value)
            continue
        yield "["
        for i, item in enumerate(value):
            yield (", " if i else "") + _dump(item)
        yield "]"
    yield "}"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cells(value: Any, column: Column) -> list[str]:
    if column.kind == "vector":
        return [format(number, column.number) for number in value.tolist()]
    return ["" if value is None else format(value, column.number)]


def _field(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip()) or "<NA>"


def _arrow_type(arrow: Any, column: Column) -> Any:
    if column.kind == "vector":
        return arrow.list_(arrow.float32(), len(column.names))
    types = {"text": arrow.string, "int32": arrow.int32, "float64": arrow.float64, "float32": arrow.float32}
    return types[column.kind]()


def _array(arrow: Any, column: Column, values: Sequence[Any]) -> Any:
    if column.kind == "vector":
        return arrow.FixedSizeListArray.from_arrays(
            arrow.array(np.concatenate(values), arrow.float32()), len(column.names)
        )
    return arrow.array(values, _arrow_type(arrow, column))
