"""Export of a model to a file, which is written only after the comparison with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import check
from dymn.errors import DymnError
from dymn.export import lite, onnx, program
from dymn.export.parity import FileRunner, Parity, compare
from dymn.export.plan import LITE, Exportable, Plan, networks, sequence_of
from dymn.models.ensemble import MeanOfLogits
from dymn.system.files import atomic_write

Clips = Sequence[npt.NDArray[np.float32]]
"""Waveforms [N] at the model's sample rate."""


class Writer(NamedTuple):
    """How a format is made, from a model with its card, a plan and clips to calibrate int8 on, and how it is run."""

    build: Callable[[Any, Plan, Clips], bytes]
    open: Callable[[bytes], FileRunner]


WRITERS = {
    "onnx": Writer(onnx.build, onnx.open_onnx),
    "torch": Writer(program.build, program.open_program),
    "executorch": Writer(lite.executorch, lite.open_executorch),
    "litert": Writer(lite.litert, lite.open_litert),
}


class ExportError(DymnError):
    """A file does not agree with the model that it was made from."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, how large it is in bytes, and how it agrees with PyTorch."""

    path: Path
    size: int
    parity: Parity


def build(model: Exportable, *, calibrate: Clips = (), **settings: Any) -> bytes:
    """Return a model as the content of a file.

    Args:
        model: the network, or networks whose logits are averaged.
        calibrate: clips; with int8, convolutions that pay are computed in integers in the ranges that are found on
            these.
        settings: those of `Plan`.

    Raises:
        ConfigError: if a setting is not allowed, the network has a part that cannot be exported, or there is
            calibration without int8.
        MissingExtraError: if a package is missing.
    """
    plan = Plan(**settings)
    for network in networks(model):
        network.config.require_mono("Export")
    check(not len(calibrate) or plan.precision == "int8", f"precision is {plan.precision!r}; only int8 is calibrated.")
    check_kind(model, plan)
    return WRITERS[plan.format].build(model, plan, calibrate)


def check_kind(model: Exportable, plan: Plan) -> None:
    """Raise a `ConfigError` for what is not available for ensembles and frame-wise networks."""
    if isinstance(model, MeanOfLogits):
        check(plan.format in ("onnx", "torch"), f"format is {plan.format!r}; ensembles are exported as onnx or torch.")
        framewise = any(network.config.sequence for network in networks(model))
        check(not framewise, "Ensembles of frame-wise networks cannot be exported. Export each network separately.")
    for network in networks(model):
        whole = plan.format in LITE and network.config.head == "attention_pooling"
        check(not whole, f"format is {plan.format!r}; networks with attention pooling are exported as onnx or torch.")
    if sequence_of(model):
        check(plan.format == "onnx", f"format is {plan.format!r}; frame-wise networks are exported as onnx.")
        check(
            not plan.dynamic_time, "Frame-wise networks are exported for clips of one length. Leave out --dynamic-time."
        )


def export_model(
    model: Exportable,
    path: str | Path,
    clips: Clips = (),
    tolerance: float | None = None,
    *,
    calibrate: Clips = (),
    **settings: Any,
) -> Exported:
    """Write a model as a file, unless the file gives other numbers than PyTorch does with the model.

    Args:
        model, calibrate, settings: as for `build`.
        path: the file to write.
        clips: clips to compare on, besides a few made sounds; by default, those of `calibrate`.
        tolerance: what probabilities may differ by; that of `PRECISIONS` if None.

    Raises:
        ExportError: if the numbers differ by more than is allowed; nothing is written.
        ConfigError: as `build` does.
        MissingExtraError: if a package is missing.
        OSError: if the file cannot be written.
    """
    plan = Plan(**settings)
    content = build(model, calibrate=calibrate, **settings)
    parity = compare(WRITERS[plan.format].open(content), model, plan, clips or calibrate, tolerance)
    if not parity.holds:
        raise ExportError(f"{path} was not written: {parity}. {REMEDIES[parity.bound.measure]}")
    with atomic_write(path) as file:
        file.write(content)
    return Exported(Path(path), len(content), parity)


REMEDIES = {
    "largest": "Please report this, with the model's name.",
    "mean": "Calibrate with more recordings, or without calibration, so that only the weights are in 8 bits.",
}
