"""`dymn events`: when each sound begins and ends."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer

from dymn.commands.options import (
    Backend,
    Device,
    Exclude,
    Labels,
    Model,
    Paths,
    Precision,
    Quiet,
    Threads,
    format_option,
    hush,
    output_option,
    seconds_option,
)
from dymn.commands.recordings import Failures, check_output, describe, find, follower, load_tagger, unreadable, write

WHEN = "What is an event"

Format = Literal["text", "csv", "json", "audacity", "rttm"]
"""The keys of `dymn.inference.formats.events.FORMATS`."""
How = Literal["activation", "windows"]
"""The keys of `dymn.events.METHODS`."""


def events(
    paths: Paths,
    model: Model = None,
    labels: Labels = None,
    exclude: Exclude = None,
    format: Annotated[
        Format | None,
        format_option(
            "How to write the events: text, csv, json, audacity (a label track) or rttm. Without it the ending of --output decides "
            "(.csv, .json, .rttm), and else it is text."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option("Write to this file, which appears when it is complete. Audacity labels of several recordings go to a folder."),
    ] = None,
    method: Annotated[
        How,
        typer.Option(
            help="How to find out what is when: short windows that overlap (windows), or the last feature map of long windows frame by "
            "frame (activation), which is quicker, finds less, and needs a model that PyTorch computes.",
            rich_help_panel=WHEN,
        ),
    ] = "windows",
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", "-t", metavar="FROM 0 TO 1", max=1, help="An event reaches at least this probability.", rich_help_panel=WHEN
        ),
    ] = 0.1,
    off_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="FROM 0 TO 1",
            max=1,
            help="An event lasts while its probability is at least this. Without it, 0.3 of --threshold.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    median: Annotated[float, seconds_option("Smooth the probabilities by their median over so long.", WHEN, least=0, most=None)] = 0.0,
    min_gap: Annotated[
        float, seconds_option("Join events of one label with at most so much between them.", WHEN, least=0, most=None)
    ] = 0.64,
    min_duration: Annotated[float, seconds_option("Drop events that are shorter.", WHEN, least=0, most=None)] = 0.0,
    window: Annotated[
        float | None, seconds_option("How much the network hears at once. Without it, what is best for the method.", WHEN)
    ] = None,
    hop: Annotated[
        float | None, seconds_option("From the start of one window to the next. Without it, what is best for the method.", WHEN)
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    precision: Precision = "float32",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Tell when each sound in a recording begins and ends.

    An event begins and ends where the probability of its label passes --off-threshold, and reaches --threshold in between.

    Recordings that cannot be read are named on standard error, and in JSON and CSV. The others are still done, and the exit code is 1.
    """
    from dymn.commands.progress import progress_bar
    from dymn.config import to_dict
    from dymn.inference.events import EventRecording, EventSettings, event_files
    from dymn.inference.formats.events import FORMATS, SUFFIXES

    hush(quiet)
    settings = EventSettings(
        method=method,
        window=window,
        hop=hop,
        labels=tuple(labels or ()),
        exclude=tuple(exclude or ()),
        threshold=threshold,
        off_threshold=off_threshold,
        median=median,
        min_gap=min_gap,
        min_duration=min_duration,
    )
    name = format or SUFFIXES.get(output.suffix.lower() if output else "", "text")
    lost = unreadable(paths)
    found, failed = ([], lost) if lost else find(paths)
    named = found or [recording.name for recording in lost]
    check_output(output, name, named)
    tagger = load_tagger(model, device, threads, quiet, backend, precision, looks_inside=method != "windows") if found else None
    bar = progress_bar(len(found), quiet)
    missing = (EventRecording(recording.name, error=recording.error) for recording in failed)
    recordings = chain(missing, bar.over(event_files(tagger.backend, found, settings, progress=follower(bar)) if tagger else ()))
    failures = Failures()
    run = describe(tagger, model, to_dict(settings) | dict(zip(("window", "hop"), settings.cutting(), strict=True)))
    write(failures.reported(recordings), run, FORMATS[name], output, separately=name == "audacity" and len(named) > 1)
    if failures.count:
        raise typer.Exit(1)
