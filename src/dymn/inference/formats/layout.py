"""The layout of one kind of results in a file: columns of rows, fields of JSON objects and lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from dymn.audio.settings import ReadSettings
from dymn.inference.formats.origin import Origin
from dymn.inference.windows import Result

R = TypeVar("R", bound=Result)

Cells = tuple[Any, ...]
"""One value a column; None where there is none."""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        kind: "text", "int32", "float64", "float32", or "vector" of float32.
        number: the format of a number in CSV, such as ".3f".
        names: of the values of a vector, which are columns of their own in CSV.
    """

    name: str
    kind: Literal["text", "int32", "float64", "float32", "vector"] = "text"
    number: str = ""
    names: tuple[str, ...] = ()


class Span(NamedTuple):
    """A passage of a recording, in seconds, with a label and its probability."""

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class Layout(Generic[R]):
    """What results of a kind look like in files; see `dymn.inference.formats.writers`.

    Attributes:
        columns: of the rows. If the last one is called "error", a failed recording has a row, and so has one that was
            read in part, even without results; all its rows contain the reason.
        rows: from a result without an error, and whether windows are requested, to its rows.
        suffixes: from the ending of a file, "" if it has none, to the name of a format.
        standard: the format of standard output.
        formats: the names of all formats.
        fields: from the same two to JSON types; an iterator among them becomes a list that is never whole in memory.
        text: from a result without an error to lines for people.
        spans: from a result without an error to the passages of its label track.
        row_group: how many rows a row group of Parquet has.
    """

    columns: tuple[Column, ...]
    rows: Callable[[R, bool], Iterable[Cells]]
    suffixes: Mapping[str, str]
    standard: str
    formats: tuple[str, ...]
    fields: Callable[[R, bool], dict[str, Any]] = lambda result, per_window: {}
    text: Callable[[R, Origin], Iterable[str]] = lambda result, origin: ()
    spans: Callable[[R], Iterable[Span]] = lambda result: ()
    row_group: int = 2**15

    def of(self, settings: ReadSettings) -> Layout[R]:
        """Return the layout with what settings add: a column `channel` behind the name, a column `time` behind the end.

        Columns of rows begin with name, start and end in every layout.
        """
        rows, columns = self.rows, self.columns
        each, clock = settings.channel == "each", settings.clock == "auto"

        def more(result: R, per_window: bool) -> Iterator[Cells]:
            channel = (result.channel.number if result.channel else None,) if each else ()
            for name, start, end, *rest in rows(result, per_window):
                time = (result.begin.at(start) if result.begin else None,) if clock else ()
                yield (name, *channel, start, end, *time, *rest)

        if not (each or clock):
            return self
        extra = [Column("channel", "int32")] * each, [Column("time")] * clock
        return replace(self, rows=more, columns=(columns[0], *extra[0], *columns[1:3], *extra[1], *columns[3:]))

    def rows_of(self, results: Iterable[R], origin: Origin) -> Iterator[Cells]:
        """Yield the rows of results, those of failed recordings included if there is a column for their errors."""
        for result in results:
            rows = iter(()) if result.error is not None else iter(self.rows(result, origin.per_window))
            if not self.has_errors or (result.error is None and not result.partial):
                yield from rows
                continue
            why = " ".join(result.notes) if result.error is None else str(result.error)
            known = {"channel": result.channel.number} if result.channel else {}
            alone = (result.name, *(known.get(column.name) for column in self.columns[1:]))
            yield from ((*row[:-1], why) for row in chain([next(rows, alone)], rows))

    @property
    def has_errors(self) -> bool:
        """Whether rows have a column for errors."""
        return self.columns[-1].name == "error"
