"""Any attention mechanism as ONNX operations: its `forward` is traced and converted step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dymn.errors import ConfigError
from dymn.export.nodes import Nodes
from dymn.models.layers import Context


class ContextNames(NamedTuple):
    """The names of what `Context` holds."""

    vector: str
    frequency: str
    time: str


def trace(
    nodes: Nodes, module: nn.Module, inputs: tuple[str, ContextNames | None], example: tuple[Tensor, Context | None]
) -> str:
    """Add what `module` makes of a feature map [B, C, F, T] and a context; return the name of the result.

    Args:
        nodes: where to add it.
        module: an attention mechanism in evaluation mode.
        inputs: the names of the feature map and of the block's context; None if the block has none.
        example: tensors of the same dimensions, with which the module can be called.

    Raises:
        ConfigError: if the module decides by the values or shapes that it is given, or does what has no entry in
            `STEPS` and `LAYERS`.
    """
    name = type(module).__name__
    try:
        traced = fx.GraphModule(module, Tracer().trace(module))
        ShapeProp(traced).propagate(*example)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"{name} cannot be exported to ONNX, since it cannot be traced: {str(error)[:200]}"
        ) from error
    found: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            found[node] = next(given)
        elif node.op == "get_attr":
            found[node] = constant(nodes, traced.get_parameter(node.target))
        else:
            args, options = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            if node.op == "output":
                return str(args[0])
            if node.op == "call_module":
                layer = traced.get_submodule(node.target)
                kind, step = (
                    type(layer).__name__,
                    next((step for base, step in LAYERS.items() if isinstance(layer, base)), None),
                )
                args = (layer, *args)
            else:
                kind = node.target if isinstance(node.target, str) else node.target.__name__
                step = STEPS.get(kind)
            if step is None:
                known = sorted([*STEPS, *(base.__name__ for base in LAYERS)])
                raise ConfigError(
                    f"{name} uses {kind}, which dymn cannot export to ONNX. Supported: {', '.join(known)}."
                )
            if kind == "transpose":
                options = {"rank": len(node.args[0].meta["tensor_meta"].shape)}
            try:
                found[node] = step(nodes, *args, **options)
            except TypeError as error:
                raise ConfigError(
                    f"{name} uses {kind} with arguments that dymn cannot export to ONNX: {error}."
                ) from error
    raise AssertionError("a traced graph ends with its output")


class Tracer(fx.Tracer):
    """Leaves whole what has an entry in `LAYERS`, also classes derived from those."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: D102
        return isinstance(m, tuple(LAYERS))


def constant(nodes: Nodes, tensor: Tensor | None) -> str:
    """Add a tensor."""
    assert tensor is not None  # folded layers have biases
    return nodes.constant(tensor.detach().cpu().numpy())


def plain(kind: str) -> Callable[..., str]:
    """Return the step that is one operation on its operands."""
    return lambda nodes, *values, inplace=False: nodes.op(
        kind, *(value if isinstance(value, str) else [float(value)] for value in values)
    )


def reduction(kind: str) -> Callable[..., str]:
    """Return the step that takes axes together."""

    def step(nodes: Nodes, x: str, dim: int | Sequence[int], keepdim: bool = False) -> str:
        axes = [dim] if isinstance(dim, int) else list(dim)
        if kind == "ReduceSum":  # the only one whose axes are an input in this opset
            return str(nodes.op(kind, x, axes, keepdims=int(keepdim)))
        return str(nodes.op(kind, x, axes=axes, keepdims=int(keepdim)))

    return step


def joined(nodes: Nodes, parts: Sequence[str], dim: int = 0) -> str:
    """Lay tensors together along a new axis."""
    return str(nodes.op("Concat", *(nodes.op("Unsqueeze", part, [dim]) for part in parts), axis=dim))


def var_mean(nodes: Nodes, x: str, dim: Sequence[int], correction: int) -> tuple[str, str]:
    """Give the variance of the values themselves, and the mean."""
    if correction:
        raise ConfigError(f"var_mean with correction={correction} cannot be exported to ONNX; use correction=0.")
    mean = nodes.op("ReduceMean", x, axes=list(dim))
    centred = nodes.op("Sub", x, mean)
    variance = nodes.op("ReduceMean", nodes.op("Mul", centred, centred), axes=list(dim), keepdims=0)
    return variance, nodes.op("Squeeze", mean, list(dim))


