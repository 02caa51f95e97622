"""Export to ExecuTorch and LiteRT, runtimes for phones and small boards, both with XNNPACK's kernels."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dymn.export.lite_network import LiteNetwork
from dymn.export.parity import FileRunner
from dymn.export.plan import METADATA, Plan
from dymn.export.program import Program
from dymn.models.mobilenet import MobileNet
from dymn.runtime.fused import fuse
from dymn.system.extras import needing
from dymn.system.files import temporary_folder


def executorch(model: MobileNet, plan: Plan, calibrate: Sequence[npt.NDArray[np.float32]] = ()) -> bytes:
    """Return a model as the content of a `.pte` file for ExecuTorch.

    Its method `forward` takes log-mel spectrograms [1, 1, n_mels, frames] and gives probabilities [1, C], logits [1, C]
    and embedding [1, D]. The end of the file is a zip archive with `Plan.describe` as dymn.json.

    Raises:
        MissingExtraError: if the package executorch is missing.
    """
    with needing("Exporting to ExecuTorch", "executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    def lower(network: nn.Module, example: Tensor) -> bytes:
        exported = torch.export.export(network, (example,), strict=False)
        return bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)

    return _described(LiteNetwork(fuse(model.float())).eval().requires_grad_(False), model, plan, lower)


def litert(model: MobileNet, plan: Plan, calibrate: Sequence[npt.NDArray[np.float32]] = ()) -> bytes:
    """Return a model as the content of a `.tflite` file for LiteRT, which is described as in `executorch`.

    Raises:
        MissingExtraError: if the package litert-torch is missing.
    """
    with needing("Exporting to LiteRT", "litert"):
        import litert_torch

    def lower(network: nn.Module, example: Tensor) -> bytes:
        with temporary_folder() as folder:
            path = folder / "model.tflite"
            with contextlib.redirect_stdout(sys.stderr):  # it prints its steps
                litert_torch.convert(network, (example,)).export(str(path))
            return path.read_bytes()

    return _described(Program(model, plan).eval(), model, plan, lower)


def _described(network: nn.Module, model: MobileNet, plan: Plan, lower: Callable[[nn.Module, Tensor], bytes]) -> bytes:
    """Return a file with its description behind it."""
    silence = np.zeros((1, plan.n_samples(model.card)), np.float32)
    with torch.no_grad():
        file = io.BytesIO(lower(network, torch.from_numpy(plan.feed(silence, model.card))))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(f"{METADATA}.json"), json.dumps(plan.describe(model)))
    return file.getvalue()


def open_executorch(content: bytes) -> FileRunner:
    """Return what runs a `.pte` file."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(content).load_method("forward")

    def run(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        return tuple(part.numpy().copy() for part in method.execute([torch.from_numpy(values)]))

    return run


def open_litert(content: bytes) -> FileRunner:
    """Return what runs a `.tflite` file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (given,), outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def run(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        interpreter.set_tensor(given["index"], values)
        interpreter.invoke()
        return tuple(
            interpreter.get_tensor(output["index"]) for output in sorted(outputs, key=lambda output: output["name"])
        )

    return run
