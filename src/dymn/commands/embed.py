"""`dymn embed`: recordings as vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from dymn.commands.options import (
    WHAT,
    Backend,
    Device,
    Filling,
    Fresh,
    Hop,
    Layers,
    Model,
    Paths,
    Precision,
    Quiet,
    Ray,
    RetryFailed,
    Threads,
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
)

if TYPE_CHECKING:
    from dymn.inference.embedding import Embedder, Embedding, EmbedSettings
    from dymn.inference.formats.embeddings import Columns
    from dymn.inference.tagger import Tagger

Format = Literal["npy", "parquet", "csv"]
"""The keys of `dymn.inference.formats.embeddings.FORMATS`."""


def embed(
    paths: Paths,
    model: Model = None,
    layer: Layers = None,
    per_window: Annotated[
        bool,
        typer.Option("--per-window", help="Write a row for each window, with its start and end.", rich_help_panel=WHAT),
    ] = False,
    format: Annotated[
        Format | None,
        format_option(
            "How to write: npy (records with the fields file, start, end, embedding), parquet (the same as columns; needs "
            "dymn\\[parquet]) or csv (a column for each value). Without it the ending of --output decides; csv goes to standard output."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "Write to this file, which appears when it is complete. Until then a journal lies beside it, and the same command goes on "
            "after any interruption. Beside npy and csv, FILE.json tells what made them: the model, its digest, layers, settings."
        ),
    ] = None,
    window: Window = 10.0,
    hop: Hop = None,
    fill: Filling = "bare",
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
    """Turn recordings into vectors, for small models, search and clustering.

    Each recording gets one row with its name, or one for each window with --per-window. `dymn probe` tells how far a linear model gets.

    Recordings that cannot be read are named on standard error and in a report beside --output, and have no row. The others are still
    embedded, and the exit code is 1.

    Examples: `dymn embed clips -o clips.npy`, `dymn embed clips --layer mels,blocks --per-window --window 1 -o clips.parquet`.
    """
    from functools import partial
    from itertools import chain

    from dymn.commands.bulk import Bulk, keeps_journal, report, run_bulk
    from dymn.commands.output import binary_output
    from dymn.commands.progress import progress_bar
    from dymn.inference.embedding import Embedding, EmbedSettings
    from dymn.inference.formats.embeddings import choose
    from dymn.inference.layers import parse_layers
    from dymn.inference.runs import embeddings

    hush(quiet)
    settings = EmbedSettings(window, hop, fill)
    layers = parse_layers(layer or "last")
    name = choose(format, output)
    engine = ray_engine(ray, workers, threads, device, backend)
    looks_inside = engine is not None or layers != ("last",)

    def embed_files(tagger: Tagger, embedder: Embedder, count: int) -> Callable[..., Iterator[Embedding]]:
        if engine is not None:
            return partial(engine.embed_files, tagger, layers, settings=settings, batch_size=batch_size)
        n_threads = default_workers(threads, count) if workers is None else workers
        return partial(embedder.embed_files, settings=settings, batch_size=batch_size, workers=n_threads)

    kept = keeps_journal(output, True, paths, fresh, retry_failed)
    lost = unreadable(paths) if engine is None else []
    found, failed = ([], lost) if lost or kept else find(paths, urls=engine is not None)
    check_output(output, name, found)
    place = device if engine is None else "cpu"
    tagger = None if lost else load_tagger(model, place, threads, quiet, backend, precision, looks_inside)
    embedder = tagger.embedder(layers) if tagger else None
    made = columns(tagger, embedder, settings, per_window)
    if kept and tagger and embedder:
        bulk = Bulk(
            "embed",
            embeddings(per_window, embedder.size),
            embed_files(tagger, embedder, MANY),
            partial(write_file, made, name, per_window),
            made.origin | {"backend": backend, "precision": precision},
        )
        n_failed = run_bulk(bulk, paths, kept, fresh, retry_failed, quiet)
        write_origin(made, name, output)
        if n_failed:
            raise typer.Exit(1)
        return
    bar = progress_bar(len(found), quiet)
    progress = follower(bar) if bar.visible else None
    found_ones = embed_files(tagger, embedder, len(found))(found, progress=progress) if tagger and embedder else ()
    failures = Failures()
    unnamed = [Embedding(recording.name, error=recording.error) for recording in failed]
    reported = failures.reported(chain(unnamed, bar.over(found_ones)))
    with report(kept) as listed, binary_output(output) as file:
        write_file(made, name, per_window, listed(reported), file)
    write_origin(made, name, output)
    if failures.count:
        raise typer.Exit(1)


def write_file(made: Columns, name: str, per_window: bool, found: Iterable[Embedding], file: BinaryIO) -> None:
    """Write embeddings in a format to an open file."""
    from dymn.inference.formats.embeddings import FORMATS, rows

    FORMATS[name](rows(found, per_window), made, file)


def write_origin(made: Columns, name: str, output: Path | None) -> None:
    """Write what made the vectors beside a file whose format has no place for it: clips.npy.json beside clips.npy."""
    from dymn.system.files import atomic_write

    if output is None or not output.is_file() or name == "parquet":
        return
    text = json.dumps(made.origin, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(output.with_name(f"{output.name}.json")) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def columns(tagger: Tagger | None, embedder: Embedder | None, settings: EmbedSettings, per_window: bool) -> Columns:
    """Return what the values are called, and what made them; without a model, there are none."""
    from dymn.config import to_dict
    from dymn.inference.formats.embeddings import Columns

    run = describe(tagger, None, to_dict(settings) | {"hop": settings.hop or settings.window}, per_window)
    return Columns(embedder.names if embedder else (), run.to_dict() | {"layers": embedder.layers if embedder else []})
