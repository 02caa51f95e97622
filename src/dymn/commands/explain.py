"""`dymn explain`: the decisions of a dynamic network for a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dymn.commands.options import (
    PICTURES,
    Device,
    Quiet,
    SingleModel,
    Threads,
    check_ending,
    file_option,
    hush,
    note,
    number_option,
)
from dymn.commands.output import check_file, note_new_folder
from dymn.commands.recordings import load_tagger
from dymn.errors import ConfigError

ENDINGS = (*PICTURES, ".html", ".npz")


def explain(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A recording; - is standard input.")],
    model: SingleModel = None,
    output: Annotated[
        list[Path] | None,
        file_option(
            "The file to write: an image (.png, .pdf, .svg), a page with audio and all blocks (.html), or the "
            "arrays (.npz). The option can be repeated. The default is a .png in the current folder.",
            None,
            "--output",
            "-o",
        ),
    ] = None,
    start: Annotated[float, typer.Option(metavar="SECONDS", help="Start of the part to explain.")] = 0.0,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Maximum length of the part.")] = 10.0,
    window: Annotated[
        float, typer.Option(metavar="SECONDS", help="Length of a window for the probabilities over time.")
    ] = 2.0,
    top_k: Annotated[int, number_option("Number of labels to show.", None, "--top-k", "-k")] = 6,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Visualise the decisions of a dynamic network for a recording.

    The figure shows the spectrogram with the tags over time; the times and frequencies that each block attended to
    (Coordinate Attention); the kernels that its convolutions mixed; and the activation function of each channel
    (Dy-ReLU).

    Example: `dymn explain street.wav --model dymn04_open --output street.html`.
    """
    from dymn.audio.reading import probe
    from dymn.weights.ensembles import members
    from dymn.weights.registry import unknown_model

    hush(quiet)
    if model is not None and len(members(model)) > 1:
        raise unknown_model(model)
    outputs = output or [Path(f"{Path(file).stem if file != '-' else 'recording'}-explained.png")]
    for path in outputs:
        check_output(path, file)
        note_new_folder(path)
    if file != "-" and not Path(file).is_fifo():
        probe(file)  # a wrong path is an error before PyTorch is loaded
    from dymn.explain import explain as decide
    from dymn.explain import is_dynamic
    from dymn.plots.explanation import save_picture
    from dymn.plots.explanation_page import save_page

    network = load_tagger(model, device, threads, quiet).model
    if not is_dynamic(network):
        note(
            f"{network.card.name or 'The model'} is a static network, so only the spectrogram and the probabilities "
            "over time are shown.",
            quiet,
        )
    top_k = min(top_k, network.config.num_classes)
    explanation = decide(network, file, top_k=top_k, start=start, seconds=seconds, window=window)
    for path in outputs:
        if path.suffix.lower() == ".html":
            save_page(explanation, path)
        elif path.suffix.lower() == ".npz":
            explanation.save(path)
        else:
            save_picture(explanation, path)
        note(f"{path} was written.", quiet)


def check_output(path: Path, recording: str) -> None:
    """Raise a ConfigError, before any work is done, if a file cannot be written or is the recording."""
    check_ending("--output", path, ENDINGS)
    check_file(path)
    if path.exists() and Path(recording).exists() and path.samefile(recording):
        raise ConfigError(f"--output {path} is the recording. Give another file.")