def item(nodes: Nodes, x: Any, index: Any) -> Any:
    """Take one of several tensors, or index a tensor with whole axes, new axes and numbers."""
    if isinstance(x, tuple):
        return x[index]
    places = list(index) if isinstance(index, tuple) else [index]
    if places[0] is Ellipsis and set(places[1:]) == {None}:
        return nodes.op("Unsqueeze", x, np.arange(1 - len(places), 0))
    axis = 0
    for place in places:
        if place is None:
            x = nodes.op("Unsqueeze", x, [axis])
        elif isinstance(place, int):
            x = nodes.op("Gather", x, place, axis=axis)
        elif place != slice(None):
            raise ConfigError(f"The index {place} cannot be exported to ONNX. Supported: numbers, None, and : alone.")
        axis += not isinstance(place, int)
    return x


def transpose(nodes: Nodes, x: str, first: int, second: int, rank: int) -> str:
    """Exchange two axes."""
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return x if first == second else str(nodes.op("Transpose", x, perm=order))


def linear(nodes: Nodes, layer: nn.Linear, x: str) -> str:
    """Add a linear layer on the last axis."""
    product = nodes.op("MatMul", x, constant(nodes, layer.weight.T))
    return str(product if layer.bias is None else nodes.op("Add", product, constant(nodes, layer.bias)))


def convolution(nodes: Nodes, layer: Any, x: str) -> str:
    """Add a convolution."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ConfigError("A convolution can be exported to ONNX only if its padding is a number of zeros.")
    weights = [constant(nodes, tensor) for tensor in (layer.weight, layer.bias) if tensor is not None]
    sizes = {
        "strides": list(layer.stride),
        "pads": list(layer.padding) * 2,
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    return str(nodes.op("Conv", x, *weights, **sizes))


def batch_norm(nodes: Nodes, layer: Any, x: str) -> str:
    """Add batch norm with its collected statistics."""
    values = (constant(nodes, tensor) for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var))
    return str(nodes.op("BatchNormalization", x, *values, epsilon=layer.eps))


def layer_norm(nodes: Nodes, layer: nn.LayerNorm, x: str) -> str:
    """Add layer norm."""
    values = constant(nodes, layer.weight), constant(nodes, layer.bias)
    return str(nodes.op("LayerNormalization", x, *values, axis=-len(layer.normalized_shape), epsilon=layer.eps))


STEPS: dict[str, Callable[..., Any]] = {
    "add": plain("Add"),
    "sub": plain("Sub"),
    "mul": plain("Mul"),
    "truediv": plain("Div"),
    "bmm": plain("MatMul"),
    "relu": plain("Relu"),
    "hardswish": plain("HardSwish"),
    "sigmoid": plain("Sigmoid"),
    "sqrt": plain("Sqrt"),
    "mean": reduction("ReduceMean"),
    "sum": reduction("ReduceSum"),
    "amax": reduction("ReduceMax"),
    "linalg_vector_norm": lambda nodes, x, dim, keepdim=False: reduction("ReduceL2")(nodes, x, dim, keepdim),
    "var_mean": var_mean,
    "softmax": lambda nodes, x, dim: nodes.op("Softmax", x, axis=dim),
    "stack": joined,
    "flatten": lambda nodes, x, start=0: nodes.reshape(x, *[0] * start, -1),
    "transpose": transpose,
    "getitem": item,
    "getattr": lambda nodes, x, name: getattr(x, name),
}
"""What a step is called, as a function of PyTorch or a method of a tensor, and what adds it."""

LAYERS: dict[type[nn.Module], Callable[..., str]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.BatchNorm2d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.ReLU: lambda nodes, layer, x: nodes.op("Relu", x),
    nn.Hardswish: lambda nodes, layer, x: nodes.op("HardSwish", x),
    nn.Sigmoid: lambda nodes, layer, x: nodes.op("Sigmoid", x),
    nn.Identity: lambda nodes, layer, x: x,
}
