"""`dymn models`: a list of all models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dymn.commands.options import Quiet, complete_networks, format_option, hush
from dymn.commands.output import aligned
from dymn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

ModelFacts = dict[str, Any]
COLUMNS = {
    "name": "model",
    "parameters": "parameters",
    "macs": "MACs",
    "mean_ap": "mAP",
    "psds": "PSDS1",
    "classes": "classes",
    "front_end": "input",
}
DIGESTS = {
    "published": "",
    "pinned": ", pinned",
    "recorded": ", as first downloaded",
    "none": ", unverified (first use)",
}
"""The remark on a file in the table, by the source of its digest."""
ModelFormat = Literal["table", "json", "csv"]
"""How the list is written."""


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            autocompletion=complete_networks,
            help='List only names that match this pattern, such as "dymn*".',
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List only models with weights, not architectures.")
    ] = False,
    format: Annotated[ModelFormat, format_option("table, json or csv.", None)] = "table",
    quiet: Quiet = False,
) -> None:
    """List models with weights, and architectures.

    Parameters and multiply-adds (MACs) are in millions in the table, and plain numbers in other formats. Multiply-adds
    are for 10 seconds of audio. mAP (on AudioSet's evaluation set) and PSDS1 (on that of AudioSet Strong) are the
    published values, from 0 to 1.

    Examples: `dymn models`; `dymn models "dymn*" --pretrained --format csv`.
    """
    hush(quiet)
    from dymn.weights import model_rows

    rows: list[ModelFacts] = [{"weights": True, **row._asdict()} for row in model_rows(pattern)]
    if not pretrained:
        rows += architecture_rows(pattern)
    if not rows:
        raise ConfigError(f"No model matches {pattern!r}. `dymn models` without a pattern lists all.")
    if format == "table":
        typer.echo(as_table(rows))
    elif format == "json":
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        typer.echo(as_csv(rows), nl=False)


def architecture_rows(pattern: str | None) -> list[ModelFacts]:
    """Return a row for each architecture, counted for AudioSet's 527 classes."""
    from dymn.architectures import architectures
    from dymn.profiling import count
    from dymn.weights import REGISTRY
    from dymn.weights.registry import STANDARD_FRONT_END

    known = {
        model.architecture: model
        for model in REGISTRY.values()
        if model.dataset == "AudioSet" and model.head == "mlp" and model.front_end == STANDARD_FRONT_END
    }
    rows = []
    for name in architectures(pattern):
        size = known.get(name) or count(name)
        rows.append(
            {
                "weights": False,
                "name": name,
                "parameters": size.parameters,
                "macs": size.macs,
                "mean_ap": None,
                "classes": "any",
            }
            | {"front_end": "any", "licence": "", "cached": False, "digest": "", "url": "", "psds": None}
        )
    return rows


def as_table(rows: Sequence[ModelFacts]) -> str:
    """Return rows as a table, models with weights first."""
    header = [*COLUMNS.values(), "weights"]
    lines = [header, *([cell(row, column) for column in COLUMNS] + [place(row)] for row in rows)]
    return "\n".join(aligned(lines, right=map(header.index, ("parameters", "MACs", "mAP", "PSDS1"))))


def cell(row: ModelFacts, column: str) -> str:
    """Return a value as the table shows it."""
    value = row[column]
    if value is None:
        return ""
    if column in ("parameters", "macs"):
        return f"{value / 1e6:,.2f} M" if column == "parameters" else f"{value / 1e6:,.0f} M"
    return f"{value:.3f}" if column in ("mean_ap", "psds") else str(value)


def place(row: ModelFacts) -> str:
    """Return where the weights of a model are."""
    if not row["weights"]:
        return "none (architecture)"
    if not row["url"]:
        return "included in dymn" if row["cached"] else "not in this installation"
    return f"{'in the cache' if row['cached'] else 'not downloaded'}{DIGESTS[row['digest']]}"


def as_csv(rows: Sequence[ModelFacts]) -> str:
    """Return rows as CSV with a header."""
    from dymn.system.files import csv_text

    return csv_text([list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])
