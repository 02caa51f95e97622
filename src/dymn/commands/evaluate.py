"""`dymn evaluate`: the metrics of a model on a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dymn.commands import event_options, options
from dymn.commands.datasets import check_data, check_model
from dymn.commands.options import (
    DATA,
    check_ending,
    file_option,
    hush,
    model_argument,
    note,
    note_ending,
    number_option,
    seconds_option,
)
from dymn.commands.output import aligned, note_new_folder
from dymn.errors import ConfigError
from dymn.system.files import json_values

if TYPE_CHECKING:
    from dymn.evaluation.assess import Assessment


def evaluate(
    model: Annotated[
        str,
        model_argument(
            "The name of a model with weights, or a file or folder that contains one, such as "
            "runs/mn04_as/best.safetensors. A+B is an ensemble of models."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option("--data", "-d", metavar="PATH", help="The dataset, as for `dymn train`.", rich_help_panel=DATA),
    ],
    kind: options.KindOption = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The split: test, val, train or all. The default is test or, if there are no test clips, all.",
            rich_help_panel=DATA,
        ),
    ] = None,
    fold: Annotated[
        int | None, number_option("The fold to use as the test set, for datasets with folds.", DATA)
    ] = None,
    seconds: Annotated[
        float | None, seconds_option("Length of a window. The default is the length used in training.", DATA)
    ] = None,
    fill: options.ClipFill = None,
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole/--no-whole",
            help="Whether clips of up to a minute are evaluated in one window. The default is as in the model's "
            "training or, if it is unknown, as in the dataset's protocol.",
            rich_help_panel=DATA,
        ),
    ] = None,
    workers: options.ClipWorkers = 0,
    batch_size: options.ClipBatch = 16,
    per_class: Annotated[
        Path | None,
        file_option(
            "Write the metrics of each class to this CSV file: average precision, ROC-AUC, numbers of clips, "
            "precision, recall and F1. With --events: numbers of events, precision, recall, F1 and PSDS.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None, file_option("Write the probabilities of each clip to this CSV file.", None)
    ] = None,
    confusion: Annotated[
        Path | None,
        file_option(
            "Write the confusion matrix to this CSV file, or draw it (.png, .pdf, .svg), for exclusive classes.", None
        ),
    ] = None,
    events: Annotated[
        bool,
        typer.Option(
            "--events",
            help="Evaluate the events that `dymn events` reports. The data are recordings with Raven selection tables "
            "or Audacity label tracks in the same folder, or a table with the columns path, start, end and label "
            "(needs dymn\\[sed]).",
            rich_help_panel=event_options.WHEN,
        ),
    ] = False,
    collar: Annotated[
        float | None,
        seconds_option(
            "Tolerance for the start and end of an event. For the end, it is at least half of the event's length. The "
            "default is 0.5.",
            event_options.WHEN,
        ),
    ] = None,
    method: event_options.EventMethod = None,
    threshold: event_options.EventThreshold = None,
    off_threshold: event_options.OffThreshold = None,
    median: event_options.Median = None,
    min_gap: event_options.MinGap = None,
    min_duration: event_options.MinDuration = 0.0,
    format: options.ReportFormat = "table",
    device: options.Device = None,
    precision: options.PrecisionOption = "float32",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a model on a dataset: mAP, ROC-AUC, d' and F1 for tags, accuracy and F1 for exclusive classes.

    Whole recordings are evaluated, in windows whose probabilities are averaged.

    Classes of the model and the dataset are matched by name; the model may have more classes.

    Classes without a positive clip are listed and excluded from the means.

    With --events, events are evaluated instead: F1 of events and of seconds, and PSDS, for the labels that the model
    and the annotations have in common.

    Example: `dymn evaluate runs/mn04_as/best.safetensors --data clips --per-class classes.csv`.
    """
    hush(quiet)
    check_events(events, {
        "--collar": collar, "--method": method, "--threshold": threshold, "--off-threshold": off_threshold,
        "--median": median, "--min-gap": min_gap, "--min-duration": min_duration or None,
    }, {
        "--split": split, "--fold": fold, "--seconds": seconds, "--fill": fill, "--whole": whole,
        "--predictions": predictions, "--confusion": confusion,
    })  # fmt: skip
    if per_class is not None:
        note_ending("--per-class", per_class, ".csv", quiet)
    if confusion is not None:
        check_ending("--confusion", confusion, [*options.PICTURES, ".csv"])
    draws = confusion is not None and confusion.suffix.lower() in options.PICTURES
    if draws:
        from dymn.plots.style import require

        require()
    for path in filter(None, (per_class, predictions, confusion)):
        note_new_folder(path)
    check_data(data, "--data")
    if events:
        from dymn.commands.event_scores import evaluate_events
        from dymn.commands.recordings import load_tagger
        from dymn.evaluation.events import COLLAR
        from dymn.inference.events import EventSettings

        settings = EventSettings(
            method, threshold=threshold, off_threshold=off_threshold, median=median, min_gap=min_gap,
            min_duration=min_duration,
        )  # fmt: skip
        tagger = load_tagger(model, device, threads, quiet, "auto", precision)
        width = COLLAR if collar is None else collar
        evaluate_events(
            tagger, model, data, kind, settings, width, per_class, format, batch_size, workers, quiet
        )  # fmt: skip
        return
    from dymn.commands.progress import counting_bar
    from dymn.evaluation.assess import assess, write_predictions
    from dymn.evaluation.metrics import write_confusion, write_per_class
    from dymn.system.devices import use_threads

    network = load(model, device, quiet)
    use_threads(threads)
    with counting_bar("Evaluate", quiet) as progress:
        found = assess(
            network,
            data,
            kind=kind,
            split=split,
            fold=fold,
            seconds=seconds,
            fill=fill,
            whole=whole,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
            progress=progress,
        )
    if per_class is not None:
        write_per_class(per_class, found.labels, found.per_class, found.answers)
    if predictions is not None:
        write_predictions(predictions, found)
    if confusion is not None:
        if found.confusion is None:
            raise ConfigError(
                f"--confusion needs mutually exclusive classes; the clips of {data} may have several labels."
            )
        if draws:
            from dymn.plots.confusion import plot_confusion

            plot_confusion(found.labels, found.confusion, confusion, network.card.name)
        else:
            write_confusion(confusion, found.labels, found.confusion)
    if found.split == "all":
        note(
            "There is no test set, so all clips were evaluated, which may include training clips of the model.",
            quiet or split == "all",
        )
    typer.echo(as_json(found, model, data) if format == "json" else as_table(found))


