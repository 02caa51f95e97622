"""An ONNX graph under construction: operations by name, and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
EXACT = "exact"


class Nodes:
    """Collects operations; each gives the name of its output, which the next ones take."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.on_maps: list[str] = []  # pointwise convolutions of whole maps with kernels that are constant

    def op(self, kind: str, *inputs: str | npt.ArrayLike, n_outputs: int = 1, **attributes: Any) -> Any:
        """Add an operation; return the name of its output, or several; inputs are names, or values of a `constant`."""
        names = [given if isinstance(given, str) else self.constant(given) for given in inputs]
        outputs = [f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(kind, names, outputs, name=outputs[0], **attributes))
        return outputs[0] if n_outputs == 1 else outputs

    def constant(self, values: npt.ArrayLike, exact: bool = False) -> str:
        """Add a constant and return its name.

        Args:
            values: floating-point numbers become float32, whole ones int64.
            exact: whether it is unchanged in a file of lower precision, too; its name begins with `EXACT`.
        """
        array = np.asarray(values)
        array = np.asarray(array, np.float32 if array.dtype.kind == "f" else np.int64, order="C")
        name = f"{EXACT if exact else 'constant'}_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape: 0 keeps a dimension, -1 is what is left."""
        return str(self.op("Reshape", x, shape))

    def model(
        self, inputs: dict[str, list[Any]], outputs: dict[str, tuple[str, list[Any]]], doc: str
    ) -> onnx.ModelProto:
        """Return the graph as a model.

        Args:
            inputs: shape of each input, with names for free dimensions.
            outputs: for each output the name in the graph, and its shape.
            doc: what the graph is.
        """
        nodes = [
            *self.nodes,
            *(helper.make_node("Identity", [name], [public]) for public, (name, _) in outputs.items()),
        ]
        graph = helper.make_graph(
            nodes,
            "dymn",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            self.constants,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="dymn",
            doc_string=doc,
        )
