"""`dymn tag`: which sounds are in recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dymn.commands.options import (
    WHAT,
    WINDOWS,
    Backend,
    Device,
    Exclude,
    Filling,
    Fresh,
    Hop,
    Labels,
    Model,
    Paths,
    Precision,
    Quiet,
    Ray,
    RetryFailed,
    Threads,
    Threshold,
    Window,
    WindowBatch,
    Workers,
    format_option,
    hush,
    output_option,
)
from dymn.commands.recordings import (
    MANY,
    Failures,
    check_output,
    default_workers,
    describe,
    find,
    follower,
    load_tagger,
    ray_engine,
    unreadable,
    write,
)

if TYPE_CHECKING:
    from dymn.inference.tagger import Recording, Tagger

Format = Literal["table", "json", "jsonl", "csv", "audacity", "parquet"]
"""The keys of `dymn.inference.formats.tags.FORMATS` and `BINARY`."""
Combine = Literal["max", "mean"]
"""The names in `dymn.inference.selection.COMBINATIONS`."""


def tag(
    paths: Paths,
    model: Model = None,
    top_k: Annotated[
        int,
        typer.Option(
            "--top-k",
            "-k",
            metavar="NUMBER",
            min=0,
            help="Give at most this many labels, best first; 0 gives all of them.",
            rich_help_panel=WHAT,
        ),
    ] = 10,
    threshold: Threshold = 0.0,
    labels: Labels = None,
    exclude: Exclude = None,
    per_window: Annotated[
        bool,
        typer.Option("--per-window", help="Tell the labels of each window, with its start and end.", rich_help_panel=WHAT),
    ] = False,
    format: Annotated[
        Format | None,
        format_option(
            "How to write the answer: table, json, jsonl, csv, parquet (needs dymn\\[parquet]) or audacity. Without it the ending "
            "of --output decides (.json, .jsonl, .csv, .parquet), and else it is a table. The format audacity is a label track of the "
            "windows; give a --threshold with it."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "Write to this file, which appears when it is complete. Until then, with json, jsonl, csv and parquet, a journal lies "
            "beside it, and the same command goes on after any interruption. Audacity labels of several recordings go to a folder."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Draw the spectrogram and when its labels are there: a picture (.png, .svg, .pdf), or a page with the sound (.html). For "
            "several recordings a folder, which gets a .png for each.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    window: Window = 10.0,
    hop: Hop = None,
    fill: Filling = "repeat",
    combine: Annotated[
        Combine,
        typer.Option(
            help="How windows make the answer for a recording: each label's highest probability (is it anywhere?), or its mean over time.",
            rich_help_panel=WINDOWS,
        ),
    ] = "max",
    backend: Backend = "auto",
    device: Device = None,
    precision: Precision = "float32",
    threads: Threads = None,
    batch_size: WindowBatch = None,
    workers: Workers = None,
    ray: Ray = None,
    fresh: Fresh = False,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Tell which sounds are in recordings.

    Each recording gets its most probable labels. One of more than ten seconds is cut into windows; --per-window tells what is when.

    Recordings that cannot be read are named on standard error, in JSON, CSV and Parquet, and in a report beside --output. The others are
    still tagged, and the exit code is 1.
    """
    from dymn.commands.bulk import Bulk, keeps_journal, report, run_bulk
    from dymn.commands.output import binary_output
    from dymn.commands.plot import check_plot, draw
    from dymn.commands.progress import progress_bar
    from dymn.config import to_dict
    from dymn.inference.formats.tags import BINARY, FORMATS, ROWS, choose, write_file
    from dymn.inference.runs import tags
    from dymn.inference.segments import source_name
    from dymn.inference.tagger import TagSettings

    hush(quiet)
    settings = TagSettings(top_k, threshold, tuple(labels or ()), tuple(exclude or ()), window, hop, fill, combine)
    name = choose(format, output)
    engine = ray_engine(ray, workers, threads, device, backend, plot)

    def tag_files(tagger: Tagger, count: int) -> Callable[..., Iterator[Recording]]:
        if engine is not None:
            return partial(engine.tag_files, tagger, settings=settings, batch_size=batch_size)
        n_threads = default_workers(threads, count) if workers is None else workers
        return partial(tagger.tag_files, settings=settings, batch_size=batch_size, workers=n_threads)

    kept = keeps_journal(output, name in ROWS and plot is None, paths, fresh, retry_failed)
    lost = unreadable(paths) if engine is None else []
    found, failed = ([], lost) if lost or kept else find(paths, urls=engine is not None)
    named = found or [recording.name for recording in lost]
    check_output(output, name, named)
    if plot is not None:
        check_plot(plot, [Path(path) for path in named])
    place = device if engine is None else "cpu"
    tagger = None if lost else load_tagger(model, place, threads, quiet, backend, precision, looks_inside=engine is not None)
    run = describe(tagger, model, to_dict(settings) | {"hop": hop or window}, per_window)
    if kept and tagger:
        origin = run.to_dict() | {"backend": backend, "precision": precision}
        bulk = Bulk("tag", tags(per_window), tag_files(tagger, MANY), partial(write_file, run, name), origin)
        if run_bulk(bulk, paths, kept, fresh, retry_failed, quiet):
            raise typer.Exit(1)
        return
    bar = progress_bar(len(found), quiet)
    recordings = tag_files(tagger, len(found))(found, progress=follower(bar) if bar.visible else None) if tagger else ()
    failures = Failures()
    reported = failures.reported(chain(failed, bar.over(recordings)))
    if kept:
        with report(kept) as listed, binary_output(kept) as file:
            write_file(run, name, listed(reported), file)
    elif name in BINARY:
        with binary_output(output) as file:
            write_file(run, name, reported, file)
    else:
        write(reported, run, FORMATS[name], output, separately=name == "audacity" and len(named) > 1)
    if plot is not None and tagger is not None:
        shown = [Path(path) for path in found if source_name(path) not in failures.names]
        failures.count += draw(tagger, shown, plot, single=len(found) == 1, settings=settings, quiet=quiet)
    if failures.count:
        raise typer.Exit(1)
