"""`dymn embed`: recordings as vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dymn.commands import options, reading_options
from dymn.commands.options import WHAT, format_option, hush, note_gaps, output_option
from dymn.commands.reading_options import gathered, read_settings

if TYPE_CHECKING:
    from dymn.commands.runs import Files
    from dymn.inference.embedding import Embedding
    from dymn.inference.formats.origin import Origin
    from dymn.inference.tagger import Tagger
    from dymn.ray import Engine

EmbedFormat = Literal["npy", "parquet", "csv"]
"""The names in `dymn.inference.formats.embeddings.EMBEDDING_FORMATS`."""


def embed(
    paths: options.Paths = None,
    model: options.Model = None,
    layer: options.Layers = None,
    per_window: Annotated[
        bool,
        typer.Option("--per-window", help="Write one row per window, with its start and end.", rich_help_panel=WHAT),
    ] = False,
    format: Annotated[
        EmbedFormat | None,
        format_option(
            "npy (records with the fields file, start, end, embedding), parquet (the same as columns; needs "
            "dymn\\[parquet]) or csv (one column per value). The default follows the extension of --output; for "
            "standard output it is csv."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "Write to this file, atomically. A journal next to it lets the same command resume after an "
            "interruption. For npy and csv, FILE.json contains the model, its digest, the layers, the settings, and "
            "the recordings that were read partially."
        ),
    ] = None,
    window: options.WindowOption = 10.0,
    hop: options.Hop = None,
    fill: options.Filling = "bare",
    files_from: reading_options.FilesFrom = None,
    channel: reading_options.ChannelOption = "mix",
    track: reading_options.Track = None,
    gain: reading_options.Gain = "0",
    speed: reading_options.Speed = 1.0,
    band: reading_options.Band = None,
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
    """Turn recordings into vectors, for small models, search and clustering.

    The output has one row per recording or, with --per-window, one row per window. `dymn probe` fits a linear model to
    embeddings.

    Recordings that cannot be read are reported on standard error and in a report next to --output, and have no row. The
    others are still embedded, and the exit code is 1.

    Examples: `dymn embed clips -o clips.npy`; `dymn embed clips --layer mels,blocks --per-window --window 1 -o
    clips.parquet`.
    """
    import functools

    from dymn.commands.recordings import describe
    from dymn.commands.runs import Form, RunOptions, run
    from dymn.config import to_dict
    from dymn.inference.embedding import EmbedSettings
    from dymn.inference.formats.embeddings import layout
    from dymn.inference.runs import embeddings
    from dymn.runtime.layers import parse_layers

    hush(quiet)
    note_gaps(window, hop, quiet)
    settings = EmbedSettings(window, hop, fill, **read_settings(channel, track, gain, speed, band, partial))
    layers = parse_layers(layer or "last")
    parameters = to_dict(settings) | {"hop": hop or window}
    given = RunOptions(
        "embed", gathered(paths, files_from),
        output, format, model, backend, device, precision, threads, batch_size, workers,
        ray, fresh, retry_failed, quiet, looks_inside=layers != ("last",), read=settings,
    )  # fmt: skip

    def form(tagger: Tagger | None) -> Form[Embedding]:
        embedder = tagger.embedder(layers) if tagger else None
        names, used = (embedder.names, embedder.layers) if embedder else ((), ())
        origin = replace(describe(tagger, model if tagger else None, parameters, per_window), more={"layers": used})
        return Form(layout(names).of(settings), embeddings(per_window, len(names)), origin)

    def files(tagger: Tagger, engine: Engine | None) -> Files[Embedding]:
        embed_files = (
            tagger.embedder(layers).embed_files
            if engine is None
            else functools.partial(engine.embed_files, tagger, layers)
        )
        return functools.partial(embed_files, settings=settings)

    done = run(given, layout(()), form, files)
    if output is not None and done.written and done.format != "parquet":
        write_origin(replace(done.origin, more=done.origin.more | {"partial": done.damaged}), output)
    if done.failed:
        raise typer.Exit(1)


def write_origin(origin: Origin, output: Path) -> None:
    """Write the metadata of vectors next to a file that cannot contain them: clips.npy.json for clips.npy."""
    from dymn.system.files import atomic_write

    if output.is_file():
        text = json.dumps(origin.to_dict(), indent=2, ensure_ascii=False) + "\n"
        with atomic_write(output.with_name(f"{output.name}.json")) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
