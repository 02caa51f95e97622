"""The layout of embeddings: each row contains the recording's name, the position and the vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dymn.inference.embedding import Embedding
from dymn.inference.formats.layout import Cells, Column, Layout

EMBEDDING_FORMATS = ("npy", "parquet", "csv")
ROW_GROUP = 1024


def rows(found: Embedding, per_window: bool) -> Iterator[Cells]:
    """Yield a row for a recording, or one for each of its windows."""
    if not per_window:
        yield found.name, 0.0, found.seconds, found.vector
        return
    for (start, end), vector in zip(found.spans.tolist(), found.windows, strict=True):
        yield found.name, start, end, vector


def layout(names: Sequence[str]) -> Layout[Embedding]:
    """Return the layout of embeddings whose values have these names; failed recordings have no row.

    NPY holds records with the fields file, start, end and embedding [D], Parquet the same as columns, CSV a column for
    each value with as many digits as float32 has.
    """
    return Layout(
        columns=(
            Column("file"),
            Column("start", "float64", ".6f"),
            Column("end", "float64", ".6f"),
            Column("embedding", "vector", ".9g", tuple(names)),
        ),
        rows=rows,
        suffixes={f".{name}": name for name in EMBEDDING_FORMATS},
        standard="csv",
        formats=EMBEDDING_FORMATS,
        row_group=ROW_GROUP,
    )
