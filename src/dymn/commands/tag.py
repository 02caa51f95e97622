"""`dymn tag`: the sounds that recordings contain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dymn.commands import options, reading_options
from dymn.commands.label_options import GroupsFile, Language, Level, Specific, vocabulary
from dymn.commands.options import WHAT, WINDOWS, format_option, hush, note_gaps, number_option, output_option
from dymn.commands.reading_options import gathered, read_settings
from dymn.errors import ConfigError

if TYPE_CHECKING:
    from dymn.commands.runs import Files
    from dymn.inference.files import Recording
    from dymn.inference.tagger import Tagger
    from dymn.ray import Engine

TagFormat = Literal["table", "json", "jsonl", "csv", "audacity", "raven", "label-studio", "parquet"]
"""The formats of `dymn.inference.formats.tags.TAGS`."""
Combine = Literal["max", "mean"]
"""The names in `dymn.inference.selection.COMBINATIONS`."""


def tag(
    paths: options.Paths = None,
    model: options.Model = None,
    top_k: Annotated[
        int | None,
        number_option(
            "Report at most this many labels, best first; 0 reports all. The default is 10, but 0 with --segments and "
            "with the formats audacity, raven and label-studio.",
            WHAT,
            "--top-k",
            "-k",
            least=0,
        ),
    ] = None,
    threshold: options.Threshold = 0.0,
    labels: options.Labels = None,
    exclude: options.Exclude = None,
    specific: Specific = False,
    level: Level = None,
    groups: GroupsFile = None,
    language: Language = "en",
    per_window: Annotated[
        bool,
        typer.Option(
            "--per-window", help="Report the labels of each window, with its start and end.", rich_help_panel=WHAT
        ),
    ] = False,
    format: Annotated[
        TagFormat | None,
        format_option(
            "table, json, jsonl, csv, parquet (needs dymn\\[parquet]), or audacity (a label track), raven (a "
            "selection table) or label-studio (tasks with predictions), which report windows and need a "
            "--threshold. The default follows the extension of --output (.json, .jsonl, .csv, .parquet, .txt), "
            "otherwise table."
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
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Draw the spectrogram and the probabilities over time: an image (.png, .svg, .pdf), or a page with "
            "audio (.html). For several recordings, give a folder, which receives a .png for each.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    window: options.WindowOption = 10.0,
    hop: options.Hop = None,
    fill: options.Filling = "repeat",
    combine: Annotated[
        Combine,
        typer.Option(
            help="How windows are combined for the whole recording: each label's highest probability, or its mean over "
            "time.",
            rich_help_panel=WINDOWS,
        ),
    ] = "max",
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
    """Report which sounds recordings contain.

    For each recording, the most probable labels are reported. Recordings longer than ten seconds are split into
    windows; --per-window reports each window.

    Recordings that cannot be read are reported on standard error, in JSON, CSV and Parquet, and in a report next to
    --output. The others are still tagged, and the exit code is 1.

    Examples: `dymn tag street.wav`; `dymn tag clips --model dymn04_open --output tags.csv`;
    `dymn tag street.wav --per-window --window 2 --hop 1 --top-k 2`.
    """
    import functools

    from dymn.commands.plot import Pictures
    from dymn.commands.recordings import describe
    from dymn.commands.runs import Form, RunOptions, run
    from dymn.commands.segments import cutter_of
    from dymn.config import to_dict
    from dymn.inference.formats.tags import TAGS
    from dymn.inference.formats.writers import PASSAGES, choose
    from dymn.inference.runs import tags
    from dymn.inference.selection import TagSettings

    hush(quiet)
    words = vocabulary(level, groups, language, threshold)
    if plot is not None and ray is not None:
        raise ConfigError("--plot cannot be combined with --ray. Leave one of them out.")
    if plot is not None and channel == "each":
        raise ConfigError("--plot draws one channel. Give the number of a --channel, or leave it out.")
    if plot is not None and speed != 1:
        raise ConfigError("--plot cannot be combined with --speed. Leave one of them out.")
    note_gaps(window, hop, quiet)
    reading = read_settings(channel, track, gain, speed, band, partial, clock)
    finds_passages = segments is not None or choose(TAGS, format, output) in PASSAGES
    if finds_passages and top_k is None and threshold == 0:
        raise ConfigError(
            "--segments and the formats audacity, raven and label-studio report every passage in which a label reaches "
            "--threshold. Give a threshold, such as --threshold 0.3, or the number of labels of a window with --top-k."
        )
    settings = TagSettings(
        (0 if finds_passages else 10) if top_k is None else top_k,
        threshold,
        tuple(labels or ()),
        tuple(exclude or ()),
        window,
        hop,
        fill,
        combine,
        specific=specific,
        **reading,
    )
    parameters = to_dict(settings) | words.parameters() | {"hop": hop or window}
    given = RunOptions(
        "tag", gathered(paths, files_from),
        output, format, model, backend, device, precision, threads, batch_size, workers,
        ray, fresh, retry_failed, quiet, draws=plot is not None, read=settings, labels=words,
    )  # fmt: skip

    windows = per_window or segments is not None
    pictures = None if plot is None else Pictures(plot, settings)

    def files(tagger: Tagger, engine: Engine | None) -> Files[Recording]:
        if pictures is not None:
            return functools.partial(pictures.tag_files, tagger)
        tag_files = tagger.tag_files if engine is None else functools.partial(engine.tag_files, tagger)
        return functools.partial(tag_files, settings=settings)

    def check(found: Sequence[Path | str]) -> None:
        if pictures is not None:
            pictures.check(found)

    done = run(
        given,
        TAGS,
        lambda tagger: Form(TAGS.of(settings), tags(windows), describe(tagger, model, parameters, per_window)),
        files,
        check,
        cutter_of(segments, segments_per_class, given.paths, ray, settings, retry_failed),
    )
    if pictures is not None:
        pictures.finish(quiet)
    if done.failed:
        raise typer.Exit(1)
