"""Options that select recordings and define how they are read, shared by `tag`, `embed` and `events`."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dymn.commands.options import number_option
from dymn.errors import ConfigError

READING = "Reading"

Clocks = Literal["none", "auto"]
"""The names in `dymn.audio.settings.CLOCKS`."""

FilesFrom = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|-",
        help="Also read the recordings listed in this file, one per line or separated by NUL characters, as from `find "
        "-print0`; - is standard input.",
        rich_help_panel=READING,
    ),
]
ChannelOption = Annotated[
    str,
    typer.Option(
        metavar="CHANNEL",
        help="The channel to read: mix (the mean of all), left, right, a number from 1, loudest (needs an additional "
        "pass), or each (one result per channel).",
        rich_help_panel=READING,
    ),
]
Track = Annotated[
    int | None,
    number_option(
        "The audio track to read from files with several tracks, from 1. The default is the file's default track.",
        READING,
    ),
]
Gain = Annotated[
    str,
    typer.Option(
        metavar="DB|auto",
        help="Amplify recordings, in dB. auto amplifies only quiet recordings, until their loudest second is at -20 "
        "dBFS or their largest sample at -1 dBFS; it needs an additional pass.",
        rich_help_panel=READING,
    ),
]
Speed = Annotated[
    float,
    typer.Option(
        metavar="FACTOR",
        help="Play recordings to the network slower (0.1, for bats) or faster (20, for infrasound). Lengths of windows "
        "refer to the signal as played; times in results refer to the recording.",
        rich_help_panel=READING,
    ),
]
Band = Annotated[
    str | None,
    typer.Option(
        metavar="LOW-HIGH",
        help="Keep only these frequencies of the recording, in Hz, such as 2000-8000; 20- removes frequencies below 20 "
        "Hz.",
        rich_help_panel=READING,
    ),
]
Clock = Annotated[
    Clocks,
    typer.Option(
        help="auto adds the absolute time to each row if the start of the recording is known from GUANO metadata, "
        "AudioMoth's comment, bext, or the file name.",
        rich_help_panel=READING,
    ),
]


def read_settings(
    channel: str, track: int | None, gain: str, speed: float, band: str | None, partial: bool, clock: Clocks = "none"
) -> dict[str, Any]:
    """Return the options that define how recordings are read as arguments of `ReadSettings` and its subclasses."""
    reading = {"channel": channel, "track": track, "gain": gain, "speed": speed, "band": band}
    return reading | {"partial": partial, "clock": clock}


def gathered(paths: Sequence[str] | None, files_from: str | None) -> list[str]:
    """Return the paths of a command: its arguments, and those that a file lists.

    Raises:
        ConfigError: if there are none, or an argument is the name of a model.
    """
    from dymn.weights.registry import REGISTRY

    given = list(paths or ())
    for name in given:
        if name in REGISTRY and not os.path.lexists(name):
            raise ConfigError(
                f"{name} is the name of a model, and no recording or folder has this name. To select the model, write "
                f"--model {name}."
            )
    if files_from is None:
        if not given:
            raise ConfigError("Missing argument 'PATH...'. Give recordings, folders or patterns, or --files-from.")
        return given
    if files_from == "-" and "-" in given:
        raise ConfigError("Standard input is either a recording (-) or the list of --files-from, not both.")
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"--files-from {files_from} cannot be read: {error.strerror}. Give a file, or -.") from error
    listed = _entries(data, files_from)
    if not listed:
        raise ConfigError(f"--files-from {files_from} lists no recording. Write one path per line.")
    if files_from == "-" and "-" in listed:
        raise ConfigError("The list of --files-from comes from standard input, so - cannot be one of its recordings.")
    return given + listed


def _entries(data: bytes, name: str) -> list[str]:
    """Return the paths of a list: one per line or, as `find -print0` writes them, with a NUL after each.

    Raises:
        ConfigError: if an entry is neither text nor an existing path: the file may be a recording instead of a list.
    """
    data = data.removeprefix(codecs.BOM_UTF8)  # which some editors write
    parts = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    listed = list[str]()
    for part in parts:
        if not part.strip():
            continue
        path = part.decode(sys.getfilesystemencoding(), "surrogateescape")
        odd = any(unicodedata.category(character) in ("Cc", "Cs") for character in path)  # Cs: it was not UTF-8
        if odd and not os.path.lexists(path):
            raise ConfigError(
                f"--files-from {name} is not a list of paths: it contains {path[:40]!a}, which is not text. Pass "
                "recordings as arguments; a list has one path per line, in UTF-8."
            )
        listed.append(path)
    return listed
