"""A network and its front end as ONNX operations, from the weights of the fused form.

Dynamic parts have two forms. For one clip, a mixed kernel is the weight of a convolution. For a variable number of
clips, a dynamic pointwise convolution is a matrix product, and a dynamic depthwise convolution, for which ONNX has no
operator, is one convolution with all K kernels whose outputs are mixed.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dymn.audio.mel import LOG_SCALE, LOG_SHIFT, PREEMPHASIS, mel_basis
from dymn.config import FrontEndConfig
from dymn.export.frames import frame_scores, pooled_scores
from dymn.export.nodes import Nodes
from dymn.export.traced import ContextNames, constant, trace
from dymn.models.heads import AttentionPoolingHead
from dymn.models.layers import Context, DynamicReLU
from dymn.models.layers.attention import OriginalCoordinateAttention
from dymn.models.mobilenet import FrameHead
from dymn.runtime.fused import BlockParts, Coordinates, FusedNetwork, FusedStage, Parts, Summary, WholeMap

ACTIVATIONS = {"relu": "Relu", "hardswish": "HardSwish"}
TINY = 1e-30


def front_end(nodes: Nodes, waveform: str, config: FrontEndConfig) -> str:
    """Add log-mel spectrograms [B, 1, n_mels, frames] of waveforms [B, N] with N of at least n_fft / 2 + 2."""
    c = config
    reach = c.n_fft // 2 - (c.n_fft - c.win_length) // 2  # of the window from the middle of the frame
    signal = nodes.op("Unsqueeze", waveform, [1])  # [B, 1, N]
    one, end, axis = (nodes.constant([value]) for value in (1, 2**62, 2))
    later = nodes.op("Slice", signal, one, end, axis)
    earlier = nodes.op("Slice", signal, [0], [-1], axis)
    emphasised = nodes.op("Sub", later, nodes.op("Mul", earlier, [PREEMPHASIS]))
    padded = nodes.op("Pad", emphasised, [0, 0, reach, 0, 0, reach], mode="reflect")
    basis = mel_basis(c, c.f_min, c.f_max)
    powers, bins = _powers(nodes, padded, c, np.flatnonzero(basis.any(axis=0)))
    filters = np.where(bins >= 0, basis[:, bins], 0)
    mel = nodes.op("MatMul", nodes.constant(filters, exact=True), powers)
    if c.log_offset:
        mel = nodes.op("Add", mel, [c.log_offset])
    if c.log_floor:
        mel = nodes.op("Max", mel, [c.log_floor])
    scaled = nodes.op("Add", nodes.op("Mul", nodes.op("Log", mel), [LOG_SCALE]), [LOG_SHIFT * LOG_SCALE])
    return str(nodes.op("Unsqueeze", scaled, [1]))


def _powers(
    nodes: Nodes, signal: str, config: FrontEndConfig, wanted: npt.NDArray[np.int64]
) -> tuple[str, npt.NDArray[np.int64]]:
    """Add the power spectra [B, rows, frames] of signals [B, 1, N].

    In two steps, as a fast transform begins: sample n = p + P q is the q-th in row p of P. The first step transforms
    each row, the second sums the rows' P results for each bin. Rows are few enough that frames begin at whole ones. As
    products of matrices this is as quick as operations can be that run everywhere.

    Returns:
        the name of the spectra, and the bin of each row, -1 for rows of zeros.
    """
    c = config
    n_rows = min(math.gcd(c.hop_length, c.n_fft), 2 ** (int(math.log2(c.n_fft)) // 2))  # P
    while c.n_fft % n_rows or c.hop_length % n_rows:
        n_rows -= 1
    length = c.n_fft // n_rows
    taps = -(-c.win_length // n_rows)
    classes = length // 2 + 1  # transforms of real numbers repeat themselves after half of their bins, as conjugates
    window = np.zeros(taps * n_rows)
    window[: c.win_length] = torch.hann_window(c.win_length, periodic=False, dtype=torch.float64).numpy()
    turns = np.exp(-2j * np.pi * np.arange(classes)[:, None] * np.arange(taps) / length)
    # [P, classes, 2, taps]
    first = np.stack([turns.real, turns.imag], axis=1) * window.reshape(taps, n_rows).T[:, None, None]

    members = [[k for k in wanted if k % length in (j, length - j)] for j in range(classes)]
    most = max(map(len, members))
    bins = np.full((classes, most), -1)
    second = np.zeros((2, classes, most, n_rows, 2))
    for j, found in enumerate(members):
        for i, k in enumerate(found):
            turn = np.exp(-2j * np.pi * k * np.arange(n_rows) / c.n_fft)
            sign = 1 if k % length == j else -1  # of the imaginary part of what the first step gave
            bins[j, i] = k
            second[0, j, i] = np.stack([turn.real, -sign * turn.imag], axis=1)
            second[1, j, i] = np.stack([turn.imag, sign * turn.real], axis=1)

    if rest := taps * n_rows - c.win_length:
        signal = nodes.op("Pad", signal, [0, 0, 0, 0, 0, rest])
    # What follows the last whole row belongs to no frame.
    size = nodes.op("Slice", nodes.op("Shape", signal), [2], [3])
    width = nodes.constant([n_rows])
    whole = nodes.op("Mul", nodes.op("Div", size, width), width)
    cut = nodes.op("Slice", signal, [0], whole, [2])
    rows = nodes.op("Transpose", nodes.reshape(cut, 0, -1, n_rows), perm=[0, 2, 1])
    kernels = nodes.constant(first.reshape(-1, 1, taps), exact=True)
    parts = nodes.op("Conv", rows, kernels, strides=[c.hop_length // n_rows], group=n_rows)
    by_class = nodes.op("Transpose", nodes.reshape(parts, 0, n_rows, classes, 2, -1), perm=[0, 2, 1, 3, 4])
    given = nodes.reshape(by_class, 0, classes, 2 * n_rows, -1)
    squares = []
    for sums in second:  # real and imaginary parts
        part = nodes.op("MatMul", nodes.constant(sums.reshape(classes, most, 2 * n_rows), exact=True), given)
        squares.append(nodes.op("Mul", part, part))
    return nodes.reshape(nodes.op("Add", *squares), 0, classes * most, -1), bins.reshape(-1)


def network(
    nodes: Nodes, log_mel: str, source: FusedNetwork, n_mels: int, n_frames: int, free_batch: bool
) -> dict[str, str]:
    """Add a network on log-mel spectrograms [B, 1, n_mels, n_frames].

    Returns:
        the names of "logits" [B, C] and "embedding" [B, D], and of a frame-wise network of "frame_logits" [B, T, C].

    Raises:
        ConfigError: if the network has an attention for which there is no form in ONNX here.
    """
    stem = source.stem
    geometry: dict[str, Any] = {"strides": list(stem.stride), "pads": [int(p) for p in stem.padding] * 2}
    x = nodes.op("Conv", log_mel, constant(nodes, stem.weight), constant(nodes, stem.bias), **geometry)
    x = nodes.op("HardSwish", x)
    n_bands = (n_mels - 1) // 2 + 1
    for block in source.blocks:
        added = _Block(nodes, block, n_bands, free_batch)
        x, n_bands = added.add(x), added.n_bands
    last = pointwise(nodes, x, source.last)
    nodes.on_maps.append(last)
    features = nodes.op("HardSwish", last)
    embedding = nodes.op("Flatten", nodes.op("GlobalAveragePool", features))
    if isinstance(source.head, FrameHead):
        frames, clips = frame_scores(nodes, features, source.head, -(-n_frames // source.config.time_stride))
        return {"logits": clips, "embedding": embedding, "frame_logits": frames}
    if isinstance(source.head, AttentionPoolingHead):
        return {"logits": pooled_scores(nodes, features, source.head), "embedding": embedding}
    layers = [source.head] if isinstance(source.head, nn.Linear) else list(source.head.children())
    y = embedding
    for layer in layers:
        y = linear(nodes, y, layer) if isinstance(layer, nn.Linear) else nodes.op("HardSwish", y)
    return {"logits": y, "embedding": embedding}


def linear(nodes: Nodes, x: str, layer: nn.Linear) -> str:
    """Add a linear layer on [B, C]."""
    return str(nodes.op("Gemm", x, constant(nodes, layer.weight), constant(nodes, layer.bias), transB=1))


def pointwise(nodes: Nodes, x: str, layer: Any) -> str:
    """Add a linear layer on the channels of [B, C, F, T]."""
    return str(nodes.op("Conv", x, constant(nodes, layer.weight[..., None, None]), constant(nodes, layer.bias)))


def folded_original(source: OriginalCoordinateAttention) -> Parts:
    """Return the weights of Coordinate Attention as introduced, with the batch norm of its context in them."""
    conv, norm = source.context.conv, source.context.norm
    scale = norm.weight / torch.sqrt(cast(torch.Tensor, norm.running_var) + norm.eps)
    bias = (cast(torch.Tensor, conv.bias) - cast(torch.Tensor, norm.running_mean)) * scale + norm.bias
    parts = {"context.weight": conv.weight.flatten(1) * scale[:, None], "context.bias": bias}
    for name in ("frequency", "time"):
        gate = getattr(source, name)
        parts |= {f"{name}.weight": gate.weight.flatten(1), f"{name}.bias": gate.bias}
    return Parts({name: tensor.detach() for name, tensor in parts.items()})


class _Block:
    """One block while it is added."""

    def __init__(self, nodes: Nodes, block: nn.Module, n_bands: int, free_batch: bool) -> None:
        self.nodes, self.n_bands, self.free_batch = nodes, n_bands, free_batch
        self.heads: list[str] = []  # what has been read off the shared context and not been used
        self.block = cast(BlockParts, block)
        own = [
            cast(nn.Sequential, layers)
            for stage in self.block.stages
            for layers in cast(FusedStage, stage).own.values()
        ]
        # of parts that each look for themselves
        self.own = [(cast(nn.Linear, layers[0]), cast(nn.Linear, layers[2])) for layers in own]

    def add(self, x: str) -> str:
        """Add the block on [B, C_in, F, T]; return [B, C_out, F', T']."""
        nodes, block = self.nodes, self.block
        context = None if block.context is None else self._context(x, block.context)
        if block.heads is not None and context is not None:
            read = linear(nodes, context.vector, block.heads)
            n_parts = len(block.sizes)
            self.heads = nodes.op("Split", read, block.sizes, axis=1, n_outputs=n_parts) if n_parts > 1 else [read]
        *expand, depthwise, project = (cast(FusedStage, stage) for stage in block.stages)
        y = self._stage(x, expand[0]) if expand else x
        y = self._stage(y, depthwise, (block.kernel_size, block.stride, block.time_stride))
        if isinstance(block.attention, Coordinates):
            y = self._weighted(y, block.attention, context)
        elif isinstance(block.attention, WholeMap):
            y = self._whole(y, block.attention.source, context, len(depthwise.bias))
        y = self._stage(y, project)
        return str(nodes.op("Add", y, x)) if block.has_residual else y

    def _context(self, x: str, summary: Summary) -> ContextNames:
        """Return the names of a context."""
        nodes = self.nodes
        # [B, H, F, 1]
        frequency = nodes.op("HardSwish", pointwise(nodes, nodes.op("ReduceMean", x, axes=[3]), summary.frequency))
        # [B, H, 1, T]
        time = nodes.op("HardSwish", pointwise(nodes, nodes.op("ReduceMean", x, axes=[2]), summary.time))
        if summary.concatenated:
            vector = nodes.op("Concat", *(nodes.op("GlobalAveragePool", part) for part in (frequency, time)), axis=1)
        else:
            both = nodes.op("Concat", frequency, nodes.op("Transpose", time, perm=[0, 1, 3, 2]), axis=2)
            vector = nodes.op("GlobalAveragePool", both)
        return ContextNames(nodes.op("Flatten", vector), frequency, time)

    def _read(self, x: str) -> str:
        """Return the block's next coefficients [B, n], from its context, or from x for parts that have their own."""
        if not self.own:
            return self.heads.pop(0)
        squeeze, head = self.own.pop(0)
        means = self.nodes.op("Flatten", self.nodes.op("GlobalAveragePool", x))
        return linear(self.nodes, self.nodes.op("Relu", linear(self.nodes, means, squeeze)), head)

    def _weighted(self, x: str, attention: Coordinates, context: ContextNames | None) -> str:
        """Add Coordinate Attention in full or along one axis."""
        for name in ("time", "frequency"):
            if name in attention.axes:
                sequence = self._pooled(getattr(context, name), name, attention.stride)
                weights = pointwise(self.nodes, sequence, attention.axes[name])
                x = self.nodes.op("Mul", x, self.nodes.op("Sigmoid", weights))
        return x

    def _whole(self, x: str, source: nn.Module, context: ContextNames | None, channels: int) -> str:
        """Add an attention that needs the whole map."""
        if isinstance(source, OriginalCoordinateAttention):
            parts = folded_original(source)
            return self._weighted(x, Coordinates(parts, stride=1), self._context(x, Summary(parts)))
        place = torch.zeros(1, channels, 1, 1)
        point = torch.zeros(1, 0 if self.block.context is None else self.block.context.frequency.out_features, 1, 1)
        example = None if context is None else Context(point[..., 0, 0], point, point)
        return trace(self.nodes, source, (x, context), (place, example))

    def _stage(self, x: str, stage: FusedStage, depthwise: tuple[int, int, int] | None = None) -> str:
        nodes = self.nodes
        kernels = stage.kernels.detach().cpu().numpy()  # [K, C_in, C_out] or [K, C, 1, k, k]
        if depthwise is None:
            kernels = kernels.transpose(0, 2, 1)[..., None, None]  # [K, C_out, C_in, 1, 1]
        else:
            self.n_bands = (self.n_bands - 1) // depthwise[1] + 1
        size, *strides = depthwise or (1, 1, 1)
        groups = 1 if depthwise is None else kernels.shape[1]
        geometry: dict[str, Any] = {"strides": strides, "pads": [size // 2] * 4, "group": groups}
        bias = stage.bias.detach().cpu().numpy()
        mixture = nodes.op("Softmax", self._read(x), axis=1) if stage.dynamic else ""  # [B, K]
        if self.free_batch and stage.dynamic:
            y = self._mixed(x, kernels, mixture, geometry, bias)
        else:
            kernel = (
                nodes.reshape(self._mix(mixture, kernels), *kernels.shape[1:])
                if stage.dynamic
                else nodes.constant(kernels[0])
            )
            if stage.n_maps == 2 and not self.free_batch and not self.own:  # the maps are known before the convolution
                return self._two_maps(x, kernel, nodes.constant(bias), self._maps(x, 2), geometry)
            y = nodes.op("Conv", x, kernel, bias, **geometry)
            if depthwise is None and not stage.dynamic:
                nodes.on_maps.append(y)
        if stage.n_maps:
            values = [
                nodes.op("Add", nodes.op("Mul", y, self._place(slope)), self._place(intercept))
                for slope, intercept in self._maps(y, stage.n_maps)
            ]
            return str(nodes.op("Max", *values)) if len(values) > 1 else str(values[0])
        return str(y) if stage.activation_name == "identity" else str(nodes.op(ACTIVATIONS[stage.activation_name], y))

    def _mixed(self, x: str, kernels: Any, mixture: str, geometry: dict[str, Any], bias: Any) -> str:
        nodes = self.nodes
        n_kernels, c_out = kernels.shape[:2]
        if geometry["group"] == 1:
            kernel = nodes.reshape(self._mix(mixture, kernels), -1, c_out, kernels.shape[2])
            y = nodes.op("MatMul", kernel, nodes.reshape(x, 0, kernels.shape[2], -1))
        else:
            every = nodes.constant(kernels.swapaxes(0, 1).reshape(-1, *kernels.shape[2:]))  # [C K, 1, k, k]
            each = nodes.reshape(nodes.op("Conv", x, every, **geometry), 0, c_out, n_kernels, -1)  # [B, C, K, F' T']
            y = nodes.op("MatMul", nodes.reshape(mixture, -1, 1, 1, n_kernels), each)
        return str(nodes.op("Add", nodes.reshape(y, 0, c_out, self.n_bands, -1), bias[:, None, None]))

    def _mix(self, mixture: str, kernels: Any) -> str:
        """Return the kernels [B, C_out C_in k k] of clips, mixed of [K, C_out, C_in, k, k]."""
        rows = self.nodes.reshape(self.nodes.constant(kernels), len(kernels), -1)
        return str(self.nodes.op("MatMul", mixture, rows))

    def _maps(self, x: str, n_maps: int) -> list[tuple[str, str]]:
        """Return slopes and intercepts [B, C] of each map."""
        nodes = self.nodes
        theta = nodes.op("Split", nodes.op("Sigmoid", self._read(x)), axis=1, n_outputs=2 * n_maps)
        scales = [2 * DynamicReLU.SLOPE_RANGE] * n_maps + [2 * DynamicReLU.INTERCEPT_RANGE] * n_maps
        offsets = [(i == 0) - scale / 2 for i, scale in enumerate(scales)]
        found = []
        for values, scale, offset in zip(theta, scales, offsets, strict=True):
            found.append(nodes.op("Add", nodes.op("Mul", values, [scale]), [offset]))
        return list(zip(found[:n_maps], found[n_maps:], strict=True))

    def _two_maps(self, x: str, kernel: str, bias: str, maps: list[tuple[str, str]], geometry: dict[str, Any]) -> str:
        """Add a convolution and the maximum of two maps, the steeper folded into the kernel as in the fused form."""
        nodes = self.nodes
        (slope0, intercept0), (slope1, intercept1) = ((nodes.reshape(a, -1), nodes.reshape(b, -1)) for a, b in maps)
        slope0 = nodes.op("Add", slope0, [TINY])  # not below 0 before, so nothing divides by 0
        first = nodes.op("Greater", slope0, nodes.op("Abs", slope1))
        steep, flat = nodes.op("Where", first, slope0, slope1), nodes.op("Where", first, slope1, slope0)
        top, other = nodes.op("Where", first, intercept0, intercept1), nodes.op("Where", first, intercept1, intercept0)
        ratio = nodes.op("Div", flat, steep)
        shift = nodes.op("Sub", other, nodes.op("Mul", ratio, top))
        kernel = nodes.op("Mul", kernel, nodes.reshape(steep, -1, 1, 1, 1))
        y = nodes.op("Conv", x, kernel, nodes.op("Add", nodes.op("Mul", bias, steep), top), **geometry)
        lower = nodes.op("Add", nodes.op("Mul", y, nodes.reshape(ratio, -1, 1, 1)), nodes.reshape(shift, -1, 1, 1))
        return str(nodes.op("Max", y, lower))

    def _place(self, values: str) -> str:
        """Let [B, C] stand at [B, C, 1, 1]."""
        return str(self.nodes.op("Unsqueeze", values, [2, 3]))

    def _pooled(self, sequence: str, name: str, stride: int) -> str:
        if stride == 1:
            return sequence
        sizes = {"kernel_shape": [3, 1], "strides": [stride, 1], "pads": [1, 0, 1, 0]}
        if name == "time":
            sizes = {key: [*reversed(values[:2]), *reversed(values[2:])] for key, values in sizes.items()}
        return str(self.nodes.op("AveragePool", sequence, count_include_pad=1, **cast(dict[str, Any], sizes)))
