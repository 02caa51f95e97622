"""`dymn train`: training of networks."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dymn.commands.datasets import check_data, check_model
from dymn.commands.options import (
    Device,
    Quiet,
    Threads,
    complete_networks,
    complete_recipes,
    hush,
    model_option,
    note,
    number_option,
    resumable,
)
from dymn.commands.output import say
from dymn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dymn.training import TrainConfig

WHAT, HOW = "Task", "Training"
ALL = "all"


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=complete_recipes,
            help="The name of a recipe, such as fine_tune, esc50:mn10 or audioset_kd:dymn04, or a TOML file. "
            "--recipes lists the recipes included in dymn.",
        ),
    ] = "fine_tune",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="The dataset: a folder with one folder of clips per class, a CSV table, tar shards, or a dataset "
            "in its published layout.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="The kind of the dataset: auto (detected), or folder, csv, shards, esc50, esc10, fsd50k, openmic, "
            "tau, audioset, audioset_hdf5 and others. The default is the recipe's.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    model: Annotated[
        str | None,
        model_option(
            "The initial network: a model with weights, a file or folder that contains one, or an architecture "
            "such as mn04 (random weights). `dymn models` lists them. The default is the recipe's.",
            WHAT,
            complete_networks,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="The folder for results. An unfinished run in it is resumed. The default is runs/NAME.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|all",
            help="The fold to use as the test set, for datasets with folds; all trains once per fold and reports "
            "the mean.",
            rich_help_panel=HOW,
        ),
    ] = None,
    epochs: Annotated[
        int | None, number_option("Number of epochs; the recipe's schedule is scaled to it.", HOW, "--epochs", "-e")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How results are reported: paper evaluates the test clips after each of the last ten epochs of "
            "three runs (data.test_epochs=10, run.seeds=[0,1,2]). No checkpoint is selected by these results.",
            rich_help_panel=HOW,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Change a setting of the recipe, such as optim.lr=1e-4. Can be repeated.",
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
    recipes: Annotated[
        bool,
        typer.Option("--recipes", help="List the recipes included in dymn, and exit.", rich_help_panel=WHAT),
    ] = False,
) -> None:
    """Train a network: fine-tune a model on your own clips, or run a recipe of the paper.

    After an interruption, the same command resumes the run, with the same result.

    Examples: `dymn train --data FOLDER --model mn04_as` for a folder with one folder of clips per class;
    `dymn train esc50:mn10 --data ESC-50 --fold all`; `dymn train --recipes`.
    """
    hush(quiet)
    if recipes:
        typer.echo("\n".join(complete_recipes("")))
        return
    if data is not None:
        check_data(data, "--data")
    from dymn.system.devices import use_threads

    config = configure(
        recipe,
        settings or (),
        epochs,
        protocol_settings(protocol)
        | {
            "data.path": None if data is None else str(data),
            "data.kind": kind,
            "model.name": model,
            "run.out": None if output is None else str(output),
            "run.device": device,
            "run.threads": threads,
        },
    )
    check_inputs(config)
    use_threads(threads)
    fetch_models(config, quiet)
    if model is not None:
        note_fresh(config, quiet)
    if fold is not None and fold != ALL:
        config = config.replace({"data.fold": parse_fold(fold)})
    work = train_all_folds if fold == ALL else train_once
    if config.run.seeds:
        train_seeds(config, work, quiet)
    else:
        work(config, quiet)


def configure(recipe: str, settings: list[str] | tuple[()], epochs: int | None, options: dict[str, Any]) -> TrainConfig:
    """Return the run: the recipe, changed by --epochs, then by the other options, then by --set."""
    from dymn.training.recipe import load_recipe, parse_assignment

    config = load_recipe(recipe)
    if epochs is not None:
        config = config.with_epochs(epochs)
    given = {key: value for key, value in options.items() if value is not None}
    return config.replace(given | dict(parse_assignment(setting) for setting in settings))


def check_inputs(config: TrainConfig) -> None:
    """Raise a ConfigError, before any work is done, if data or models do not exist or cannot be trained."""
    from dymn.training.start import check_start

    path = config.data.path
    if not path:
        raise ConfigError("No dataset is given. Use --data PATH.")
    check_data(Path(path), "--data")
    for name in model_names(config):
        check_model(name)
    check_start(config.model)


def model_names(config: TrainConfig) -> list[str]:
    """Return the architectures and checkpoints that a run builds on."""
    return [name for name in (config.model.name, config.model.inherit, *config.teacher.models) if name]


def fetch_models(config: TrainConfig, quiet: bool) -> None:
    """Download, with a bar, what is not in the cache yet."""
    from dymn.commands.progress import download_bar
    from dymn.weights import REGISTRY
    from dymn.weights.download import is_local
    from dymn.weights.published import fetch_published

    if config.teacher.table:
        from dymn.training.inputs import find_table

        with download_bar(quiet) as progress:
            find_table(config, progress)
    for name in model_names(config):
        if name in REGISTRY and not is_local(REGISTRY[name]):
            with download_bar(quiet) as progress:
                fetch_published(REGISTRY[name], progress)


def note_fresh(config: TrainConfig, quiet: bool) -> None:
    """Write a note if --model names an architecture, which starts from random weights, instead of a trained model."""
    from dymn.architectures import MODELS
    from dymn.weights import REGISTRY

    name = config.model.name
    if name in MODELS and not config.model.inherit:
        trained = [key for key, published in REGISTRY.items() if published.architecture == name]
        remedy = f" To fine-tune, use one of: {', '.join(trained)}." if trained else ""
        note(f"{name} is an architecture, so training starts from random weights.{remedy}", quiet)


def parse_fold(text: str) -> int:
    """Return the number of a fold, or raise a ConfigError."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--fold is {text!r}; it must be the number of a fold, such as 1, or all.")


