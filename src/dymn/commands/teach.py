"""`dymn teach`: the logits of a teacher, for distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dymn.commands import options
from dymn.commands.datasets import check_data, check_model
from dymn.commands.options import hush, note, note_ending, output_option, resumable, seconds_option
from dymn.commands.output import note_new_folder, say

MODEL_OPTIONS = ("--model", "-m", "--models")


class ManyModels(options.Command):
    """A command whose --model takes all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert a --model before each of these words, as typer's parser expects."""
        return super().parse_args(ctx, spread(args, MODEL_OPTIONS))


def spread(words: list[str], spellings: Sequence[str]) -> list[str]:
    """Return `--option A --option B` for `--option A B`, with the first spelling of the option."""
    spread_out: list[str] = []
    follows = False
    for word in words:
        if word.startswith("-"):
            follows = word in spellings
            if not follows:
                spread_out.append(word)
        elif follows:
            spread_out += [spellings[0], word]
        else:
            spread_out.append(word)
    return spread_out


def teach(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The dataset, as --data in `dymn train`.")],
    models: Annotated[
        list[str],
        typer.Option(
            *MODEL_OPTIONS,
            metavar="NAME|FILE ...",
            help="One model, or several models with the same classes, whose logits are averaged. Give DATA first.",
        ),
    ],
    output: Annotated[Path, output_option("The table to write, a .safetensors file.", None)],
    kind: options.KindOption = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only the clips of this split: train, val or test. The default is all clips.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        seconds_option(
            "Length of the clips that the models receive. The default is the length used in their training."
        ),
    ] = None,
    fill: options.ClipFill = None,
    max_bad: Annotated[
        float,
        typer.Option(metavar="FROM 0 TO 1", min=0, max=1, help="Share of the clips that may be unreadable."),
    ] = 0.05,
    workers: options.ClipWorkers = 0,
    batch_size: options.ClipBatch = 16,
    device: options.Device = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Write the logits of a teacher for all clips of a dataset, to distil from with `--set teacher.table=FILE`.

    The table contains the names of the clips and digests of clips and models, so that it is never used with other
    data.

    After an interruption, the same command resumes the run.

    Example: `dymn teach clips --model mn04_as mn10_as --output teacher.safetensors`.
    """
    hush(quiet)
    check_data(data, "DATA")
    note_ending("--output", output, ".safetensors", quiet)
    note_new_folder(output)
    from dymn.commands.progress import counting_bar
    from dymn.data import open_dataset, select
    from dymn.data.detect import detect
    from dymn.system.devices import resolve_device, use_threads
    from dymn.training.teach import Ensemble
    from dymn.training.teach import teach as library_teach

    for name in models:
        check_model(name)
    place = resolve_device(device)
    use_threads(threads)
    path = data
    if kind == "auto":
        kind, path = detect(data)
    ensemble = Ensemble(models, place)
    known: dict[str, Any] = {"labels": ensemble.labels} if kind == "shards" else {}
    task, everything = open_dataset(kind, path, sample_rate=ensemble.sample_rate, **known)
    source = select(everything, split)
    with counting_bar("Teach", quiet) as progress, resumable(quiet):
        table = library_teach(
            source,
            ensemble,
            output,
            seconds=seconds or ensemble.learned(fill=fill).seconds or task.seconds,
            fill=fill,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            progress=progress,
        )
    left_out = table.settings.get("left_out", [])
    if left_out:
        note(f"{len(left_out)} clips cannot be read and are left out, such as {left_out[0]}.", quiet)
    if longer := table.settings.get("longer", 0):
        length = table.settings["seconds"]
        note(
            f"{longer} clips are longer than {length:g} s; only their beginnings are used. Increase --seconds to use "
            "more.",
            quiet,
        )
    say(f"{output}  {len(table)} clips, {table.classes} classes")
