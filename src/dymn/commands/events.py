"""`dymn events`: when each sound starts and ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dymn.commands import event_options, options, reading_options
from dymn.commands.event_options import WHEN
from dymn.commands.label_options import GroupsFile, Language, Level, Specific, vocabulary
from dymn.commands.options import format_option, hush, output_option, seconds_option
from dymn.commands.reading_options import gathered, read_settings

if TYPE_CHECKING:
    from dymn.commands.runs import Files
    from dymn.inference.events import EventRecording
    from dymn.inference.tagger import Tagger
    from dymn.ray import Engine

EventFormat = Literal["text", "csv", "json", "jsonl", "parquet", "audacity", "raven", "label-studio", "rttm"]
"""The formats of `dymn.inference.formats.events.EVENTS`."""


def events(
    paths: options.Paths = None,
    model: options.Model = None,
    labels: options.Labels = None,
    exclude: options.Exclude = None,
    specific: Specific = False,
    level: Level = None,
    groups: GroupsFile = None,
    language: Language = "en",
    format: Annotated[
        EventFormat | None,
        format_option(
            "The output format: text, csv, json, jsonl, parquet (needs dymn\\[parquet]), audacity (a label track), "
            "raven (a selection table), label-studio (tasks with predictions) or rttm. The default follows the "
            "extension of --output (.csv, .json, .jsonl, .parquet, .rttm), otherwise text."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "Write to this file, atomically. With json, jsonl, csv and parquet, a journal next to it lets the same "
            "command resume after an interruption. For several recordings, audacity writes one file each into a "
            "folder; raven does the same, or writes one table for all to a file."
        ),
    ] = None,
    segments: options.Segments = None,
    segments_per_class: options.SegmentsPerClass = None,
    method: event_options.EventMethod = None,
    threshold: event_options.EventThreshold = None,
    off_threshold: event_options.OffThreshold = None,
    median: event_options.Median = None,
    min_gap: event_options.MinGap = None,
    min_duration: event_options.MinDuration = 0.0,
    window: Annotated[
        float | None, seconds_option("Length of a window. The default depends on the method.", WHEN)
    ] = None,
    hop: Annotated[
        float | None,
        seconds_option("Distance between the starts of two windows. The default depends on the method.", WHEN),
    ] = None,
    files_from: reading_options.FilesFrom = None,
    channel: reading_options.ChannelOption = "mix",
    track: reading_options.Track = None,
    gain: reading_options.Gain = "0",
    speed: reading_options.Speed = 1.0,
    band: reading_options.Band = None,
    clock: reading_options.Clock = "none",
    partial: options.Partial = False,
    backend: options.BackendOption = "auto",
    device: options.Device = None,
    precision: options.PrecisionOption = "float32",
    threads: options.Threads = None,
    batch_size: options.WindowBatch = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    fresh: options.Fresh = False,
    retry_failed: options.RetryFailed = False,
    quiet: options.Quiet = False,
) -> None:
    """Report when each sound in a recording starts and ends.

    An event is a passage in which the probability of a label stays above --off-threshold and reaches --threshold at
    least once.

    Recordings that cannot be read are reported on standard error, in JSON, CSV and Parquet, and in a report next to
    --output. The others are still processed, and the exit code is 1.

    Examples: `dymn events street.wav --threshold 0.3`; `dymn events clips --labels "Dog,Speech" --output events.csv`.
    """
    import functools

    from dymn.commands.recordings import describe
    from dymn.commands.runs import Form, RunOptions, run
    from dymn.commands.segments import cutter_of
    from dymn.config import to_dict
    from dymn.inference.events import EventSettings, event_files
    from dymn.inference.formats.events import EVENTS
    from dymn.inference.runs import events as stored

    hush(quiet)
    words = vocabulary(level, groups, language, threshold)
    reading = read_settings(channel, track, gain, speed, band, partial, clock)
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
        specific=specific,
        **reading,
    )
    given = RunOptions(
        "events", gathered(paths, files_from),
        output, format, model, backend, device, precision, threads, batch_size, workers,
        ray, fresh, retry_failed, quiet, read=settings, labels=words,
    )  # fmt: skip

    def files(tagger: Tagger, engine: Engine | None) -> Files[EventRecording]:
        find = (
            functools.partial(event_files, tagger.backend)
            if engine is None
            else functools.partial(engine.event_files, tagger)
        )
        return functools.partial(find, settings=settings)

    def form(tagger: Tagger | None) -> Form[EventRecording]:
        used = settings if tagger is None else settings.of(tagger.backend)
        parameters = to_dict(used) | words.parameters() | used.cutting()._asdict() | used.rule()._asdict()
        return Form(EVENTS.of(used), stored(), describe(tagger, model, parameters))

    cutter = cutter_of(segments, segments_per_class, given.paths, ray, settings, retry_failed)
    done = run(given, EVENTS, form, files, cutter=cutter)
    if done.failed:
        raise typer.Exit(1)
