"""Options that several commands share, and notes to the user."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

import typer

WHAT, WINDOWS, DATA, RUN_PANEL = "What to tell", "Windows", "Data", "How to run"


Fill = Literal["repeat", "pad", "bare"]
Computes = Literal["auto", "torch", "onnx"]
Precisions = Literal["float32", "bfloat16", "float16"]
Report = Literal["table", "json"]


def seconds_option(help: str, panel: str | None = None, least: float = 0.05, most: float | None = 600) -> Any:
    """Return an option in seconds."""
    return typer.Option(metavar="SECONDS", min=least, max=most, help=help, rich_help_panel=panel)


def format_option(help: str, panel: str | None = WHAT) -> Any:
    """Return the option --format."""
    return typer.Option("--format", "-f", metavar="FORMAT", help=help, rich_help_panel=panel)


def output_option(help: str, panel: str | None = WHAT) -> Any:
    """Return the option --output."""
    return typer.Option("--output", "-o", metavar="FILE", help=help, rich_help_panel=panel)


Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help="Recordings, folders (searched with all folders in them), or globs; - is standard input."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FILE",
        help="A model with weights by its name (`dymn models` lists them), or a file or folder with one. Without it, dymn10_as is used if "
        "it is in the cache or can be fetched, and else dymn04_open, which comes with dymn.",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help='Choose only from these labels, such as "Dog" or "*music*". May be given several times, or with commas between.',
        rich_help_panel=WHAT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave these labels out; patterns are as for --labels.", rich_help_panel=WHAT),
]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold",
        "-t",
        metavar="FROM 0 TO 1",
        min=0,
        max=1,
        help="Give only labels with at least this probability.",
        rich_help_panel=WHAT,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="LAYER",
        help="What embeddings are made of: last (the averaged last feature map), block0 to block14, blocks (all of them), blocks10-14 "
        "(some), mels (averages of the mel bands). May be given several times, or with commas between; the parts are concatenated. "
        "Without it, last.",
        rich_help_panel=WHAT,
    ),
]
Window = Annotated[float, seconds_option("How much the network hears at once. It was trained on 10 seconds.", WINDOWS)]
Hop = Annotated[
    float | None,
    seconds_option("From the start of one window to the next. Without it, windows follow each other without overlap.", WINDOWS),
]
Filling = Annotated[
    Fill,
    typer.Option(
        help="What a recording, or the rest at its end, that is shorter than the window is filled up with: itself again (repeat), zeros "
        "(pad), or nothing (bare).",
        rich_help_panel=WINDOWS,
    ),
]
WindowBatch = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="NUMBER",
        help="How many windows to compute at once. Without it, 4 on a CPU and 32 elsewhere.",
        rich_help_panel=RUN_PANEL,
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind", metavar="KIND", help="What the data are, as for `dymn train`; auto lets their files tell.", rich_help_panel=DATA
    ),
]
ClipWorkers = Annotated[
    int, typer.Option("--workers", metavar="NUMBER", min=0, help="How many processes decode.", rich_help_panel=RUN_PANEL)
]
ClipBatch = Annotated[
    int, typer.Option("--batch-size", metavar="NUMBER", min=1, help="How many clips at a time.", rich_help_panel=RUN_PANEL)
]
ReportFormat = Annotated[Report, format_option("How to write the answer: table or json.", None)]
Backend = Annotated[
    Computes,
    typer.Option(
        "--backend",
        help="What computes the network. auto is compiled code, which starts at once, where it has been made ready (the first run with a "
        "model does that) and does all that is asked for on this machine's CPU, and PyTorch (torch) elsewhere. ONNX Runtime (onnx) takes a "
        "file that `dymn export --dynamic-time` wrote, or the name of a model that was exported without --output.",
        rich_help_panel=RUN_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute, such as cpu, cuda, cuda:1 or mps. Without it, the first CUDA device if there is one, else the CPU.",
        rich_help_panel=RUN_PANEL,
    ),
]
Precision = Annotated[
    Precisions,
    typer.Option(
        "--precision",
        help="How exactly PyTorch computes the network: the two of 16 bits are for GPUs, quicker there, and change the numbers a little.",
        rich_help_panel=RUN_PANEL,
    ),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Read what can be read of damaged recordings, up to the damage and behind it, instead of refusing them. They are marked in "
        "JSON, CSV and Parquet.",
        rich_help_panel=RUN_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="NUMBER",
        min=1,
        help="How many CPU threads to compute with. Without it, one for each CPU that may be used, or what OMP_NUM_THREADS says.",
        rich_help_panel=RUN_PANEL,
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
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Do it with Ray (needs dymn\\[ray]): local starts it on this machine, auto and HOST:PORT find a cluster. Paths may then be "
        "URLs such as s3://bucket/clips, and --workers says how many processes hold the network, each with --threads, 1 without it.",
        rich_help_panel=RUN_PANEL,
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
