"""`dymn profile`: the costs of a network, and the paper's tables next to dymn's counts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dymn.commands import options
from dymn.commands.options import (
    check_ending,
    complete_networks,
    file_option,
    format_option,
    hush,
    note,
    output_option,
)
from dymn.commands.wrong_use import reject_unused
from dymn.errors import ConfigError

ProfileFormat = Literal["table", "json", "csv", "markdown"]
"""A key of `dymn.profiling.formats.COMPARISON_FORMATS` and `PROFILE_FORMATS`."""
ENDINGS: dict[str, ProfileFormat] = {".json": "json", ".csv": "csv", ".md": "markdown", ".txt": "table", "": "table"}


def profile(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|CONFIG",
            autocompletion=complete_networks,
            help="The name of an architecture or a model with weights (`dymn models` lists them; nothing is "
            "downloaded), a checkpoint, or a JSON or TOML file with settings.",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Count every row of this table of the paper, such as VII, and compare it with the published "
            "numbers; all counts all tables with costs. III has no costs: its published results are printed.",
        ),
    ] = None,
    commands: Annotated[
        bool, typer.Option("--commands", help="With --table, print the command that trains each row instead.")
    ] = False,
    input_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of the input. The paper's numbers are for 10 seconds.", show_default="10"
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=10_000,
            metavar="NUMBER",
            help="Number of timed runs; 0 for none.",
            show_default="5, 0 without PyTorch",
        ),
    ] = None,
    format: Annotated[
        ProfileFormat | None,
        format_option(
            "table, json, csv or markdown. The default follows the extension of --output, otherwise table.", None
        ),
    ] = None,
    output: Annotated[Path | None, output_option("Write to this file.", None)] = None,
    plot: Annotated[
        Path | None,
        file_option(
            "Draw mAP against multiply-adds and against parameters (the paper's Figs. 4 and 5) to this file "
            "(.png, .pdf, .svg)."
        ),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Report the costs of a network: parameters, multiply-adds, memory, receptive field, time.

    With --table, compare the rows of a table of the paper with dymn's counts. Counts are in millions in tables, and
    plain numbers in JSON and CSV.

    Examples: `dymn profile dymn04_open`; `dymn profile --table VII --format markdown`.
    """
    from dymn.commands.output import text_output
    from dymn.plots.trade_off import plot_trade_off
    from dymn.profiling import compare, downstream
    from dymn.profiling import profile as measure
    from dymn.profiling.formats import COMPARISON_FORMATS, PROFILE_FORMATS
    from dymn.system.cpus import check_threads
    from dymn.system.extras import has_torch

    hush(quiet)
    if output is not None and format is None:
        check_ending("--output", output, ENDINGS)
    name = format or ENDINGS[output.suffix.lower() if output is not None else ""]
    if model is None and table is None and plot is None:
        raise ConfigError("Give a model, --table NUMBER, or --plot FILE. See `dymn profile --help`.")
    if model is not None and table is not None:
        raise ConfigError("Give either a model or --table: a table defines its own networks.")
    if model is None:
        reject_unused({"--runs": runs, "--input-seconds": input_seconds}, "applies to a model")
        if table is None:
            reject_unused({"--output": output, "--format": format}, "applies to the report on a model or a table")
    check_threads(threads)
    if runs is None:
        runs = 5 if has_torch() else 0
    text = None
    if commands and table is None:
        raise ConfigError("--commands needs --table NUMBER, or --table all.")
    if table is not None and commands:
        text = downstream.commands(table)
    elif table is not None and table.upper() == downstream.NUMBER:
        text = downstream.as_text(name)
    elif table is not None:
        text = COMPARISON_FORMATS[name](compare(table))
    elif model is not None:
        if runs:
            from dymn.system.devices import use_threads

            use_threads(threads)
        text = PROFILE_FORMATS[name](measure(model, 10.0 if input_seconds is None else input_seconds, runs=runs))
    if text is not None:
        with text_output(output) as stream:
            stream.write(text)
    if plot is not None:
        plot_trade_off(plot, model)
        note(f"{plot} was written.", quiet)
