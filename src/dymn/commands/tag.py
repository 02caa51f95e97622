"""`dymn tag`: which sounds are in recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from dymn.commands.options import RUN_PANEL, Device, Fresh, Quiet, RetryFailed, Threads, Workers, hush, note
from dymn.errors import AudioError, ConfigError, DymnError, WeightsError

if TYPE_CHECKING:
    from dymn.commands.progress import Bar
    from dymn.formats import Run
    from dymn.tagger import Recording, Tagger, TagSettings


WHAT, WHERE = "What to tell", "Windows"
MANY = 2**31
"""More recordings than there are CPUs."""


class Result(Protocol):
    """What became of a recording."""

    @property
    def name(self) -> str:
        """Its path as given."""

    @property
    def error(self) -> DymnError | None:
        """Why there is nothing else, or None."""


R = TypeVar("R", bound=Result)


class Format(str, Enum):
    """The keys of `dymn.formats.FORMATS` and `BINARY`."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    audacity = "audacity"
    parquet = "parquet"


class Fill(str, Enum):
    """The keys of `dymn.windows.FILLS`."""

    repeat = "repeat"
    pad = "pad"
    bare = "bare"


class Computes(str, Enum):
    """What can compute a network."""

    torch = "torch"
    onnx = "onnx"


class Combine(str, Enum):
    """The names in `dymn.selection.COMBINATIONS`."""

    max = "max"
    mean = "mean"


