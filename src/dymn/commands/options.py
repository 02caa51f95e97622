"""Options that several commands share, and notes to the user."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

RUN_PANEL = "How to run"

Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute, such as cpu, cuda, cuda:1 or mps. Without it, the first CUDA device if there is one, else the CPU.",
        rich_help_panel=RUN_PANEL,
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="NUMBER",
        min=1,
        help="How many CPU threads to compute with. Without it, PyTorch decides, within the CPUs that may be used.",
        rich_help_panel=RUN_PANEL,
        show_default=False,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Write no progress bar and no notes, only errors.", rich_help_panel=RUN_PANEL),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        metavar="NUMBER",
        help="How many threads decode recordings while the network computes; 0 does one after the other. Without it, as many as "
        "there are CPUs, but no more than --threads.",
        rich_help_panel=RUN_PANEL,
        show_default=False,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Start over where the same command would go on with a run that did not end.", rich_help_panel=RUN_PANEL),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Try the recordings again that failed in the run before; those that were done then stay done.",
        rich_help_panel=RUN_PANEL,
    ),
]


def hush(quiet: bool) -> None:
    """Keep warnings of the library off standard error, if `quiet`."""
    if quiet:
        logging.getLogger("dymn").setLevel(logging.ERROR)


def note(text: str, quiet: bool = False) -> None:
    """Write a line to standard error, unless `quiet`."""
    if not quiet:
        typer.echo(f"dymn: {text}", err=True)
