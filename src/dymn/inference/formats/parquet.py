"""Parquet files, row group by row group, whatever their rows are of."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

from dymn.errors import MissingExtraError

R = TypeVar("R")

Arrays = Callable[[Any, Sequence[R]], "list[Any]"]
"""From the module pyarrow and some rows to the arrays of their columns."""


def require() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        MissingExtraError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Writing Parquet", "parquet") from error
    return pyarrow, pyarrow.parquet


def write(
    file: BinaryIO,
    rows: Iterable[R],
    fields: Callable[[Any], Sequence[tuple[str, Any]]],
    arrays: Arrays[R],
    origin: Mapping[str, Any],
    group: int,
) -> None:
    """Write rows as they come, no more than a row group of them in memory; equal rows give equal bytes.

    Args:
        file: open for writing.
        rows: any objects.
        fields: from the module pyarrow to the names and types of the columns.
        arrays: makes the columns of some rows.
        origin: what made the rows, as JSON types; the schema's metadata has it under "dymn".
        group: how many rows a row group has.

    Raises:
        MissingExtraError: if pyarrow is not installed.
    """
    arrow, parquet = require()
    schema = arrow.schema(list(fields(arrow)), metadata={"dymn": json.dumps(origin, ensure_ascii=False)})
    iterator = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(itertools.islice(iterator, group)):
            writer.write_table(arrow.Table.from_arrays(arrays(arrow, some), schema=schema))
