"""`dymn review`: a page that asks about the recordings for which a model is least certain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dymn.commands import options
from dymn.commands.fit import threads_of
from dymn.commands.options import (
    WHAT,
    check_ending,
    hush,
    model_argument,
    note,
    note_gaps,
    number_option,
    output_option,
)
from dymn.commands.output import check_file
from dymn.errors import ConfigError


def review(
    model: Annotated[str, model_argument("The model, such as one from `dymn fit`: a name, a file or a folder.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Recordings, folders (searched recursively) or patterns.", show_default=False
        ),
    ],
    output: Annotated[Path, output_option("The page to write, an .html file.", None)],
    count: Annotated[int, number_option("Number of questions.", WHAT, "--count", "-n", most=200)] = 30,
    labels: options.Labels = None,
    exclude: options.Exclude = None,
    window: options.WindowOption = 10.0,
    hop: options.Hop = None,
    threads: options.Threads = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a page that asks about the windows for which a model is least certain: those closest to its thresholds.

    The page contains the audio and is self-contained. Answer with the keys y and n, and save the table that `dymn fit
    --add` trains on. The thresholds are those stored in the model (--threshold auto), or 0.5 if it has none.

    Recordings that cannot be read are listed and left out, and the exit code is 1.

    Example: `dymn review mine.safetensors recordings --output review.html`.
    """
    hush(quiet)
    check_ending("--output", output, [".html"])
    note_gaps(window, hop, quiet)
    from dymn.commands.progress import Bar
    from dymn.commands.recordings import load_tagger
    from dymn.fitting.review import doubts
    from dymn.inference.discovery import Discovery
    from dymn.inference.selection import TagSettings
    from dymn.plots.review_page import save_review

    settings = TagSettings(0, 0.0, tuple(labels or ()), tuple(exclude or ()), window, hop)
    if not paths:
        raise ConfigError("There are no recordings to review. Give recordings, folders or patterns after the model.")
    if "-" in paths:
        raise ConfigError("A review needs recordings that can be read again. Give files, not standard input.")
    check_file(output)
    with Discovery(paths, output) as discovery:
        found, lost = discovery.sorted(), [error for _, error in discovery.lost]
    tagger = load_tagger(model, "cpu", threads, quiet, "auto")
    with Bar(len(found), quiet=quiet) as bar:
        questions, bad = doubts(
            tagger.backend, found, settings, count=count, workers=threads_of(workers, threads), progress=bar.advance
        )
    questions, unread = save_review(questions, tagger.card.front_end, tagger.card.name or model, output)
    counts = {"question": len(questions), "recording": len({one.path for one in questions})}
    words = " about ".join(f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items())
    note(f"{output} was written: {words}.", quiet)
    errors = [*lost, *bad, *unread]
    for error in errors:
        typer.echo(f"dymn: {error}", err=True)
    if errors:
        raise typer.Exit(1)
