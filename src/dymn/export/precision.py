"""Files of lower precision: weights in fewer bits, and convolutions in integers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dymn.export.nodes import EXACT
from dymn.system.arrays import LEAST_IN_8_BITS
from dymn.system.extras import needing
from dymn.system.files import temporary_folder

SMALL = 256
"""Constants of fewer values stay in float32."""
FEW = 16
"""Kernels with fewer weights for each output, as depthwise ones, are stored in fp16 instead of int8, whose scale would
not pay.
"""
WORTHWHILE = 1024
"""Static pointwise convolutions of fewer weights are not computed in integers: they are sensitive, and no faster. Their
inputs and outputs matter more than their weights, so this is not `LEAST_IN_8_BITS`.
"""


def narrow(model: onnx.ModelProto, precision: str) -> None:
    """Store the large constants of a graph in "fp16" or "int8", in place; they are widened when a file is loaded.

    The front end's constants, biases and scales stay as they are. In int8 the weights of one output share a scale.
    """
    graph = model.graph
    widened, kept = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if (
            tensor.data_type != TensorProto.FLOAT
            or values.size < SMALL
            or values.ndim < 2
            or tensor.name.startswith(EXACT)
        ):
            kept.append(tensor)
            continue
        # [..., C_out, C_in, k, k] or [C_out, C_in]
        per_output = math.prod(values.shape[-3:]) if values.ndim > 3 else values.shape[-1]
        if precision == "fp16" or per_output < FEW or values.size < LEAST_IN_8_BITS:
            kept.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_fp16"))
            widened.append(helper.make_node("Cast", [kept[-1].name], [tensor.name], to=TensorProto.FLOAT))
            continue
        outputs = values.reshape(-1, per_output)
        scales = np.maximum(abs(outputs).max(axis=1, keepdims=True), 1e-30) / 127
        stored = {"int8": np.rint(outputs / scales).astype(np.int8), "scales": scales, "shape": np.array(values.shape)}
        kept += [numpy_helper.from_array(array, f"{tensor.name}_{part}") for part, array in stored.items()]
        narrow, wide, scaled, scale, shape = (
            f"{tensor.name}_{part}" for part in ("int8", "float", "scaled", "scales", "shape")
        )
        # operations on constants alone, which a runtime does once; DequantizeLinear it would do for each clip
        widened += [
            helper.make_node("Cast", [narrow], [wide], to=TensorProto.FLOAT),
            helper.make_node("Mul", [wide, scale], [scaled]),
            helper.make_node("Reshape", [scaled, shape], [tensor.name]),
        ]
    nodes = [*widened, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def compute_in_integers(
    model: onnx.ModelProto, convolutions: Sequence[str], clips: Sequence[npt.NDArray[np.float32]]
) -> onnx.ModelProto:
    """Return a graph with convolutions in 8 bits: a scale for each channel of a kernel, and one for each map.

    Args:
        model: the graph in float32.
        convolutions: the names of those with constant kernels; only those of at least `WORTHWHILE` weights are taken.
        clips: inputs of the graph, over which the range of each map is found.

    Raises:
        MissingExtraError: if the package onnxruntime is missing.
    """
    with needing("Calibration", "onnx"):
        from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.clips: Iterator[Any] = iter(clips)

        def get_next(self) -> dict[str, Any] | None:
            clip = next(self.clips, None)
            return None if clip is None else {model.graph.input[0].name: clip}

    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    taken = [node.name for node in model.graph.node if node.name in convolutions and sizes[node.input[1]] >= WORTHWHILE]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        with temporary_folder() as folder:
            path = folder / "integers.onnx"
            quantization.quantize_static(
                model,
                path,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=taken,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return onnx.load(path)
    finally:
        root.setLevel(level)
