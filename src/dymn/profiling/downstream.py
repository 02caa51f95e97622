"""Table III, which is about accuracy instead of costs, and the commands that train the rows of all tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dymn.models import paper
from dymn.models.paper import DOWNSTREAM_TASKS, DownstreamRow
from dymn.profiling.formats import as_json, piped
from dymn.system.files import csv_text

NUMBER = "III"
TITLE = "mAP (OpenMIC, FSD50K) and accuracy (ESC-50, DCASE20) on downstream tasks, in per cent"


def commands(tables: str = "all") -> str:
    """Return the commands of the rows of a table (a Roman number, III too) or all, each below a comment line."""
    lines = []
    if tables.upper() != NUMBER:
        for table in paper.TABLES.values() if tables == "all" else [paper.table(tables)]:
            for row in table.rows:
                lines += [f"# Table {table.number}, {row.name}", row.command]
    if tables.upper() in (NUMBER, "ALL"):
        for downstream in paper.TABLE_III:
            if downstream.commands:
                lines += [f"# Table {NUMBER}, {downstream.name}", *downstream.commands.values()]
    return "\n".join(lines) + "\n"


def _cells(row: DownstreamRow) -> list[str]:
    return [row.name, *(f"{value:.1f}" for value in row.figures.values())]


def _text(rows: Sequence[DownstreamRow]) -> str:
    lines = [["Row", *DOWNSTREAM_TASKS.values()], *map(_cells, rows)]
    width = max(len(line[0]) for line in lines)
    body = "\n".join(line[0].ljust(width) + "".join(cell.rjust(9) for cell in line[1:]) for line in lines)
    return f"Table {NUMBER}. {TITLE}\n{body}\n"


def _csv(rows: Sequence[DownstreamRow]) -> str:
    columns = ["table", "row", *DOWNSTREAM_TASKS, *(f"{task}_command" for task in DOWNSTREAM_TASKS)]
    values = [
        [NUMBER, row.name, *row.figures.values(), *(row.commands.get(task, "") for task in DOWNSTREAM_TASKS)]
        for row in rows
    ]
    return csv_text([columns, *values])


def _json(rows: Sequence[DownstreamRow]) -> str:
    return as_json([{"table": NUMBER, "row": row.name, **row.figures, "commands": row.commands} for row in rows])


def _markdown(rows: Sequence[DownstreamRow]) -> str:
    lines = [["Row", *DOWNSTREAM_TASKS.values()], ["---", *["---:"] * len(DOWNSTREAM_TASKS)], *map(_cells, rows)]
    return "\n".join([f"## Table {NUMBER}. {TITLE}", "", *map(piped, lines), ""])


DOWNSTREAM_FORMATS: dict[str, Callable[[Sequence[DownstreamRow]], str]] = {
    "table": _text,
    "csv": _csv,
    "json": _json,
    "markdown": _markdown,
}


def as_text(format: str) -> str:
    """Return Table III in one of `DOWNSTREAM_FORMATS`."""
    return DOWNSTREAM_FORMATS[format](paper.TABLE_III)
