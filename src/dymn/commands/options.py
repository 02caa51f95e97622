"""Options that several commands share, older spellings of some, completion of values, and notes to the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from dymn.commands.ensembles import is_argument, with_ensembles
from dymn.commands.imports import import_module
from dymn.commands.wrong_use import plainly
from dymn.errors import ConfigError
from dymn.weights.ensembles import COMMANDS

WHAT, WINDOWS, DATA, RUN_PANEL = "Results", "Windows", "Data", "Computation"

PICTURES = (".png", ".pdf", ".svg")
"""The endings of pictures."""
PCM = ("s8", "u8", "s16le", "s16be", "s24le", "s32le", "s32be", "f32le", "f32be")
OLDER: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {
    "train": {("--out",): ("--output",)},
    "teach": {("--out",): ("--output",)},
    "listen": {("--json",): ("--format", "jsonl")} | {("--format", name): ("--encoding", name) for name in PCM},
}
"""By command, older spellings of options, which are accepted but not shown, and their present ones."""


class Command(TyperCommand):
    """A command with --import, which also accepts the older spellings of its options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        only = typer.Typer(add_completion=False)
        only.command()(_importing)
        self.params += typer.main.get_command(only).params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        words = list(respelled(args, OLDER.get(self.name or "", {})))
        if self.name in COMMANDS:
            words = with_ensembles(words, any(one.name == "model" for one in self.params if is_argument(one)))
        try:
            self._check_models(ctx, words)
            return super().parse_args(ctx, list(words))
        except Exception as error:
            if hasattr(error, "message"):  # typer's own, of wrong use
                error.message = plainly(error.message, getattr(getattr(error, "param", None), "opts", ()), words)
            raise

    def _check_models(self, ctx: Any, words: list[str]) -> None:
        """Raise a ConfigError if there are several --model, of which typer would take the last, where one is meant."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(words))
        given = [one for one in order if one.name == "model" and not (is_argument(one) or one.multiple)]
        if len(given) > 1:
            ensemble = "; for an ensemble, write --model A B" if self.name in COMMANDS else ""
            raise ConfigError(f"--model is given {len(given)} times. Give it once{ensemble}.")

    def invoke(self, ctx: Any) -> Any:
        """Run the command; whether warnings are shown is then as before.

        Notes and errors about recordings propose --gain, --band, --channel and --partial only if the command has them.
        """
        from dymn.audio.notes import without_advice

        logger = logging.getLogger("dymn")
        level = logger.level
        try:
            with without_advice(*(name for name in ("gain", "partial") if name not in ctx.params)):
                return super().invoke(ctx)
        finally:
            logger.setLevel(level)


def respelled(words: list[str], older: dict[tuple[str, ...], tuple[str, ...]]) -> Iterator[str]:
    """Yield words with older spellings of options replaced, also in the form `--option=value`, up to a `--`."""
    names = {spelling[0] for spelling in older}
    rest = list(words)
    while rest:
        if rest[0] == "--":
            yield from rest
            return
        name, has_value, value = rest[0].partition("=")
        if name in names and has_value:
            rest[:1] = [name, value]
        for spelling, present in older.items():
            if tuple(rest[: len(spelling)]) == spelling:
                yield from present
                del rest[: len(spelling)]
                break
        else:
            yield rest.pop(0)


def complete_models(incomplete: str) -> list[str]:
    """Return the names of models with weights that begin with what was typed."""
    from dymn.weights.registry import REGISTRY

    return [name for name in REGISTRY if name.startswith(incomplete)]


def complete_networks(incomplete: str) -> list[str]:
    """Return the names of models with weights and of architectures that begin with what was typed."""
    from dymn.architectures import architectures

    return [*complete_models(incomplete), *(name for name in architectures() if name.startswith(incomplete))]


def complete_recipes(incomplete: str) -> list[str]:
    """Return the names of recipes that begin with what was typed."""
    from dymn.training.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_labels(incomplete: str) -> list[str]:
    """Return the labels of AudioSet that begin with what was typed."""
    from dymn.weights.labels import audioset_labels

    return [label for label in audioset_labels() if label.startswith(incomplete)]


def check_ending(option: str, path: Path, endings: Iterable[str]) -> None:
    """Raise a ConfigError if a file to write has none of the extensions that an option allows."""
    allowed = list(endings)
    if path.suffix.lower() not in allowed:
        shown = ", ".join(ending or "none" for ending in allowed)
        raise ConfigError(f"{option} {path} has an unknown extension. Allowed: {shown}.")


def note_ending(option: str, path: Path, ending: str, quiet: bool) -> None:
    """Write a note where a file of the only possible format gets a name that ends otherwise."""
    if path.suffix.lower() not in (ending, ""):
        note(f"{option} {path} is written as a {ending} file, although its extension differs.", quiet)


def note_gaps(window: float, hop: float | None, quiet: bool) -> None:
    """Write a note where windows leave passages of a recording out."""
    if hop is not None and hop > window:
        note(
            f"--hop {hop:g} is longer than --window {window:g}: {hop - window:g} s between windows are not analysed.",
            quiet,
        )


Fill = Literal["repeat", "pad", "bare"]
Computes = Literal["auto", "compiled", "torch", "onnx"]
Precisions = Literal["float32", "bfloat16", "float16"]


def model_argument(help: str) -> Any:
    """Return the argument MODEL."""
    return typer.Argument(metavar="MODEL", autocompletion=complete_models, help=help)


def model_option(help: str, panel: str | None = None, complete: Callable[[str], list[str]] = complete_models) -> Any:
    """Return the option --model."""
    return typer.Option("--model", "-m", metavar="NAME|FILE", autocompletion=complete, help=help, rich_help_panel=panel)


def seconds_option(help: str, panel: str | None = None, least: float = 0.05, most: float | None = 600) -> Any:
    """Return an option in seconds."""
    return typer.Option(metavar="SECONDS", min=least, max=most, help=help, rich_help_panel=panel)


def number_option(help: str, panel: str | None = None, *names: str, least: int = 1, most: int | None = None) -> Any:
    """Return an option for a whole number, called by the parameter's name or by `names`."""
    return typer.Option(*names, metavar="NUMBER", min=least, max=most, help=help, rich_help_panel=panel)


