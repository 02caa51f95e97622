"""`dymn index`: an index of sounds, for `dymn search` and `dymn map`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from dymn.commands import options
from dymn.commands.options import hush, note_gaps
from dymn.commands.reading_options import FilesFrom, gathered
from dymn.errors import ConfigError


def index(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="INDEX",
            help="The folder of the index. If it exists, only new and changed recordings are computed, and "
            "recordings that the paths no longer include are removed.",
        ),
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Recordings, folders (searched recursively) or patterns.", show_default=False
        ),
    ] = None,
    files_from: FilesFrom = None,
    model: options.Model = None,
    layer: options.Layers = None,
    window: options.WindowOption = 5.0,
    hop: options.Hop = None,
    fill: options.Filling = "bare",
    partial: options.Partial = False,
    backend: options.BackendOption = "auto",
    device: options.Device = None,
    precision: options.PrecisionOption = "float32",
    threads: options.Threads = None,
    batch_size: options.WindowBatch = None,
    workers: options.Workers = None,
    fresh: options.Fresh = False,
    retry_failed: options.RetryFailed = False,
    quiet: options.Quiet = False,
) -> None:
    """Index recordings by their embeddings, so that `dymn search` can find similar sounds.

    Each window of a recording is an entry. An interrupted run is resumed by the same command; until it is complete,
    the previous index can be searched.

    Recordings that cannot be read are reported on standard error. The others are still indexed, and the exit code is 1.

    Example: `dymn index recordings -o recordings.index`.
    """
    from dymn.commands.progress import counting_bar
    from dymn.commands.recordings import describe, load_tagger
    from dymn.commands.runs import MANY, default_workers
    from dymn.commands.runs import fill as fill_journal
    from dymn.config import to_dict
    from dymn.inference import index as indexes
    from dymn.inference.discovery import Discovery
    from dymn.inference.embedding import EmbedSettings
    from dymn.inference.journal import Journal
    from dymn.runtime.layers import parse_layers

    hush(quiet)
    note_gaps(window, hop, quiet)
    indexes.new_graph(1)  # an error, before any work, if something is not installed
    given = gathered(paths, files_from)
    if any(path == "-" or "://" in path for path in given):
        raise ConfigError("An index needs recordings that can be read again. Give files on this machine.")
    check_folder(output)
    settings, layers = EmbedSettings(window, hop, fill, partial=partial), parse_layers(layer or "last")
    with Discovery(given, partial=partial) as discovery:
        if not discovery.any_readable():
            for _, error in discovery.errors(discovery.sorted()):
                typer.echo(f"dymn: {error}", err=True)
            raise typer.Exit(1)
        tagger = load_tagger(model, device, threads, quiet, backend, precision, looks_inside=layers != ("last",))
        embedder = tagger.embedder(layers)
        parameters = to_dict(settings) | {"hop": hop or window, "layers": list(embedder.layers)}
        origin = describe(tagger, model, parameters)
        about = {"model": model or origin.model, "digest": origin.digest, "parameters": origin.parameters}
        workers = default_workers(threads, MANY) if workers is None else workers
        files = functools.partial(embedder.embed_files, settings=settings, batch_size=batch_size, workers=workers)
        kept = {name: about[name] for name in ("digest", "parameters")} | {"size": embedder.size}
        try:
            journal = Journal(output / indexes.EMBEDDINGS, kept, fresh=fresh, retry=retry_failed)
        except ConfigError:
            indexes.check_model(output, model or origin.model, origin.digest)  # its message names the models
            raise
        with journal:
            fill_journal(journal, indexes.stored(embedder.size), discovery, files, quiet)
            counts = journal.counts()
            with counting_bar("Index", quiet) as progress:
                table = indexes.update(
                    journal,
                    output,
                    about,
                    embedder.size,
                    progress or (lambda done, total: None),
                    discovery.unlisted,
                )
    typer.echo(f"{output}: {len(table):,} windows of {len(table.recordings):,} recordings")
    if counts.failed or discovery.lost:
        raise typer.Exit(1)


def check_folder(folder: Path) -> None:
    """Raise a ConfigError if a folder contains anything but an index, complete or not."""
    from dymn.inference.index import EMBEDDINGS

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file. Give a folder for the index.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / f"{EMBEDDINGS}.journal").exists():
        raise ConfigError(f"--output {folder} is not an index, and not empty. Give a new folder.")
