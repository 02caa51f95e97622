"""Profiles and comparisons as text: tables, CSV, JSON, Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from dymn.models import paper
from dymn.profiling.counting import KINDS
from dymn.profiling.report import MILLION, Comparison, Profile
from dymn.system.files import csv_text

COLUMNS = (
    "table",
    "row",
    "macs",
    "paper_macs",
    "macs_difference",
    "parameters",
    "paper_parameters",
    "parameters_difference",
    "paper_map",
)
HEADINGS = ("Row", "MACs", "paper", "difference", "Parameters", "paper", "difference", "mAP")


def comparison_table(rows: Sequence[Comparison]) -> str:
    """Return rows of the paper as aligned text, in millions, a heading for each table."""
    lines = []
    for number, group in groupby(rows, key=lambda row: row.table):
        cells = [_cells(row) for row in group]
        lines += [f"Table {number}. {paper.TABLES[number].title}", *_aligned([HEADINGS, *cells]), ""]
    return "\n".join(lines[:-1]) + "\n"


def comparison_csv(rows: Sequence[Comparison]) -> str:
    """Return rows of the paper as CSV with plain counts."""
    values = [row.to_dict() for row in rows]
    return csv_text([COLUMNS, *([value[column] for column in COLUMNS] for value in values)])


def comparison_markdown(rows: Sequence[Comparison]) -> str:
    """Return a page of Markdown, in millions, with the interpretations of rows that leave a detail open."""
    lines = [
        "# The paper's tables",
        "",
        "This page compares the multiply-adds (MACs) and parameters of every network in the paper's tables with "
        "dymn's counts, in millions, for 128 mel bands and 1000 frames (10 s).",
        "MACs include convolutions, linear layers and matrix products, and the aggregation of dynamic kernels.",
        "mAP is the published value. Rows are named as in the paper: `- CA` is the network without Coordinate "
        "Attention.",
        "`dymn profile --table all --format markdown` generates this page.",
        "",
    ]
    for number, group in groupby(rows, key=lambda row: row.table):
        lines += [
            f"## Table {number}. {paper.TABLES[number].title}",
            "",
            piped(HEADINGS),
            piped(["---", *["---:"] * 7]),
        ]
        lines += [piped(_cells(row)) for row in group]
        lines.append("")
    named = {row.table for row in rows}
    readings = [reading for reading in paper.READINGS if reading.table in named]
    if readings:
        lines += [
            "## Interpretations",
            "",
            "Where the paper leaves a detail of a row open, these interpretations were counted. dymn builds the one "
            "in bold.",
            "",
            piped(["Table", "Row", "Interpretation", "MACs", "Parameters"]),
            piped(["---", "---", "---", "---:", "---:"]),
        ]
        for reading in readings:
            bold = "**" if reading.kept else ""
            cells = [reading.table, reading.row, reading.text, f"{reading.macs:.2f}", f"{reading.parameters:.4f}"]
            lines.append(piped([f"{bold}{cell}{bold}" for cell in cells]))
        lines.append("")
    return "\n".join(lines)


def profile_table(profile: Profile) -> str:
    """Return a profile as text to read."""
    count, memory, field = profile.count, profile.memory, profile.receptive_field
    places = [(place, *(f"{part.get(kind, 0) / MILLION:.3f}" for kind in KINDS)) for place, part in count.parts.items()]
    total = ("all", *(f"{macs / MILLION:.3f}" for macs in count.kinds.values()))
    lines = [
        f"{profile.name or 'network'}: {profile.input_seconds:g} s, {profile.n_mels} bands, {profile.n_frames} frames",
        f"  parameters       {count.parameters:,}",
        f"  multiply-adds    {count.macs:,}",
        f"  peak memory      {memory.plain / 2**20:.2f} MiB of feature maps ({memory.plain_place}); "
        f"in place {memory.in_place / 2**20:.2f} MiB ({memory.in_place_place})",
        f"  receptive field  {field.seconds:.2f} s, {field.bands} bands (the spectrogram has {profile.n_mels})",
    ]
    if profile.latency is not None:
        milliseconds, threads = 1000 * profile.latency.median, profile.latency.threads
        speed = profile.input_seconds / profile.latency.median
        lines.append(f"  latency          {milliseconds:.1f} ms ({speed:.0f} x real time, threads: {threads})")
    for row in profile.paper[:1]:
        name, macs, paper_macs, difference, parameters, paper_parameters, parameters_difference, _ = _cells(row)
        lines.append(
            f"  paper            Table {row.table}, {name}: {paper_macs} M multiply-adds (10 s: {macs} M, "
            f"{difference}), {paper_parameters} M parameters ({parameters} M, {parameters_difference})"
        )
    lines += ["", "Multiply-adds in millions:", *_aligned([("", *KINDS), *places, total]), ""]
    return "\n".join(lines)


def profile_csv(profile: Profile) -> str:
    """Return the multiply-adds of each place and kind as CSV."""
    rows = ([place, *(part.get(kind, 0) for kind in KINDS)] for place, part in profile.count.parts.items())
    return csv_text([("place", *KINDS), *rows])


COMPARISON_FORMATS: dict[str, Callable[[Sequence[Comparison]], str]] = {
    "table": comparison_table,
    "json": lambda rows: as_json([row.to_dict() for row in rows]),
    "csv": comparison_csv,
    "markdown": comparison_markdown,
}
PROFILE_FORMATS: dict[str, Callable[[Profile], str]] = {
    "table": profile_table,
    "json": lambda profile: as_json(profile.to_dict()),
    "csv": profile_csv,
    "markdown": lambda profile: f"```text\n{profile_table(profile)}```\n",
}


def _cells(row: Comparison) -> list[str]:
    def millions(value: int | None, form: str) -> str:
        return "-" if value is None else format(value / MILLION, form)

    return [
        row.row,
        millions(row.macs, ",.2f"),
        millions(row.paper_macs, ",.0f"),
        millions(row.macs_difference, "+.2f"),
        millions(row.parameters, ".4f"),
        millions(row.paper_parameters, ".2f"),
        millions(row.parameters_difference, "+.4f"),
        "-" if row.paper_map is None else f"{row.paper_map:.1f}",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def as_json(value: Any) -> str:
    """Return JSON types as readable text."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def piped(cells: Sequence[str]) -> str:
    """Return a row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