def file_option(help: str, panel: str | None = None, *names: str) -> Any:
    """Return an option for a file, called by the parameter's name or by `names`."""
    return typer.Option(*names, metavar="FILE", help=help, rich_help_panel=panel)


def format_option(help: str, panel: str | None = WHAT) -> Any:
    """Return the option --format."""
    return typer.Option("--format", "-f", metavar="FORMAT", help=help, rich_help_panel=panel)


def output_option(help: str, panel: str | None = WHAT) -> Any:
    """Return the option --output."""
    return file_option(help, panel, "--output", "-o")


Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH",
        help="Recordings, folders (searched recursively) or patterns; - is standard input.",
        show_default=False,
    ),
]
_NAMED = "The name of a model with weights (`dymn models` lists them), or a file or folder that contains one."
_DEFAULT = (
    "The default is dymn10_as if it is in the cache or can be downloaded, otherwise dymn04_open, which is included in "
    "dymn."
)
Model = Annotated[
    str | None,
    model_option(
        f"{_NAMED} A+B is an ensemble of models; mn40_ensemble is the published ensemble of nine (49.8 mAP). {_DEFAULT}"
    ),
]
SingleModel = Annotated[str | None, model_option(f"{_NAMED} {_DEFAULT}")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        autocompletion=complete_labels,
        help='Use only these labels, such as "Dog" or "*music*". Repeat the option, or separate patterns by commas.',
        rich_help_panel=WHAT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        autocompletion=complete_labels,
        help="Leave out these labels; patterns as for --labels.",
        rich_help_panel=WHAT,
    ),
]


def threshold_option(help: str, panel: str) -> Any:
    """Return the option --threshold."""
    return typer.Option(
        "--threshold", "-t", metavar="FROM 0 TO 1|auto|precise", parser=threshold, help=help, rich_help_panel=panel
    )


def threshold(text: str | float) -> float | str:
    """Return a threshold of the command line: a probability, or the name of stored ones, or raise BadParameter."""
    from dymn.runtime.scores import check_threshold

    try:
        value: float | str = float(text)
    except ValueError:
        value = text
    try:
        check_threshold(value)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    return value