def check_events(events: bool, own: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise a ConfigError for options of events without --events, and for those of clips with it."""
    for option, value in (others if events else own).items():
        if value is not None:
            raise ConfigError(
                f"{option} applies to clips, but --events evaluates events. Leave one of them out."
                if events
                else f"{option} applies to events. Add --events, or leave it out."
            )


def load(name: str, device: str | None, quiet: bool) -> Any:
    """Load a model, or an ensemble such as "A+B", with a bar if it is downloaded."""
    from dymn.commands.progress import download_bar
    from dymn.evaluation.assess import as_ensemble
    from dymn.system.devices import resolve_device
    from dymn.weights import load_model
    from dymn.weights.ensembles import ENSEMBLES, members

    place = resolve_device(device)
    names = members(name)
    for member in names:
        check_model(member)
    with download_bar(quiet) as progress:
        networks = [load_model(member, device=place, progress=progress) for member in names]
    return networks[0] if len(networks) == 1 else as_ensemble(networks, name if name in ENSEMBLES else "")


def as_table(found: Assessment) -> str:
    """Return the figures as a table."""
    from dymn.commands.epochs import FIGURES, figure

    rows = [
        ("data", found.kind if found.split == "all" else f"{found.kind}, {found.split}"),
        ("clips", str(found.figures["clips"])),
    ]
    if found.bad:
        rows.append(("left out", f"{len(found.bad)} clips that cannot be read, such as {next(iter(found.bad))}"))
    rows += [(name, figure(name, found.figures[name])) for name in FIGURES if name in found.figures]
    by_device = found.figures.get("accuracy_by_device", {})
    rows += [(f"  device {device}", figure("accuracy", value)) for device, value in by_device.items()]
    absent = [found.labels[i] for i in found.figures.get("without_positives", [])]
    if absent:
        listed = ", ".join(absent[:5]) + (" and others" if len(absent) > 5 else "")
        rows.append(("left out", f"{len(absent)} of {len(found.labels)} classes, without a positive clip: {listed}"))
    return "\n".join(aligned(rows))


def as_json(found: Assessment, model: str, data: Path) -> str:
    """Return the figures as a JSON object; one that is not defined is null."""
    values = dict(found.figures)
    if "without_positives" in values:
        values["without_positives"] = [found.labels[i] for i in found.figures["without_positives"]]
    about = {"model": model, "data": str(data), "kind": found.kind, "split": found.split}
    return json.dumps(json_values(about | values | {"bad": found.bad}), indent=1, ensure_ascii=False)
