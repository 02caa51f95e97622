"""How events are written: text to read, CSV, JSON, labels for Audacity, RTTM.

Each format is a function that turns recordings into pieces of text as they come, so that nothing is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dymn.errors import visible
from dymn.inference.events import EventRecording
from dymn.system.files import csv_text

if TYPE_CHECKING:
    from dymn.inference.formats.tags import Run

CSV_COLUMNS = ("file", "start", "end", "label", "score", "error")


def text(recordings: Iterable[EventRecording], run: Run) -> Iterator[str]:
    """Write for people: a line for each event. Failed recordings are left to the error messages."""
    from dymn.inference.formats.tags import clock

    dash = "-" if run.plain else "–"
    for recording in recordings:
        if recording.error is not None:
            continue
        yield f"{visible(recording.name)}  ({clock(recording.seconds)})\n"
        for event in recording.events:
            yield f"  {clock(event.start)} {dash} {clock(event.end)}  {event.score:.2f}  {event.label}\n"
        if not recording.events:
            yield "  No label reaches the threshold.\n"
        yield "\n"


def json_document(recordings: Iterable[EventRecording], run: Run) -> Iterator[str]:
    """Write one JSON object: version, model, digest, parameters, and a list of recordings."""
    yield json.dumps(run.to_dict(), ensure_ascii=False)[:-1] + ', "recordings": ['
    before = "\n"
    for recording in recordings:
        yield before + json.dumps(_as_dict(recording), ensure_ascii=False)
        before = ",\n"
    yield "\n]}\n"


def csv_rows(recordings: Iterable[EventRecording], run: Run) -> Iterator[str]:
    """Write a row for each event; a failed recording has a row with its error."""
    yield csv_text([CSV_COLUMNS])
    for recording in recordings:
        if recording.error is not None:
            yield csv_text([(recording.name, "", "", "", "", str(recording.error))])
        for event in recording.events:
            yield csv_text([(recording.name, f"{event.start:.3f}", f"{event.end:.3f}", event.label, f"{event.score:.6f}", "")])


def audacity_labels(recordings: Iterable[EventRecording], run: Run) -> Iterator[str]:
    """Write a label track: start, end and label with tabs between."""
    for recording in recordings:
        for event in recording.events:
            yield f"{event.start:.6f}\t{event.end:.6f}\t{event.label}\n"


def rttm(recordings: Iterable[EventRecording], run: Run) -> Iterator[str]:
    """Write lines like those of NIST's Rich Transcription Time Marked files, which have ten fields with blanks between.

    The label stands where RTTM has the speaker and the score where it has the confidence; blanks in names become underscores.
    """
    for recording in recordings:
        for event in recording.events:
            length = event.end - event.start
            name, label = _field(recording.name), _field(event.label)
            yield f"SPEAKER {name} 1 {event.start:.3f} {length:.3f} <NA> <NA> {label} {event.score:.4f} <NA>\n"


FORMATS: dict[str, Callable[[Iterable[EventRecording], Run], Iterator[str]]] = {
    "text": text,
    "csv": csv_rows,
    "json": json_document,
    "audacity": audacity_labels,
    "rttm": rttm,
}
SUFFIXES = {".csv": "csv", ".json": "json", ".rttm": "rttm"}


def _as_dict(recording: EventRecording) -> dict[str, Any]:
    if recording.error is not None:
        return {"file": recording.name, "error": str(recording.error)}
    events = [
        {"label": event.label, "start": round(event.start, 3), "end": round(event.end, 3), "score": round(event.score, 6)}
        for event in recording.events
    ]
    return {"file": recording.name, "seconds": round(recording.seconds, 6), "events": events}


def _field(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip()) or "<NA>"
