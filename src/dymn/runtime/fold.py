"""The folded form of a network for inference, in NumPy.

Compiled code, the fused PyTorch form and ONNX files are built from it.

Batch norms are folded into the preceding kernels: each of the K kernels is scaled, and a bias remains that is not
weighted by attention. Everything that a block computes from its context vector is one linear layer, whose weights are
divided by the temperature of the kernel attention (eq. 2). A dynamic convolution with a single kernel has no attention.
The coefficients of Dy-ReLU are ordered [2 M, C] instead of [C, 2 M].

Arrays are called PART.weight and PART.bias, those of a block `blocks.I.PART`. Parts of the network: stem [C, 1, 3, 3],
last [D, C], hidden [H, D] with the head "mlp", classifier [classes, H or D]; the heads of `WHOLE_MAP_HEADS` are
unchanged and called `head.NAME`. Parts of a block:

- expand, project [K, C_out, C_in] and depthwise [K, C, k, k], a dilated kernel with zeros in its holes;
- context [H, C], and time_context where the two sequences have weights of their own;
- coefficient [n, H], rows as `coefficients` lists them; with the context "own", squeeze and coefficient of each of
  them, such as `blocks.I.expand.kernels.squeeze.weight`;
- frequency, time [C, H] of Coordinate Attention; squeeze, excite of Squeeze-and-Excitation; any other attention is
  unchanged and called `blocks.I.attention.NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dymn.architectures import NEEDS_CONTEXT, has_context
from dymn.config import BlockConfig, ModelConfig
from dymn.system.arrays import Array

WeightAndBias = tuple[Array, Array]  # weight and bias

EPSILON = 1e-3  # of batch norm, as in MobileNetV3 ...
HEAD_EPSILON = 1e-5  # ... but in the fully convolutional head
WHOLE_MAP_HEADS = ("attention_pooling", "frames")
"""Heads that use the whole last feature map instead of its mean."""
HEAD = "head."  # before the names of their arrays


class Folded(NamedTuple):
    """A network whose norms are folded into its kernels."""

    config: ModelConfig
    arrays: Mapping[str, Array]


class Coefficients(NamedTuple):
    """The coefficients that a block computes from its context for one of its parts."""

    position: str  # one of BlockConfig.POSITIONS
    kind: str  # "kernels": K logits of eq. 2; "maps": 2 M values of Dy-ReLU for each channel (eq. 3)
    size: int


def positions(block: BlockConfig) -> tuple[str, ...]:
    """Return the positions of the convolutions that a block has."""
    return BlockConfig.POSITIONS if block.c_exp != block.c_in else BlockConfig.POSITIONS[1:]


def coefficients(block: BlockConfig) -> list[Coefficients]:
    """Return the coefficients that a block computes from its context, in the order of the rows of `coefficient`.

    Kernel attentions come first, then linear maps.
    """
    found = positions(block)
    kernels = [
        Coefficients(position, "kernels", block.n_kernels)
        for position in found
        if position in block.dynamic_convs and block.n_kernels > 1
    ]
    channels = {"expand": block.c_exp, "depthwise": block.c_exp, "project": block.c_out}
    maps = [Coefficients(p, "maps", 2 * block.n_maps * channels[p]) for p in found if p in block.dynamic_relus]
    return kernels + maps


def fold(config: ModelConfig, state: Mapping[str, Array]) -> Folded:
    """Fold a network, whose weights fit its configuration, in the precision of its weights.

    Example:
        >>> stored = dymn.weights.open_checkpoint("dymn04_open")
        >>> fold(stored.config, stored.state).arrays["blocks.1.expand.weight"].shape  # [K, C_out, C_in]
        (4, 24, 8)
    """
    parts = {"stem": _convolution(state, "stem.conv", "stem.norm")}
    weight, bias = _convolution(state, "last.conv", "last.norm")
    parts["last"] = _matrix(weight), bias
    if config.head == "mlp":
        parts |= {name: _layer(state, f"head.{name}") for name in ("hidden", "classifier")}
    elif config.head == "fully_convolutional":
        weight, bias = _convolution(state, "head.classifier", "head.norm", HEAD_EPSILON)
        parts["classifier"] = _matrix(weight), bias
    arrays = _named(parts)
    if config.head in WHOLE_MAP_HEADS:
        arrays |= {name: values for name, values in state.items() if name.startswith(HEAD)}
    for i, block in enumerate(config.blocks):
        arrays |= _block(state, f"blocks.{i}.", block, config.temperature)
    return Folded(config, arrays)


def _block(state: Mapping[str, Array], name: str, block: BlockConfig, temperature: float) -> dict[str, Array]:
    parts: dict[str, WeightAndBias] = {}
    own = ".part" if block.context == "own" else ""
    for position in positions(block):
        conv = f"{name}{position}.conv{own if position in block.dynamic_convs else ''}"
        kernels, bias = _convolution(state, conv, f"{name}{position}.norm")
        kernels = kernels if position in block.dynamic_convs else kernels[None]  # [K, C_out, C_in / groups, k, k]
        parts[position] = (_spread(kernels[:, :, 0], block) if position == "depthwise" else kernels[..., 0, 0]), bias
    heads: dict[str, WeightAndBias] = {}
    for position, kind, _ in coefficients(block):
        part = f"{name}{position}.{'conv' if kind == 'kernels' else 'activation'}"
        weight, bias = _layer(state, f"{part}{own}.coefficients")
        if kind == "kernels":
            heads[f"{position}.{kind}"] = weight / weight.dtype.type(temperature), bias / bias.dtype.type(temperature)
        else:
            weight = weight.reshape(-1, 2 * block.n_maps, weight.shape[1]).swapaxes(0, 1).reshape(weight.shape)
            heads[f"{position}.{kind}"] = weight, bias.reshape(-1, 2 * block.n_maps).T.reshape(-1)
        if own:
            parts[f"{position}.{kind}.squeeze"] = _layer(state, f"{part}.squeeze")
    if own:
        parts |= {f"{key}.coefficient": head for key, head in heads.items()}
    elif heads:
        weights, biases = zip(*heads.values(), strict=True)
        parts["coefficient"] = np.concatenate(weights), np.concatenate(biases)
    if has_context(block):
        weight, bias = _convolution(state, f"{name}context.conv", f"{name}context.norm")
        parts["context"] = _matrix(weight), bias
        if block.context == "separate":
            weight, bias = _convolution(state, f"{name}context.time_conv", f"{name}context.time_norm")
            parts["time_context"] = _matrix(weight), bias
    if block.attention in NEEDS_CONTEXT:
        for axis in ("frequency", "time"):
            if f"{name}attention.{axis}.weight" in state:
                weight, bias = _layer(state, f"{name}attention.{axis}")
                parts[axis] = _matrix(weight), bias
    elif block.attention == "se":
        parts |= {layer: _layer(state, f"{name}attention.{layer}") for layer in ("squeeze", "excite")}
    found = _named({f"{name}{part}": both for part, both in parts.items()})
    if block.attention is not None and block.attention not in (*NEEDS_CONTEXT, "se"):
        found |= {key: values for key, values in state.items() if key.startswith(f"{name}attention.")}
    return found


def _convolution(state: Mapping[str, Array], conv: str, norm: str, epsilon: float = EPSILON) -> WeightAndBias:
    """Return kernels [..., C_out, C_in, k, k] scaled by the batch norm after them, and the remaining bias [C_out]."""
    weight = state[f"{conv}.weight"]
    scale = state[f"{norm}.weight"].astype(np.float64) / np.sqrt(
        state[f"{norm}.running_var"].astype(np.float64) + epsilon
    )
    bias = state[f"{norm}.bias"].astype(np.float64) - state[f"{norm}.running_mean"].astype(np.float64) * scale
    if f"{conv}.bias" in state:
        bias += state[f"{conv}.bias"] * scale
    return weight * scale.astype(weight.dtype)[:, None, None, None], bias.astype(weight.dtype)


def _spread(kernels: Array, block: BlockConfig) -> Array:
    """Return kernels [K, C, k, k] with the holes of a block's dilation as zeros [K, C, span, span]."""
    if block.dilation == 1:
        return kernels
    spread = np.zeros((*kernels.shape[:2], block.span, block.span), kernels.dtype)
    spread[:, :, :: block.dilation, :: block.dilation] = kernels
    return spread


def _layer(state: Mapping[str, Array], name: str) -> WeightAndBias:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _matrix(weight: Array) -> Array:
    """View pointwise kernels [C_out, C_in, 1, 1] as a matrix."""
    return weight[:, :, 0, 0]


def _named(parts: Mapping[str, WeightAndBias]) -> dict[str, Array]:
    return {
        f"{name}.{kind}": values
        for name, both in parts.items()
        for kind, values in zip(("weight", "bias"), both, strict=True)
    }
