"""`dymn probe`: how well a linear model classifies embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dymn.commands import options
from dymn.commands.datasets import check_data
from dymn.commands.options import (
    DATA,
    PICTURES,
    WHAT,
    check_ending,
    file_option,
    hush,
    note,
    number_option,
    seconds_option,
)
from dymn.commands.output import aligned
from dymn.commands.recordings import load_tagger
from dymn.errors import ConfigError, visible
from dymn.system.files import json_values

if TYPE_CHECKING:
    from dymn.evaluation.probe import Probed
    from dymn.inference.embedding import Embedder

MOST_CONFUSIONS = 3
FEW_CLIPS = 100


def probe(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="The dataset, as for `dymn train`: a folder with one folder of clips per class, a CSV table, tar "
            "shards, or a dataset in its published layout.",
        ),
    ],
    model: options.Model = None,
    layer: options.Layers = None,
    seconds: Annotated[
        float | None,
        seconds_option(
            "Use only this much of the beginning of each clip. The embedding of more than ten seconds is a mean "
            "over windows.",
            WHAT,
        ),
    ] = None,
    fill: Annotated[
        options.Fill,
        typer.Option(
            help="How clips shorter than ten seconds are filled: not at all (bare), by repetition (repeat), or with "
            "zeros (pad).",
            rich_help_panel=WHAT,
        ),
    ] = "bare",
    kind: options.KindOption = "auto",
    folds: Annotated[
        int,
        number_option(
            "Number of equal folds for datasets that have neither folds nor a test set.", DATA, least=2, most=1000
        ),
    ] = 5,
    plot: Annotated[
        Path | None, file_option("Draw the confusion matrix (.png, .pdf or .svg), for exclusive classes.", None)
    ] = None,
    format: options.ReportFormat = "table",
    workers: options.ClipWorkers = 0,
    device: options.Device = None,
    precision: options.PrecisionOption = "float32",
    threads: options.Threads = None,
    batch_size: options.WindowBatch = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure how well a linear model classifies a dataset from a network's embeddings.

    The network itself is not trained.

    A logistic regression is fitted to the standardised embeddings: one over all classes if each clip has exactly one
    class, otherwise one per label. It is tested on each fold of the dataset, or on its test set. The regularisation is
    chosen by cross-validation on the training clips, never on the test clips.

    Clips that cannot be read are listed and left out, and the exit code is 1. If more than 5 % cannot be read, the
    command fails.

    Example: `dymn probe ESC10 --model dymn04_open --layer mels,blocks --plot confusion.png`.
    """
    hush(quiet)
    check_data(data, "DATA")
    from dymn.commands.progress import counting_bar
    from dymn.evaluation.probe import probe as measure
    from dymn.inference.embedding import EmbedSettings
    from dymn.runtime.layers import parse_layers

    layers = parse_layers(layer or "last")
    settings = EmbedSettings(fill=fill)
    if plot is not None:
        check_ending("--plot", plot, PICTURES)
    tagger = load_tagger(model, device, threads, quiet, precision=precision)
    embedder = tagger.embedder(layers)
    with counting_bar("Embed", quiet) as progress:
        found = measure(
            embedder,
            data,
            kind=kind,
            folds=folds,
            seconds=seconds,
            settings=settings,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    if plot is not None:
        from dymn.plots.confusion import plot_confusion

        if found.confusion is None:
            raise ConfigError("--plot draws a confusion matrix, and clips with several labels have none. Leave it out.")
        plot_confusion(found.labels, found.confusion, plot, "a linear model")
        note(f"{plot} was written.", quiet)
    tested = sum(result.test for result in found.results)
    if tested < FEW_CLIPS:
        note(
            f"{tested} test clips are too few for a reliable result: each is {100 / tested:.1f} % of them. Use "
            f"{FEW_CLIPS} or more.",
            quiet,
        )
    for key, reason in found.bad.items():
        typer.echo(f"dymn: {visible(key)}: {visible(reason)}", err=True)
    name = tagger.card.name or str(model)
    typer.echo(as_json(found, embedder, name, data) if format == "json" else as_table(found, embedder, name))
    if found.bad:
        raise typer.Exit(1)


def as_table(found: Probed, embedder: Embedder, model: str) -> str:
    """Return the figures as tables."""
    from dymn.commands.epochs import figure

    about = [
        ("data", f"{found.kind}, {found.clips} clips, {len(found.labels)} classes"),
        ("embedding", f"{model}, {','.join(embedder.layers)}: {found.size} values"),
    ]
    if found.bad:
        about.append(("left out", f"{len(found.bad)} clips that cannot be read, such as {next(iter(found.bad))}"))
    rows = [("test", "learned from", "tested on", "C", found.metric)]
    rows += [
        (r.name, str(r.train), str(r.test), f"{r.c:g}", figure(found.metric, r.figures[found.metric]))
        for r in found.results
    ]
    if len(found.results) > 1:
        spread = f"{figure(found.metric, found.mean)} ± {figure(found.metric, found.std)}"
        rows.append(("mean", "", "", "", spread.replace(" % ±", " ±")))
    wrong = [f"{truth} taken for {answer}: {count}" for truth, answer, count in confusions(found)[:MOST_CONFUSIONS]]
    return "\n".join(
        [*(f"{name.ljust(9)}  {value}" for name, value in about), "", *aligned(rows), *([""] if wrong else []), *wrong]
    )


def confusions(found: Probed) -> list[tuple[str, str, int]]:
    """Return class, answer and number of clips of each confusion, the most frequent first."""
    if found.confusion is None:
        return []
    counts = found.confusion.tolist()
    n = range(len(found.labels))
    wrong = [(found.labels[i], found.labels[j], counts[i][j]) for i in n for j in n if i != j and counts[i][j]]
    return sorted(wrong, key=lambda entry: -entry[2])


def as_json(found: Probed, embedder: Embedder, model: str, data: Path) -> str:
    """Return the figures as a JSON object; one that is not defined is null."""
    results = [
        {"test": r.name, "learned_from": r.train, "tested_on": r.test, "C": r.c} | r.figures for r in found.results
    ]
    document = {
        "data": str(data),
        "kind": found.kind,
        "clips": found.clips,
        "labels": found.labels,
        "model": model,
        "layers": embedder.layers,
        "size": found.size,
        "metric": found.metric,
        "mean": found.mean,
        "std": found.std,
        "results": results,
        "confusion": None if found.confusion is None else found.confusion.tolist(),
        "bad": dict(found.bad),
    }
    return json.dumps(json_values(document), ensure_ascii=False, indent=1)
