"""The layout of tags in tables, JSON, CSV, Parquet and label tracks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dymn.inference.formats.layout import Cells, Column, Layout, Span
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.text import bar, clock, dash, heading

if TYPE_CHECKING:
    from dymn.inference.files import Recording
    from dymn.inference.selection import Tag, WindowTags

COLUMNS = (
    Column("file"),
    Column("start", "float64", ".3f"),
    Column("end", "float64", ".3f"),
    Column("label"),
    Column("score", "float32", ".6f"),
    Column("error"),
)
SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


def rows(recording: Recording, per_window: bool) -> Iterator[Cells]:
    """Yield a row for each label of a recording, or of each of its windows."""
    parts = (window.tags for window in recording.timeline) if per_window else iter([recording.tags])
    for tags in parts:
        for tag in tags:
            yield recording.name, tag.start, tag.end, tag.label, tag.score, None


def fields(recording: Recording, per_window: bool) -> dict[str, Any]:
    """Return the tags, and with `per_window` those of each window, as JSON types."""
    tags = [_tag(tag) | {"start": round(tag.start, 6), "end": round(tag.end, 6)} for tag in recording.tags]
    return {"tags": tags} | ({"windows": (_window(window) for window in recording.timeline)} if per_window else {})


def text(recording: Recording, origin: Origin) -> Iterator[str]:
    """Yield a bar for each label, and a line for each window."""
    yield heading(recording)
    for tag in recording.tags:
        yield f"  {tag.score:.3f}  {bar(tag.score, origin.plain)}  {tag.label}\n"
    if not recording.tags:
        yield "  No label reaches the threshold.\n"
    to = dash(origin.plain)
    for window in recording.timeline if origin.per_window else ():
        labels = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in window.tags)
        yield f"  {clock(window.start)} {to} {clock(window.end)}  {labels or to}\n"
    yield "\n"


def spans(recording: Recording) -> list[Span]:
    """Return the tags of windows, those that touch and share a label joined."""
    return [Span(tag.start, tag.end, tag.label, tag.score) for tag in joined(recording.timeline)]


def joined(timeline: Sequence[WindowTags]) -> list[Tag]:
    """Return tags by start; those of windows that touch or overlap are joined by label, with the best score."""
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


def _window(window: WindowTags) -> dict[str, Any]:
    return {"start": round(window.start, 6), "end": round(window.end, 6), "tags": [_tag(tag) for tag in window.tags]}


def _tag(tag: Tag) -> dict[str, Any]:
    return {"label": tag.label, "score": round(tag.score, 6)}


TAGS: Layout[Recording] = Layout(
    columns=COLUMNS,
    rows=rows,
    suffixes=SUFFIXES | {".txt": "table", "": "table"},
    standard="table",
    formats=("table", "json", "jsonl", "csv", "audacity", "raven", "label-studio", "parquet"),
    fields=fields,
    text=text,
    spans=spans,
)
