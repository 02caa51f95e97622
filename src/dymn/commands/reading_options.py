"""Options on which recordings are read, and how: what `tag`, `embed` and `events` have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from dymn.errors import ConfigError

READING = "Reading"

Clocks = Literal["none", "auto"]
"""The names in `dymn.audio.settings.CLOCKS`."""

FilesFrom = Annotated[
    str | None,
    typer.Option(
        "--files-from",
        metavar="LIST|-",
        help="Also read the recordings that this file lists, a line each, or with NUL characters between, as from "
        "`find -print0`; - is standard input.",
        rich_help_panel=READING,
    ),
]
ChannelOption = Annotated[
    str,
    typer.Option(
        "--channel",
        metavar="CHANNEL",
        help="Which channel to read: mix (the mean of all), left, right, a number from 1, loudest (reads a recording "
        "once more first), or each, for a result of every channel.",
        rich_help_panel=READING,
    ),
]
Track = Annotated[
    int | None,
    typer.Option(
        "--track",
        metavar="NUMBER",
        min=1,
        help="Which audio track to read of files with several, from 1. The default is the one that is marked so.",
        rich_help_panel=READING,
    ),
]
Gain = Annotated[
    str,
    typer.Option(
        "--gain",
        metavar="DB|auto",
        help="Make recordings louder, in dB. auto reads a recording once more first, and raises quiet ones only: their "
        "loudest second to -20 dBFS, as far as the largest sample stays below -1 dBFS.",
        rich_help_panel=READING,
    ),
]
Speed = Annotated[
    float,
    typer.Option(
        "--speed",
        metavar="FACTOR",
        help="Play recordings slower (0.1, for bats) or faster (20, for infrasound) to the network. Windows are "
        "seconds as it hears them; times in results are those of the recording.",
        rich_help_panel=READING,
    ),
]
Band = Annotated[
    str | None,
    typer.Option(
        "--band",
        metavar="LOW-HIGH",
        help="Keep only these frequencies, in Hz of the recording, such as 2000-8000; 20- takes out what is below.",
        rich_help_panel=READING,
    ),
]
Clock = Annotated[
    Clocks,
    typer.Option(
        "--clock",
        help="auto adds the absolute time to each row, if the recorder wrote down when it began: as GUANO, AudioMoth's "
        "comment, bext, or in the file's name.",
        rich_help_panel=READING,
    ),
]


def gathered(paths: Sequence[str] | None, files_from: str | None) -> list[str]:
    """Return the paths of a command: those that were given, and those that a file lists.

    Raises:
        ConfigError: if there are no paths and no list, if the list cannot be read or is empty, or if two things come
            from standard input.
    """
    given = list(paths or ())
    if files_from is None:
        if not given:
            raise ConfigError("Missing argument 'PATH...'. Name recordings, folders or patterns, or give --files-from.")
        return given
    if files_from == "-" and "-" in given:
        raise ConfigError("Standard input holds either a recording (-) or the list of --files-from, not both.")
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"--files-from {files_from} cannot be read: {error.strerror}. Give a file, or -.") from error
    parts = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    listed = [os.fsdecode(part) for part in parts if part.strip()]
    if not listed:
        raise ConfigError(f"--files-from {files_from} lists no recording. Write a path on each line.")
    if files_from == "-" and "-" in listed:
        raise ConfigError("The list of --files-from comes from standard input, so - cannot be one of its recordings.")
    return given + listed
