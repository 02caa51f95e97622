"""`dymn calibrate`: calibrated probabilities and thresholds in a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dymn.commands import fit, options
from dymn.commands.datasets import check_data
from dymn.commands.fit import check_picture, gathered, open_named, print_errors, threads_of
from dymn.commands.options import DATA, WHAT, check_ending, file_option, hush, model_argument, note, output_option

if TYPE_CHECKING:
    from dymn.config import ModelCard
    from dymn.fitting.calibrate import Calibrated

MOST_SHOWN = 40
MOST_NAMED = 5
LEAST_CHANGE = 0.0005  # of a threshold, with three digits


def calibrate(
    model: Annotated[str, model_argument("The name of a model with weights, or a file or folder that contains one.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Labelled recordings, as for `dymn fit`. The model must have all of their labels and may have more.",
            rich_help_panel=DATA,
        ),
    ],
    output: Annotated[Path, output_option("The checkpoint to write, a .safetensors file.", None)],
    background: fit.Background = None,
    add: fit.Add = None,
    separator: fit.Separator = None,
    window: fit.TrackWindow = 3.0,
    plot: Annotated[
        Path | None, file_option("Draw a reliability diagram, before and after calibration (.png, .pdf or .svg).", WHAT)
    ] = None,
    format: options.ReportFormat = "table",
    threads: options.Threads = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Calibrate a model's probabilities on your recordings, and determine thresholds for each class.

    The logits of each class are scaled and shifted, which is folded into the model's last layer. --threshold auto and
    precise of other commands use the thresholds.

    The calibration error before and after, and the thresholds, are measured on held-out recordings. If the error would
    increase, because there are too few recordings, the probabilities are not changed, and a note is printed. Another
    note names thresholds that the model already has and that are replaced. Use recordings that the model was not
    trained on.

    Example: `dymn calibrate mine.safetensors --data other_clips --output calibrated.safetensors`.
    """
    hush(quiet)
    check_data(data, "--data")
    check_ending("--output", output, [".safetensors"])
    if plot is not None:
        check_picture(plot)
    from dymn.commands.progress import counting_bar
    from dymn.fitting.calibrate import calibrate as compute
    from dymn.weights.format import save

    stored = open_named(model, quiet)
    labelled = gathered(data, background, add, separator, quiet, stored.card.labels)
    with counting_bar("Embed", quiet) as progress:
        found = compute(
            stored, labelled, track_window=window, threads=threads, workers=threads_of(workers, threads),
            progress=progress,
        )  # fmt: skip
    save(found.stored, output)
    if found.attempted > found.before.error:
        note(
            f"On held-out recordings ({found.windows} windows), calibration would increase the error from "
            f"{found.before.error:.4f} to {found.attempted:.4f}. Only the thresholds are new; the probabilities are "
            "not changed. To calibrate them, label more recordings.",
            quiet,
        )
    if changed := changes(stored.card, found):
        note(
            f"The thresholds stored in {stored.card.name or model} are replaced by those of these recordings. Changed "
            f"most: {', '.join(changed[:MOST_NAMED])}.",
            quiet,
        )
    print_errors(found.bad)
    if plot is not None:
        from dymn.plots.reliability import plot_reliability

        plot_reliability(found.before, found.after, plot)
        note(f"{plot} was written.", quiet)
    typer.echo(as_json(found, output) if format == "json" else as_table(found, output))
    if found.bad:
        raise typer.Exit(1)


def changes(old: ModelCard, found: Calibrated) -> list[str]:
    """Return which stored thresholds are replaced, as "label auto 0.380 to 0.030", largest change first."""
    from dymn.errors import ConfigError, WeightsError, visible
    from dymn.runtime.scores import THRESHOLDS, thresholds_of

    replaced: list[tuple[float, str]] = []
    measured = {one.label for one in found.classes if one.thresholds is not None}
    for name in THRESHOLDS:
        try:
            pairs = zip(old.labels, thresholds_of(old, name), thresholds_of(found.stored.card, name), strict=True)
        except (ConfigError, WeightsError):  # none, or invalid ones
            continue
        replaced += [
            (abs(b - a), f"{visible(label)} {name} {a:.3f} to {b:.3f}") for label, a, b in pairs if label in measured
        ]
    return [text for change, text in sorted(replaced, key=lambda one: -one[0]) if change >= LEAST_CHANGE]


def as_table(found: Calibrated, output: Path) -> str:
    """Return the figures as a table."""
    width = max(len("class"), *(len(one.label) for one in found.classes))
    lines = [f"{'class'.ljust(width)}  windows  slope   offset  auto   precise"]
    for one in found.classes[:MOST_SHOWN]:
        limits = one.thresholds
        tail = "" if limits is None else f"  {limits.best:.3f}  {limits.precise:.3f}"
        lines.append(
            f"{one.label.ljust(width)}  {one.positives:7}  {one.affine.slope:5.2f}  {one.affine.offset:7.2f}{tail}"
        )
    if len(found.classes) > MOST_SHOWN:
        lines.append(f"and {len(found.classes) - MOST_SHOWN} more; --format json prints all")
    error = f"Calibration error {found.before.error:.4f} before, {found.after.error:.4f} after"
    return "\n".join([*lines, "", f"{error}, on {found.windows} windows.", f"{output} was written."])


def as_json(found: Calibrated, output: Path) -> str:
    """Return the figures as a JSON object."""
    classes = [
        {
            "label": one.label,
            "windows": one.positives,
            "slope": one.affine.slope,
            "offset": one.affine.offset,
            "thresholds": None if one.thresholds is None else one.thresholds._asdict(),
        }
        for one in found.classes
    ]
    about = {
        "output": str(output),
        "windows": found.windows,
        "bad": {name: str(why) for name, why in found.bad.items()},
    }
    errors = {"error_before": found.before.error, "error_after": found.after.error}
    return json.dumps(about | errors | {"classes": classes}, indent=1, ensure_ascii=False)
