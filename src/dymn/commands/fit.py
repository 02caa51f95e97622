"""`dymn fit`: a custom classifier from labelled recordings, as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dymn.commands import options
from dymn.commands.datasets import check_data
from dymn.commands.options import DATA, WHAT, check_ending, file_option, hush, note, output_option, seconds_option

if TYPE_CHECKING:
    from dymn.errors import DymnError
    from dymn.fitting.fit import FitResult
    from dymn.fitting.labelled import Labelled
    from dymn.weights.format import Stored

LITTLE_FOUND = 0.4
MOST_NAMED = 3

Background = Annotated[
    list[Path] | None,
    typer.Option(
        "--background",
        "-b",
        metavar="PATH",
        help="Recordings without any of the classes, such as an hour from the place where the model will be used. "
        "Can be repeated.",
        rich_help_panel=DATA,
    ),
]
Add = Annotated[
    list[Path] | None,
    typer.Option(
        "--add",
        metavar="CSV",
        help="Answers from the page of `dymn review`. Can be repeated.",
        rich_help_panel=DATA,
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="The separator of labels in a row of a table; needed if labels contain commas.",
        rich_help_panel=DATA,
    ),
]
TrackWindow = Annotated[
    float,
    seconds_option(
        "Length of the windows of annotated recordings, which overlap by half. Clips are split as in `dymn tag`.",
        DATA,
        least=0.5,
    ),
]


def fit(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Labelled recordings: a folder with one folder of clips for each class, a table (.csv, .tsv), "
            "Raven selection tables or Audacity label tracks (.txt) next to their recordings, or a folder of these. "
            "Clips with the label or folder background, noise or other contain none of the classes.",
        ),
    ],
    output: Annotated[Path, output_option("The checkpoint to write, a .safetensors file.", None)],
    model: options.SingleModel = None,
    layer: Annotated[
        str,
        typer.Option(
            "--layer",
            "-l",
            metavar="LAYER",
            help="The input of the classifier: the hidden layer of the network's head (hidden), or the averaged "
            "last feature map (last). The default is hidden if the network has one.",
            rich_help_panel=WHAT,
        ),
    ] = "",
    softmax: Annotated[
        bool,
        typer.Option(
            "--softmax",
            help="Each clip has exactly one class, and background becomes a class. Without this option, a clip has "
            "any number of classes.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model's name. The default is the name of the file.", rich_help_panel=WHAT
        ),
    ] = None,
    background: Background = None,
    made: Annotated[
        bool,
        typer.Option(
            "--made-background/--no-made-background",
            help="Add silence, noise, hum, tones and clicks as background.",
            rich_help_panel=DATA,
        ),
    ] = True,
    general: Annotated[
        bool,
        typer.Option(
            "--general-background/--no-general-background",
            help="Add the background sounds included in dymn for dymn04_open (speech, music, machines, games), "
            "except those that may contain one of the classes. Not available for other models or with --softmax.",
            rich_help_panel=DATA,
        ),
    ] = True,
    add: Add = None,
    separator: Separator = None,
    window: TrackWindow = 3.0,
    plot: Annotated[
        Path | None, file_option("Draw the scores of held-out windows and the thresholds (.png, .pdf or .svg).", WHAT)
    ] = None,
    format: options.ReportFormat = "table",
    threads: options.Threads = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a classifier on your own recordings within seconds.

    The network computes embeddings and is not changed, except that its last layer is replaced by logistic
    regressions. The result is an ordinary checkpoint, for example for `dymn tag --model FILE`.

    Regularisation, metrics, calibration and thresholds are determined by cross-validation, which keeps the windows of
    a recording together. `--threshold auto` (best F1) and `--threshold precise` (few false alarms) of other commands
    use the thresholds.

    Recordings that cannot be read are listed and left out, and the exit code is 1. PyTorch is not needed.

    Example: `dymn fit clips --model dymn04_open --output mine.safetensors`.
    """
    hush(quiet)
    check_data(data, "DATA")
    check_ending("--output", output, [".safetensors"])
    if plot is not None:
        check_picture(plot)
    from dymn.commands.progress import counting_bar
    from dymn.fitting.fit import fit_checkpoint
    from dymn.weights.format import save

    labelled = gathered(data, background, add, separator, quiet)
    stored = open_named(model, quiet)
    with counting_bar("Embed", quiet) as progress:
        found = fit_checkpoint(
            stored,
            labelled,
            name=name or output.stem,
            layer=layer,
            exclusive=softmax,
            made=made,
            general=general,
            track_window=window,
            threads=threads,
            workers=threads_of(workers, threads),
            progress=progress,
        )
    save(found.stored, output)
    if plot is not None:
        draw(found, plot)
        note(f"{plot} was written.", quiet)
    print_errors(found.bad)
    _advise(found, quiet)
    typer.echo(as_json(found, output) if format == "json" else as_table(found, labelled, output))
    if found.bad:
        raise typer.Exit(1)