Threshold = Annotated[
    Any,
    threshold_option(
        "Report only labels with at least this probability. auto (best F1) and precise (few false alarms) use the "
        "thresholds per label that `dymn fit` and `dymn calibrate` store in a model.",
        WHAT,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="LAYER",
        help="The layers of the embedding: last (the averaged last feature map; the default), block0 to block14, "
        "blocks (all of them), blocks10-14 (a range), mels (averages of the mel bands). Repeat the option, or "
        "separate names by commas; layers are concatenated.",
        rich_help_panel=WHAT,
    ),
]
Segments = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Extract the results from the recordings as audio files, in one folder per label, with an index.csv. The "
        "folder must be new or empty.",
        rich_help_panel=WHAT,
    ),
]
SegmentsPerClass = Annotated[
    int | None,
    number_option(
        "Extract at most this many segments per label, those with the highest scores; 0 extracts all. The default is "
        "100.",
        WHAT,
        least=0,
    ),
]
WindowOption = Annotated[float, seconds_option("Length of a window. The networks were trained on 10 seconds.", WINDOWS)]
Hop = Annotated[
    float | None,
    seconds_option("Distance between the starts of two windows. By default, windows do not overlap.", WINDOWS),
]
Filling = Annotated[
    Fill,
    typer.Option(
        help="How a recording that is shorter than the window, or the remainder at its end, is filled: by repetition "
        "(repeat), with zeros (pad), or not at all (bare).",
        rich_help_panel=WINDOWS,
    ),
]
WindowBatch = Annotated[
    int | None, number_option("Number of windows per batch. The default is 4 on a CPU, 32 on other devices.", RUN_PANEL)
]
KindOption = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="The kind of the dataset, as in `dymn train`; auto detects it.",
        rich_help_panel=DATA,
    ),
]
ClipWorkers = Annotated[int, number_option("Number of processes that decode clips.", RUN_PANEL, least=0)]
ClipBatch = Annotated[int, number_option("Number of clips per batch.", RUN_PANEL)]
ClipFill = Annotated[
    Literal["pad", "repeat"] | None,
    typer.Option(
        help="How shorter clips are filled: with zeros (pad) or by repetition (repeat). The default is as in the "
        "model's training.",
        rich_help_panel=DATA,
    ),
]
ReportFormat = Annotated[Literal["table", "json"], format_option("table or json.", None)]
BackendOption = Annotated[
    Computes,
    typer.Option(
        help="What runs the network: compiled code for CPUs (compiled), PyTorch (torch), or ONNX Runtime (onnx), for a "
        "file from `dymn export --dynamic-time` or the name of a model that was exported without --output. auto "
        "selects compiled on a CPU, onnx for .onnx files, and torch otherwise.",
        rich_help_panel=RUN_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The device to compute on, such as cpu, cuda, cuda:1 or mps. The default is the first CUDA device, "
        "otherwise the CPU.",
        rich_help_panel=RUN_PANEL,
    ),
]
PrecisionOption = Annotated[
    Precisions,
    typer.Option(
        help="The number format of PyTorch's arithmetic. The 16-bit formats are for GPUs; they are slightly less "
        "accurate, and not faster for every network and batch size.",
        rich_help_panel=RUN_PANEL,
    ),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Read the intact parts of damaged recordings, before and after the damage, instead of rejecting them. "
        "A note reports each of them; JSON, CSV and Parquet of `dymn tag` and `dymn events` mark them.",
        rich_help_panel=RUN_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    number_option(
        "Number of CPU threads. The default is OMP_NUM_THREADS, otherwise the number of available CPUs.", RUN_PANEL
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors only, without progress bar and notes.", rich_help_panel=RUN_PANEL),
]
Workers = Annotated[
    int | None,
    number_option(
        "Number of threads that decode recordings while the network runs; 0 decodes and computes in turn. The "
        "default is the number of CPUs, at most --threads.",
        RUN_PANEL,
        least=0,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Compute with Ray (needs dymn\\[ray]): local starts it on this machine; auto and HOST:PORT connect to a "
        "cluster. Paths may then be URLs such as s3://bucket/clips. --workers is the number of processes that run "
        "the network, with --threads (default 1) each.",
        rich_help_panel=RUN_PANEL,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Start over instead of resuming an unfinished run.", rich_help_panel=RUN_PANEL),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Compute only the recordings that failed in the last run.",
        rich_help_panel=RUN_PANEL,
    ),
]


def _import_all(names: list[str] | None) -> None:
    for name in names or ():
        import_module(name)


def _importing(
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            callback=_import_all,
            is_eager=True,
            expose_value=False,
            help="Import a Python module, given by name or path, before anything else, for example with your own "
            "attention mechanisms or dataset kinds. The option can be repeated.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
) -> None:
    """Hold the option that every command gets."""


def hush(quiet: bool) -> None:
    """Suppress warnings of the library, if `quiet`, until the command ends (see `Command`)."""
    if quiet:
        logging.getLogger("dymn").setLevel(logging.ERROR)


def note(text: str, quiet: bool = False) -> None:
    """Write a line to standard error, unless `quiet`."""
    if not quiet:
        typer.echo(f"dymn: {text}", err=True)


@contextmanager
def resumable(quiet: bool, how: str = "The same command resumes the run.") -> Iterator[None]:
    """Write a note if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        note(how, quiet)
        raise