def protocol_settings(name: str | None) -> dict[str, Any]:
    """Return the settings of a protocol; raise a ConfigError if there is none of this name."""
    from dymn.training.repeats import PROTOCOLS

    if name is not None and name not in PROTOCOLS:
        raise ConfigError(f"--protocol is {name!r}; allowed: {', '.join(PROTOCOLS)}.")
    return {} if name is None else dict(PROTOCOLS[name])


def train_seeds(config: TrainConfig, work: Callable[[TrainConfig, bool], dict[str, Any]], quiet: bool) -> None:
    """Train once for each seed, and print the mean and standard deviation of the results."""
    from dymn.commands.epochs import figure
    from dymn.training.repeats import train_repeats

    result = train_repeats(config, lambda run: work(run, quiet))
    if not result:
        return
    say(f"{len(result['seeds'])} runs, mean and standard deviation:")
    for name, found in result["figures"].items():
        if name.startswith(("val_", "test_")) or name in ("mean", "last_epochs.mean"):
            spread = "" if found["std"] is None else f" ± {figure(name, found['std'])}"
            say(f"{name}  {figure(name, found['mean'])}{spread}")


def train_once(config: TrainConfig, quiet: bool) -> dict[str, Any]:
    """Train, show the progress, and print the result; return it."""
    from dymn.commands.epochs import EpochTable
    from dymn.training import train as library_train

    with (
        resumable(quiet, "The same command resumes the run from its last saved state."),
        closing(EpochTable(quiet)) as table,
    ):
        result = library_train(config, table)
    if result:
        summarise(result)
    return result


def train_all_folds(config: TrainConfig, quiet: bool) -> dict[str, Any]:
    """Train once for each fold, and print the result of each and the mean; return them."""
    from dymn.commands.epochs import EpochTable, figure
    from dymn.training.folds import train_folds

    with resumable(quiet), ExitStack() as stack:
        result = train_folds(config, lambda fold: stack.enter_context(closing(EpochTable(quiet, f"Fold {fold}: "))))
    if not result:  # of several processes only one reports
        return result
    for number, value in zip(result["fold_numbers"], result["folds"], strict=True):
        typer.echo(f"fold {number}  {result['metric']} {figure(result['metric'], value)}")
    typer.echo(f"mean    {result['metric']} {figure(result['metric'], result['mean'])}")
    if "last_epochs" in result:
        mean = figure(result["metric"], result["last_epochs"]["mean"])
        typer.echo(f"mean of the last epochs    {result['metric']} {mean}")
    return result


def means_of_epochs(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a result that are averaged over the last epochs, by name."""
    from dymn.commands.epochs import FIGURES

    for name, value in result.items():
        metric = name.removeprefix("test_").rpartition("_last_")[0]
        if metric in FIGURES and isinstance(value, float):
            yield metric, value


def summarise(result: dict[str, Any]) -> None:
    """Print the figures of a run, and how to use its checkpoint."""
    from dymn.commands.epochs import FIGURES, duration, figure

    say(
        f"Trained in {duration(result['train_seconds'])}; the best epoch was {result['best_epoch']} of "
        f"{result['epochs']}."
    )
    for part, name in (("val", "validation"), ("test", "test")):
        found = [f"{key} {figure(key, result[f'{part}_{key}'])}" for key in FIGURES if f"{part}_{key}" in result]
        if found:
            say(f"On the {name} clips: {', '.join(found)}.")
    last = [f"{key} {figure(key, value)}" for key, value in means_of_epochs(result)]
    if last:
        say(f"On the test clips, mean of the last epochs: {', '.join(last)}.")
    say(f"Checkpoint: {result['checkpoint']}")
    say(f"Tag with it: dymn tag RECORDING --model {shlex.quote(str(result['checkpoint']))}")