def gathered(
    data: Path,
    background: list[Path] | None,
    add: list[Path] | None,
    separator: str | None,
    quiet: bool,
    known: Sequence[str] = (),
) -> Labelled:
    """Return labelled recordings with background and answers; `known` as for `read_labelled`."""
    from dymn.fitting.labelled import read_answers, read_background, read_labelled

    for path in background or ():
        check_data(path, "--background")
    for path in add or ():
        check_data(path, "--add")
    labelled = read_labelled(data, separator=separator, known=known)
    more = [clip for path in background or [] for clip in read_background(path)]
    more += [clip for path in add or [] for clip in read_answers(path, labelled.labels)]
    if labelled.test:
        note(f"{labelled.test} test clips are left out; evaluate the model on them with `dymn evaluate`.", quiet)
    return labelled.adding(more)


def print_errors(bad: Mapping[str, DymnError]) -> None:
    """Write why recordings are left out, each reason once: two passages of a damaged file have the same."""
    for error in dict.fromkeys(map(str, bad.values())):
        typer.echo(f"dymn: {error}", err=True)


def threads_of(workers: int | None, threads: int | None) -> int:
    """Return how many threads decode: as given, or one per usable CPU."""
    from dymn.system.cpus import available_cpus

    return min(available_cpus(), threads or 64) if workers is None else workers


def open_named(model: str | None, quiet: bool) -> Stored:
    """Open the checkpoint that was named, or the default one, which a note then names."""
    from dymn.commands.datasets import check_model
    from dymn.commands.progress import download_bar
    from dymn.weights import open_checkpoint
    from dymn.weights.default import open_default

    with download_bar(quiet) as progress:
        if model is not None:
            check_model(model)
            return open_checkpoint(model, progress=progress)
        stored, reason = open_default(progress)
    note(reason, quiet)
    return stored


def check_picture(plot: Path) -> None:
    """Raise an error, before any work is done, if a picture cannot be drawn."""
    from dymn.plots.style import require

    check_ending("--plot", plot, options.PICTURES)
    require()


def draw(found: FitResult, plot: Path) -> None:
    """Draw the held-out scores of each class."""
    from dymn.plots.scores import ClassScores, plot_scores

    rows = []
    for k, one in enumerate(found.classes):
        use = found.examples.known[:, k]
        scores, positive = found.fitted.held_out[use, k], found.examples.targets[use, k]
        rows.append(ClassScores(one.label, scores, positive, one.thresholds.best, one.thresholds.precise))
    plot_scores(rows, plot)


def _advise(found: FitResult, quiet: bool) -> None:
    """Write notes on how to improve the classifier."""
    from dymn.data.catalog import NEGATIVES
    from dymn.fitting.thresholds import ENOUGH_HOURS

    if max(found.background_hours, found.counted_hours - found.background_hours) < ENOUGH_HOURS:  # each by itself
        note(
            f"The recorded background is {60 * found.background_hours:.1f} minutes long, too short to count false "
            "alarms: --threshold precise is the median score of each class, and detects half of its windows. Give "
            f"--background with at least {60 * ENOUGH_HOURS:.0f} minutes without the classes, preferably an hour.",
            quiet,
        )
    weak = [one for one in found.classes if one.thresholds.recall < LITTLE_FOUND and one.label not in NEGATIVES]
    for one in weak[:MOST_NAMED]:
        note(
            f"{one.label}: --threshold precise finds {one.thresholds.recall:.0%} of its windows. Of the windows "
            f"without it, {one.likeliest_wrong} has the highest score. Check by listening whether it contains the "
            "class.",
            quiet,
        )


def as_table(found: FitResult, labelled: Labelled, output: Path) -> str:
    """Return the figures as a table."""
    width = max(len("class"), *(len(one.label) for one in found.classes))
    lines = [f"{'class'.ljust(width)}  recordings  windows  AP      F1      auto   precise  (finds)"]
    for one in found.classes:
        limits = one.thresholds
        lines.append(
            f"{one.label.ljust(width)}  {one.recordings:10}  {one.windows:7}  {one.average_precision:.4f}  "
            f"{limits.f1:.4f}  {limits.best:.3f}  {limits.precise:.3f}    ({limits.recall:.0%})"
        )
    card = found.stored.card
    figures = ", ".join(f"{name} {value:.4f}" for name, value in card.metrics.items())
    clips = len(labelled.clips) + len(labelled.tracks) - len(found.bad)
    return "\n".join(
        [
            *lines,
            "",
            f"{figures}; {clips} recordings, C {found.fitted.c:g}, {found.fitted.folds} folds",
            f"{output} was written: {card.provenance['base'] or 'the network'} with a classifier of "
            f"{len(card.labels)} class{'' if len(card.labels) == 1 else 'es'}.",
        ]
    )


def as_json(found: FitResult, output: Path) -> str:
    """Return the figures as a JSON object."""
    card = found.stored.card
    classes = [one._asdict() | {"thresholds": one.thresholds._asdict()} for one in found.classes]
    about = {"output": str(output), "labels": card.labels, "metrics": card.metrics, "c": found.fitted.c}
    return json.dumps(
        about | {"classes": classes, "bad": {name: str(why) for name, why in found.bad.items()}}, indent=1
    )
