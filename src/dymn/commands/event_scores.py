"""`dymn evaluate --events`: the accuracy of events in annotated recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dymn.commands.options import note
from dymn.commands.output import aligned
from dymn.system.files import json_values, write_csv

if TYPE_CHECKING:
    from dymn.evaluation.events import EventAssessment
    from dymn.inference.events import EventSettings
    from dymn.inference.tagger import Tagger

FIGURES = {
    "annotated": "annotated",
    "found": "found",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1 of events",
    "segment_f1": "F1 of seconds",
    "psds": "PSDS",
}
"""The title of each metric of a class."""


def evaluate_events(
    tagger: Tagger,
    model: str,
    data: Path,
    kind: str,
    settings: EventSettings,
    collar: float,
    per_class: Path | None,
    format: str,
    batch_size: int,
    workers: int,
    quiet: bool,
) -> None:
    """Detect and compare events, and write the metrics."""
    from dymn.commands.progress import counting_bar
    from dymn.evaluation.events import annotated_events, assess_events

    annotated = annotated_events(data, kind)
    with counting_bar("Evaluate", quiet) as progress:
        found = assess_events(
            tagger.backend,
            annotated,
            settings,
            collar=collar,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    for path, reason in found.bad.items():
        note(f"{path} is left out: {reason}", quiet)
    if per_class is not None:
        rows = [(one.label, *(f"{value:.6g}" for value in one[1:])) for one in found.classes]
        write_csv(per_class, [("class", *FIGURES), *rows])
    typer.echo(as_json(found, model, data, collar) if format == "json" else as_table(found))


def as_table(found: EventAssessment) -> str:
    """Return the figures as tables: those of all classes, then a row for each class."""
    from dymn.inference.formats.text import clock

    annotated, there = (sum(getattr(one, name) for one in found.classes) for name in ("annotated", "found"))
    lines = [
        ("recordings", f"{found.recordings}, {clock(found.seconds)}"),
        ("events", f"{annotated} annotated, {there} found"),
        *((FIGURES[name], f"{found.mean(name):.4f}") for name in ("f1", "segment_f1", "psds")),
    ]
    if found.bad:
        lines.append(("left out", f"{len(found.bad)} recordings that cannot be read, such as {next(iter(found.bad))}"))
    if found.unknown:
        listed = ", ".join(f"{label} ({count})" for label, count in sorted(found.unknown.items()))
        lines.append(("left out", f"labels that the model does not have: {listed}"))
    titles = ["class", *FIGURES.values()]
    rows = [[one.label, *map(str, one[1:3]), *(f"{value:.4f}" for value in one[3:])] for one in found.classes]
    return "\n".join([*aligned(lines), "", *aligned([titles, *rows], right=range(1, len(titles)))])


def as_json(found: EventAssessment, model: str, data: Path, collar: float) -> str:
    """Return the figures as a JSON object."""
    about = {"model": model, "data": str(data), "collar": collar}
    counts = {"recordings": found.recordings, "seconds": found.seconds}
    means = {name: found.mean(name) for name in ("f1", "segment_f1", "psds")}
    rest = {"unknown": found.unknown, "beyond": found.beyond, "bad": found.bad}
    classes = {"classes": [one._asdict() for one in found.classes]}
    return json.dumps(json_values(about | counts | means | rest | classes), indent=1, ensure_ascii=False)
