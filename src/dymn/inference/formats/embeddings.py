"""How embeddings are written: NumPy, CSV, Parquet; in each the name of the recording and the place stand in the row of the vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dymn.errors import ConfigError
from dymn.inference.embedding import Embedding
from dymn.inference.formats import parquet
from dymn.runtime.backend import Floats
from dymn.system.files import csv_text, text_in

ROW_GROUP = 1024
PLACE = ("file", "start", "end")


class Row(NamedTuple):
    """A vector [D], the recording that it is of, and the place in seconds."""

    file: str
    start: float
    end: float
    vector: Floats


@dataclass(frozen=True)
class Columns:
    """What the values of the vectors are called, and what made them (JSON types), which Parquet keeps beside them."""

    names: tuple[str, ...]
    origin: dict[str, Any]


def rows(embeddings: Iterable[Embedding], per_window: bool = False) -> Iterator[Row]:
    """Yield a row for each recording, or for each window of it; failed recordings are left out."""
    for found in embeddings:
        if found.error is not None:
            continue
        if per_window:
            for (start, end), vector in zip(found.spans.tolist(), found.windows, strict=True):
                yield Row(found.name, start, end, vector)
        else:
            yield Row(found.name, 0.0, found.seconds, found.vector)


def write_npy(found: Iterable[Row], columns: Columns, file: BinaryIO) -> None:
    """Write one array of records with the fields file, start, end and embedding [D]; `numpy.load` reads it without pickle."""
    kept = list(found)
    longest = max([len(row.file) for row in kept], default=1) or 1
    kind = [("file", f"U{longest}"), ("start", "f8"), ("end", "f8"), ("embedding", "f4", (len(columns.names),))]
    np.lib.format.write_array(file, np.array([tuple(row) for row in kept], dtype=kind), allow_pickle=False)


def write_csv(found: Iterable[Row], columns: Columns, file: BinaryIO) -> None:
    """Write a table with the columns file, start, end and one a value, with as many digits as float32 has."""
    with text_in(file) as text:
        text.write(csv_text([(*PLACE, *columns.names)]))
        for row in found:
            values = (f"{value:.9g}" for value in row.vector.tolist())
            text.write(csv_text([(row.file, f"{row.start:.6f}", f"{row.end:.6f}", *values)]))


def write_parquet(found: Iterable[Row], columns: Columns, file: BinaryIO) -> None:
    """Write the columns file, start, end and embedding (a list of D float32); the schema's metadata has the origin under "dymn".

    Raises:
        MissingExtraError: if pyarrow is not installed.
    """
    size = len(columns.names)

    def fields(arrow: Any) -> list[tuple[str, Any]]:
        places = [("file", arrow.string()), ("start", arrow.float64()), ("end", arrow.float64())]
        return [*places, ("embedding", arrow.list_(arrow.float32(), size))]

    def arrays(arrow: Any, group: Sequence[Row]) -> list[Any]:
        values = arrow.array(np.concatenate([row.vector for row in group]), arrow.float32())
        places = [arrow.array([row[i] for row in group], kind) for i, (_, kind) in enumerate(fields(arrow)[:3])]
        return [*places, arrow.FixedSizeListArray.from_arrays(values, size)]

    parquet.write(file, found, fields, arrays, columns.origin | {"names": columns.names}, ROW_GROUP)


FORMATS: dict[str, Callable[[Iterable[Row], Columns, BinaryIO], None]] = {"npy": write_npy, "csv": write_csv, "parquet": write_parquet}
SUFFIXES = {f".{name}": name for name in FORMATS}


def choose(name: str | None, output: Path | None) -> str:
    """Return the format that was named, or that of the output's ending; CSV for standard output.

    Raises:
        ConfigError: if neither tells, or a binary format would go to standard output.
        MissingExtraError: if the format needs what is not installed.
    """
    chosen = name or (SUFFIXES.get(output.suffix.lower()) if output is not None else "csv")
    if chosen is None:
        raise ConfigError(f"The ending of --output {output} names no format. Give --format, or an ending of {', '.join(SUFFIXES)}.")
    if output is None and chosen != "csv":
        raise ConfigError(f"The format {chosen} is binary. Give a file as --output to write to.")
    if chosen == "parquet":
        parquet.require()
    return chosen
