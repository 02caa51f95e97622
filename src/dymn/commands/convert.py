"""`dymn convert`: published weights in dymn's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dymn.commands.options import Quiet, file_option, hush
from dymn.commands.output import note_new_folder, say
from dymn.errors import ConfigError
from dymn.system.files import read_lines


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A state dict published by EfficientAT (.pt), or any other value of --model in `dymn tag`.",
        ),
    ],
    destination: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The .safetensors file to write, or a folder as on the Hugging Face Hub."),
    ],
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="The temperature of the kernel attention, which a state dict does not contain: 1 for AudioSet "
            "models, 30 for ImageNet models. The default is that of the published model, or 1.",
        ),
    ] = None,
    strides: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,S,S",
            help="The strides of blocks 2, 4, 7 and 13, which a state dict does not contain, such as 2,2,2,1. The "
            "default is those of the published model, or 2,2,2,2.",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="ca|none",
            help="The attention of the dynamic blocks, which a state dict does not show: none for a DyMN trained "
            "without Coordinate Attention. The default is that of the published model, or ca.",
        ),
    ] = None,
    dilated: Annotated[
        bool,
        typer.Option("--dilated", help="The network is an MN with dilated kernels in its last three blocks."),
    ] = False,
    labels: Annotated[
        Path | None,
        file_option(
            "A text file with one label per line, in the order of the logits. The default for 527 classes is "
            "AudioSet's labels."
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in half precision.")] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Store the weights in 8 bits, a quarter of the size in float32."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Convert a published checkpoint to dymn's own format, which contains everything needed to use it.

    Network, front end and labels can be rebuilt from the converted file alone. No code from the checkpoint is executed.

    Example: `dymn convert mn04_as_mAP_432.pt mn04_as.safetensors`.
    """
    hush(quiet)
    from dymn.commands.progress import download_bar
    from dymn.weights import convert as library_convert
    from dymn.weights.conversion import check_destination

    check_destination(destination)
    note_new_folder(destination)
    with download_bar(quiet) as progress:
        digest = library_convert(
            source,
            destination,
            temperature=temperature,
            strides=None if strides is None else parse_strides(strides),
            attention=attention,
            dilated=dilated,
            labels=None if labels is None else read_labels(labels),
            half=half,
            int8=int8,
            progress=progress,
        )
    say(f"{destination}  sha256 {digest}")


def parse_strides(text: str) -> tuple[int, ...]:
    """Return "2,2,2,1" as numbers; raise a ConfigError if it is not a list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--strides is {text!r}; give four numbers separated by commas, such as 2,2,2,1.") from error


def read_labels(path: Path) -> list[str]:
    """Return the labels in a text file; raise a ConfigError if it cannot be read as text."""
    try:
        return read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--labels {path} cannot be read: {error}. Give a text file with one label per line."
        ) from error