def tag(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Recordings, folders (searched with all folders in them), or globs; - is standard input.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FILE",
            help="A model with weights by its name (`dymn models` lists them), or a file or folder with one. Without it, dymn10_as is "
            "used if it is in the cache or can be fetched, and else dymn04_open, which comes with dymn.",
            show_default=False,
        ),
    ] = None,
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
    threshold: Annotated[
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
    ] = 0.0,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help='Choose only from these labels, such as "Dog" or "*music*". May be given several times, or with commas between.',
            rich_help_panel=WHAT,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave these labels out; patterns are as for --labels.", rich_help_panel=WHAT),
    ] = None,
    per_window: Annotated[
        bool,
        typer.Option("--per-window", help="Tell the labels of each window, with its start and end.", rich_help_panel=WHAT),
    ] = False,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="How to write the answer: table, json, jsonl, csv, parquet (needs dymn\\[parquet]) or audacity. Without it the ending "
            "of --output decides (.json, .jsonl, .csv, .parquet), and else it is a table. The format audacity is a label track of the "
            "windows; give a --threshold with it.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to this file, which appears when it is complete. Until then, with json, jsonl, csv and parquet, a journal lies "
            "beside it, and the same command goes on after any interruption. Audacity labels of several recordings go to a folder.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Draw the spectrogram and when its labels are there: a picture (.png, .svg, .pdf), or a page with the sound (.html). For "
            "several recordings a folder, which gets a .png for each.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            min=0.05,
            max=600,
            metavar="SECONDS",
            help="How much the network hears at once. It was trained on 10 seconds.",
            rich_help_panel=WHERE,
        ),
    ] = 10.0,
    hop: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=600,
            metavar="SECONDS",
            help="From the start of one window to the next. Without it, windows follow each other without overlap.",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    fill: Annotated[
        Fill,
        typer.Option(
            help="What a recording, or the rest at its end, that is shorter than the window is filled up with: itself again (repeat), "
            "zeros (pad), or nothing (bare).",
            rich_help_panel=WHERE,
        ),
    ] = Fill.repeat,
    combine: Annotated[
        Combine,
        typer.Option(
            help="How windows make the answer for a recording: each label's highest probability (is it anywhere?), or its mean over time.",
            rich_help_panel=WHERE,
        ),
    ] = Combine.max,
    backend: Annotated[
        Computes,
        typer.Option(
            "--backend",
            help="What computes the network: PyTorch, or ONNX Runtime, which starts sooner. The latter takes a file that `dymn export` "
            "wrote, or the name of a model that was exported without --output.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = Computes.torch,
    device: Device = None,
    threads: Threads = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="How many windows to compute at once. Without it, 4 on a CPU and 32 elsewhere.",
            rich_help_panel=RUN_PANEL,
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    fresh: Fresh = False,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Tell which sounds are in recordings.

    Each recording gets its most probable labels. One of more than ten seconds is cut into windows; --per-window tells what is when.

    Recordings that cannot be read are named on standard error, in JSON, CSV and Parquet, and in a report beside --output. The others are
    still tagged, and the exit code is 1.
    """
    from dymn.bulk import tags
    from dymn.commands.bulk import Bulk, keeps_journal, run_bulk
    from dymn.commands.output import binary_output
    from dymn.commands.plot import check_plot, draw
    from dymn.commands.progress import progress_bar
    from dymn.formats import BINARY, FORMATS, ROWS, choose, write_file
    from dymn.recordings import source_name
    from dymn.tagger import TagSettings

    hush(quiet)
    settings = TagSettings(top_k, threshold, tuple(labels or ()), tuple(exclude or ()), window, hop, fill.value, combine.value)
    name = choose(format.value if format else None, output)
    load = partial(load_onnx, model, device, threads) if backend is Computes.onnx else partial(load_tagger, model, device, threads, quiet)
    if keeps_journal(output, name in ROWS and plot is None, paths, fresh, retry_failed):
        check_output(output, name, ())
        tagger = load()
        run = describe(tagger, model or "", settings, per_window)
        if workers is None:
            workers = default_workers(threads, MANY)
        work = partial(tagger.tag_files, settings=settings, batch_size=batch_size, workers=workers)
        origin = run.to_dict() | {"backend": backend.value}
        bulk = Bulk("tag", tags(per_window), work, partial(write_file, run, name), origin)
        run_bulk(bulk, paths, output, fresh, retry_failed, quiet)
        return
    found, failed = find(paths)
    check_output(output, name, found)
    if plot is not None:
        check_plot(plot, found)
    tagger = load()
    bar = progress_bar(len(found), quiet)
    recordings = tagger.tag_files(
        found,
        settings,
        batch_size=batch_size,
        workers=default_workers(threads, len(found)) if workers is None else workers,
        progress=follower(bar) if bar.visible else None,
    )
    failures = Failures()
    run = describe(tagger, model or "", settings, per_window)
    reported = failures.reported(chain(failed, bar.over(recordings)))
    if name in BINARY:
        with binary_output(output) as file:
            write_file(run, name, reported, file)
    else:
        write(reported, run, FORMATS[name], output, separately=name == "audacity" and len(found) > 1)
    if plot is not None:
        shown = [path for path in found if source_name(path) not in failures.names]
        failures.count += draw(tagger, shown, plot, single=len(found) == 1, settings=settings, quiet=quiet)
    if failures.count:
        raise typer.Exit(1)


def find(paths: Sequence[str]) -> tuple[list[Path], list[Recording]]:
    """Return the recordings that paths name, in the order of the paths, and failures for those that name none."""
    from dymn import audio
    from dymn.tagger import Recording

    found: dict[str, Path] = {}
    failed = []
    for path in paths:
        try:
            found |= {str(item if str(item) == "-" else item.absolute()): item for item in audio.find(path)}
        except AudioError as error:
            failed.append(Recording(path, error=error))
    return list(found.values()), failed


def check_output(output: Path | None, name: str, found: Sequence[Path]) -> None:
    """Refuse, before any work is done, an output that cannot be written or would overwrite a recording.

    Raises:
        ConfigError: the message says what to give instead.
    """
    if name == "audacity" and len(found) > 1 and (output is None or (output.exists() and not output.is_dir())):
        raise ConfigError(
            f"A label track belongs to one recording, and there are {len(found)}. Give a folder as --output, for one file each."
        )
    if output is None:
        return
    if output.is_dir() and not (name == "audacity" and len(found) > 1):
        raise ConfigError(f"--output {output} is a folder. Give the name of a file to write to.")
    if output.exists() and any(path.exists() and path.samefile(output) for path in found):
        raise ConfigError(f"--output {output} is one of the recordings. Give another file to write to.")


def default_workers(threads: int | None, recordings: int) -> int:
    """Return how many threads decode: one a CPU that may be used, and no more than there are recordings or threads asked for."""
    from dymn.cpus import available_cpus

    return max(1, min(available_cpus(), recordings, threads or recordings))


def load_tagger(model: str | None, device: str | None, threads: int | None, quiet: bool) -> Tagger:
    """Load the model that was named, or the default one, and say which that is."""
    from dymn.commands.progress import download_bar
    from dymn.devices import resolve_device, use_threads
    from dymn.tagger import Tagger
    from dymn.weights import REGISTRY, load_model
    from dymn.weights.default import load_default

    resolve_device(device)
    use_threads(threads)
    with download_bar(quiet) as progress:
        if model is None:
            default = load_default(progress=progress)
        elif model in REGISTRY or "/" in model or Path(model).exists():
            return Tagger(load_model(model, progress=progress), device)
        else:
            try:
                return Tagger(load_model(model, progress=progress), device)
            except WeightsError as error:
                raise ConfigError(str(error)) from error
    note(default.reason, quiet)
    return Tagger(default.model, device)


def load_onnx(model: str | None, device: str | None, threads: int | None) -> Tagger:
    """Open an exported model for ONNX Runtime, without PyTorch."""
    from dymn.onnx_backend import SHIPPED
    from dymn.tagger import Tagger

    if device not in (None, "cpu"):
        raise ConfigError(f"--device is {device!r}; with --backend onnx only cpu is possible.")
    try:
        return Tagger.from_onnx(model or SHIPPED, threads)
    except WeightsError as error:
        raise ConfigError(str(error)) from error


def describe(tagger: Tagger, model: str, settings: TagSettings, per_window: bool) -> Run:
    """Return what is written beside the tags, so that they can be made again."""
    from dymn import __version__
    from dymn.config import to_dict
    from dymn.formats import Run

    card = tagger.card
    parameters = to_dict(settings) | {"hop": settings.hop or settings.window}
    digest = str(card.provenance.get("sha256", ""))
    return Run(__version__, card.name or model, digest, parameters, per_window)


def follower(bar: Bar) -> Callable[[str, float], None]:
    """Return a function that moves the bar on, by recordings and by the seconds that are done of the present one."""
    from dymn import audio

    lengths: dict[str, float | None] = {}

    def follow(name: str, seconds: float) -> None:
        if name not in lengths:
            try:
                lengths[name] = None if name == "-" else audio.probe(name).seconds
            except AudioError:
                lengths[name] = None
        length = lengths[name]
        bar.update(len(lengths) - 1 + (min(1.0, seconds / length) if length else 0.0), Path(name).name)

    return follow


class Failures:
    """Recordings that could not be tagged: said as they come, and counted."""

    def __init__(self) -> None:
        self.count = 0
        self.names: set[str] = set()

    def reported(self, recordings: Iterable[R]) -> Iterator[R]:
        """Yield the recordings, after a message on standard error for each that failed."""
        for recording in recordings:
            if recording.error is not None:
                self.count += 1
                self.names.add(recording.name)
                typer.echo(f"dymn: {recording.error}", err=True)
            yield recording


def write(
    recordings: Iterable[R], run: Run, writer: Callable[[Iterable[R], Run], Iterator[str]], output: Path | None, separately: bool
) -> None:
    """Write recordings as `writer` puts them to a file or standard output, or separately to files in a folder."""
    from dymn.commands.output import free_name, text_output

    if separately and output is not None:
        used: set[str] = set()
        for recording in recordings:
            if recording.error is None:
                path = output / free_name(f"{Path(recording.name).stem}.txt", used)
                with text_output(path) as stream:
                    stream.writelines(writer([recording], run))
        return
    with text_output(output) as stream:
        plain = "utf" not in (stream.encoding or "").lower()
        stream.writelines(writer(recordings, dataclasses.replace(run, plain=plain)))
