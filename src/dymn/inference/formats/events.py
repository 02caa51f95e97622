"""The layout of events in text, JSON, CSV, Parquet, label tracks and RTTM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dymn.inference.formats.layout import Cells, Layout, Span
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.tags import COLUMNS, SUFFIXES
from dymn.inference.formats.text import clock, dash, heading

if TYPE_CHECKING:
    from dymn.inference.events import EventRecording


def rows(recording: EventRecording, per_window: bool) -> Iterator[Cells]:
    """Yield a row for each event."""
    for event in recording.events:
        yield recording.name, event.start, event.end, event.label, event.score, None


def fields(recording: EventRecording, per_window: bool) -> dict[str, Any]:
    """Return the events as JSON types."""
    events = [
        {
            "label": event.label,
            "start": round(event.start, 3),
            "end": round(event.end, 3),
            "score": round(event.score, 6),
        }
        for event in recording.events
    ]
    return {"events": events}


def text(recording: EventRecording, origin: Origin) -> Iterator[str]:
    """Yield a line for each event, with times in hundredths of a second."""
    yield heading(recording)
    for event in recording.events:
        start, end = clock(event.start, 2), clock(event.end, 2)
        yield f"  {start} {dash(origin.plain)} {end}  {event.score:.2f}  {event.label}\n"
    if not recording.events:
        yield "  No label reaches the threshold.\n"
    yield "\n"


def spans(recording: EventRecording) -> list[Span]:
    """Return the events as passages."""
    return [Span(event.start, event.end, event.label, event.score) for event in recording.events]


EVENTS: Layout[EventRecording] = Layout(
    columns=COLUMNS,
    rows=rows,
    suffixes=SUFFIXES | {".rttm": "rttm", ".txt": "text", "": "text"},
    standard="text",
    formats=("text", "csv", "json", "jsonl", "parquet", "audacity", "raven", "label-studio", "rttm"),
    fields=fields,
    text=text,
    spans=spans,
)
