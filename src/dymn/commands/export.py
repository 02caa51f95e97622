"""`dymn export`: a model as a file that runs without dymn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dymn.commands.evaluate import load
from dymn.commands.options import Quiet, hush, model_argument, note_ending, output_option
from dymn.commands.output import note_new_folder, say
from dymn.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ExportFormat = Literal["onnx", "torch", "executorch", "litert"]
"""The names in `dymn.export.FORMATS`."""
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "executorch": ".pte", "litert": ".tflite"}
Input = Literal["waveform", "log-mel"]
"""The names in `dymn.export.INPUTS`."""
Precision = Literal["fp32", "fp16", "int8"]
"""The keys of `dymn.export.PRECISIONS`."""


def export(
    model: Annotated[
        str,
        model_argument(
            "The name of a model with weights, or a file or folder that contains one. A+B is an ensemble of models."
        ),
    ],
    output: Annotated[
        Path | None,
        output_option(
            "The file to write. By default, an ONNX file is written to the cache, where `dymn tag --backend onnx` "
            "finds it by the model's name.",
            None,
        ),
    ] = None,
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="The format: onnx for ONNX Runtime, torch for PyTorch (a torch.export program, .pt2), or, with "
            "--input log-mel, executorch (.pte, needs dymn\\[executorch]) or litert (.tflite, needs dymn\\[litert]).",
        ),
    ] = "onnx",
    input: Annotated[
        Input,
        typer.Option(help="The input: samples (the file then includes the front end), or log-mel spectrograms."),
    ] = "waveform",
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="How the weights are stored. Arithmetic is in fp32, except with --calibrate."),
    ] = "fp32",
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Recordings, or folders of recordings, similar to those that will be tagged. With --precision "
            "int8, suitable static convolutions are computed in integers, with ranges measured on these recordings.",
        ),
    ] = None,
    dynamic_time: Annotated[bool, typer.Option("--dynamic-time", help="Accept clips of any length.")] = False,
    dynamic_batch: Annotated[
        bool,
        typer.Option(
            "--dynamic-batch", help="Accept any number of clips per call; such a file is slower for a single clip."
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.05, max=600, help="Length of a clip, without --dynamic-time.")
    ] = 10.0,
    clips: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Recordings, or folders of recordings, on which the file is compared with PyTorch, in addition to "
            "a few synthetic sounds. The default is those of --calibrate.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            min=0,
            help="Maximum difference of a probability from PyTorch's (default: 0.0001, and 0.02 for fp16); for "
            "int8, the mean difference over each clip's ten best classes (default: 0.03).",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Export a model as a file that runs without dymn, after comparing its results with PyTorch's.

    The file includes the front end, with labels and licence as metadata. It is written only if its probabilities agree
    with PyTorch's.

    Examples: `dymn export dymn04_open --output dymn04_open.onnx`;
    `dymn export dymn04_open --format torch --output dymn04_open.pt2`.
    """
    hush(quiet)
    from dymn.export import export_model
    from dymn.runtime.onnx_backend import cached_path
    from dymn.weights import REGISTRY

    if output is not None:
        other = next(
            (name for name, ending in ENDINGS.items() if ending == output.suffix.lower() and name != format), None
        )
        if other is not None:
            raise ConfigError(
                f"--output {output} has the extension of --format {other}. Use that format, or a name that ends in "
                f"{ENDINGS[format]}."
            )
        note_ending("--output", output, ENDINGS[format], quiet)
        note_new_folder(output)
    if output is None and format != "onnx":
        raise ConfigError(f"--format {format} needs --output; only ONNX files go to the cache.")
    network = load(model, "cpu", quiet)
    name = network.card.name or Path(model).stem
    if output is None and name in REGISTRY and model != name:
        raise ConfigError(
            f"{model} has the name of the published model {name}, so its file could be mistaken for that model. Give "
            "--output."
        )
    rate = network.card.front_end.sample_rate
    written = export_model(
        network,
        output or cached_path(name),
        recordings(clips or [], rate),
        tolerance,
        calibrate=recordings(calibrate or [], rate),
        format=format,
        input=input,
        precision=precision,
        dynamic_time=dynamic_time,
        dynamic_batch=dynamic_batch,
        seconds=seconds,
    )
    say(f"{written.path}  {written.size / 1e6:.1f} MB; {written.parity}")


def recordings(paths: list[Path], rate: int) -> list[npt.NDArray[np.float32]]:
    """Return the samples [N] of recordings, the first ten minutes of each at most."""
    import numpy as np

    from dymn.audio import reading

    found = []
    for path in [item for given in paths for item in reading.find(str(given))]:
        blocks: list[npt.NDArray[np.float32]] = []
        for block in reading.stream(path, rate):
            blocks.append(block)
            if sum(map(len, blocks)) > 600 * rate:
                break
        if not blocks:
            raise ConfigError(f"{path} contains no samples. Leave it out.")
        found.append(np.concatenate(blocks))
    return found
