"""`dymn shards`: a dataset as tar files that training reads sequentially."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dymn.commands.datasets import check_data
from dymn.commands.options import ClipWorkers, KindOption, Quiet, hush, note, number_option, resumable
from dymn.commands.output import say

Audio = Literal["keep", "flac", "wav", "opus"]
"""The keys of `dymn.data.packing.ENCODINGS`."""


def shards(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The dataset, as --data in `dymn train`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the shards.")],
    kind: KindOption = "auto",
    audio: Annotated[
        Audio,
        typer.Option(metavar="HOW", help="keep copies the audio unchanged; flac, wav and opus encode it, in mono."),
    ] = "keep",
    size: Annotated[
        float, typer.Option("--size", metavar="MEGABYTES", min=0.001, help="Approximate size of a shard.")
    ] = 256.0,
    clips: Annotated[int | None, number_option("Number of clips per shard, instead of a size.", None)] = None,
    seed: Annotated[int, number_option("Seed for the order of the clips.", None, least=0)] = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--in-order", help="Shuffle the clips across all shards, or keep their order.")
    ] = True,
    workers: ClipWorkers = 0,
    quiet: Quiet = False,
) -> None:
    """Pack a dataset into WebDataset shards (tar files) with an index, for training on many clips.

    `dymn train --data OUT` then reads the shards sequentially. Splits, folds and labels are kept; each split has its
    own shards.

    After an interruption, the same command resumes the run. Clips that cannot be decoded are left out and listed in
    OUT/bad_clips.csv.

    Example: `dymn shards clips shards --audio flac --workers 2`.
    """
    hush(quiet)
    check_data(data, "DATA")
    from dymn.commands.progress import counting_bar
    from dymn.data import PackSettings, open_source, pack, task_facts
    from dymn.data.detect import detect
    from dymn.data.packing import BAD_FILE

    path = data
    if kind == "auto":
        kind, path = detect(data)
    source = open_source(kind, path)
    settings = PackSettings(audio, clips or 0, size, seed if shuffle else None)
    with counting_bar("Pack", quiet) as progress, resumable(quiet):
        packed = pack(source, out, settings, task=task_facts(kind, path), workers=workers, progress=progress)
    values = packed.index.values
    shards = len(packed.index.shards)
    say(
        f"{out}  {shards} shard{'s' if shards != 1 else ''}, {values['clips']} clips, {values['hours']:.2f} hours, "
        f"{values['bytes']} bytes"
    )
    if packed.bad:
        key, reason = next(iter(packed.bad.items()))
        note(
            f"{len(packed.bad)} of {len(source)} clips are left out, such as {key}: {reason}. {out / BAD_FILE} lists "
            "them."
        )
        raise typer.Exit(1)
