"""A network and its front end as operations of ONNX, from the weights of the fused form.

There are two forms of the dynamic parts. For one clip a mixed kernel is the weight of a convolution. For a free number of clips a
dynamic pointwise convolution is a product of matrices, and a dynamic depthwise one, for which ONNX has no word, is one convolution
with all K kernels whose outputs are mixed.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from dymn.config import FrontEndConfig
from dymn.errors import ConfigError
from dymn.export.nodes import Nodes
from dymn.fast.fused import Coordinates, FusedBlock, FusedNetwork, FusedStage, WholeMap
from dymn.frontend import LOG_OFFSET, PREEMPHASIS, mel_basis
from dymn.layers import DynamicReLU
from dymn.layers.attention import SqueezeExcitation

TINY = 1e-30


def front_end(nodes: Nodes, waveform: str, config: FrontEndConfig) -> str:
    """Add log-mel spectrograms [B, 1, n_mels, frames] of waveforms [B, N], in float32.

    The Fourier transform is a convolution with the windowed waves of those frequencies that a mel filter looks at: it is as quick as
    the operator STFT in ONNX Runtime, and it runs everywhere. N is at least n_fft / 2 + 2; the reflection at the edges needs it.
    """
    c = config
    basis = mel_basis(c, c.f_min, c.f_max).numpy()
    bins = np.flatnonzero(basis.any(axis=0))
    offset = (c.n_fft - c.win_length) // 2  # of the window in the frame
    places = 2 * np.pi * bins[:, None] * (np.arange(c.win_length) + offset) / c.n_fft
    window = torch.hann_window(c.win_length, periodic=False, dtype=torch.float64).numpy()
    waves = np.concatenate([np.cos(places), np.sin(places)]) * window  # [2 bins, win_length]
    reach = c.n_fft // 2 - offset
    signal = nodes.op("Unsqueeze", waveform, nodes.constant(np.array([1])))  # [B, 1, N]
    one, end, axis = nodes.constant(np.array([1])), nodes.constant(np.array([2**62])), nodes.constant(np.array([2]))
    later = nodes.op("Slice", signal, one, end, axis)
    earlier = nodes.op("Slice", signal, nodes.constant(np.array([0])), nodes.constant(np.array([-1])), axis)
    emphasised = nodes.op("Sub", later, nodes.op("Mul", earlier, nodes.constant(np.array([PREEMPHASIS]))))
    padded = nodes.op("Pad", emphasised, nodes.constant(np.array([0, 0, reach, 0, 0, reach])), mode="reflect")
    spectrum = nodes.op("Conv", padded, nodes.constant(waves[:, None], exact=True), strides=[c.hop_length])  # [B, 2 bins, frames]
    filters = nodes.constant(np.tile(basis[:, bins], 2), exact=True)  # the same for both parts of a bin
    mel = nodes.op("MatMul", filters, nodes.op("Mul", spectrum, spectrum))
    log = nodes.op("Log", nodes.op("Add", mel, nodes.constant(np.array([LOG_OFFSET]))))
    scaled = nodes.op("Add", nodes.op("Mul", log, nodes.constant(np.array([0.2]))), nodes.constant(np.array([0.9])))
    return str(nodes.op("Unsqueeze", scaled, nodes.constant(np.array([1]))))


def network(nodes: Nodes, log_mel: str, source: FusedNetwork, n_mels: int, free_batch: bool) -> tuple[str, str]:
    """Add a network on log-mel spectrograms; return the names of logits [B, C] and embedding [B, D].

    Raises:
        ConfigError: if the network has a part for which there is no form in ONNX here.
    """
    stem = source.stem
    pads = [int(p) for p in stem.padding]
    x = nodes.op("Conv", log_mel, constant(nodes, stem.weight), constant(nodes, stem.bias), strides=list(stem.stride), pads=pads * 2)
    x = nodes.op("HardSwish", x)
    n_bands = (n_mels - 1) // 2 + 1
    for i, block in enumerate(source.blocks):
        if not isinstance(block, FusedBlock):
            raise ConfigError(f"Block {i + 1} has dynamic parts with contexts of their own, which dymn cannot export to ONNX.")
        x = _Block(nodes, block, n_bands, free_batch).add(x, i)
        n_bands = (n_bands - 1) // block.stride + 1
    last = nodes.op("Conv", x, constant(nodes, source.last.weight[..., None, None]), constant(nodes, source.last.bias))
    embedding = nodes.op("Flatten", nodes.op("GlobalAveragePool", nodes.op("HardSwish", last)))
    layers = [source.head] if isinstance(source.head, torch.nn.Linear) else list(source.head.children())
    y = embedding
    for layer in layers:
        y = linear(nodes, y, layer) if isinstance(layer, torch.nn.Linear) else nodes.op("HardSwish", y)
    return str(y), str(embedding)


def constant(nodes: Nodes, tensor: torch.Tensor | None) -> str:
    """Add a tensor."""
    assert tensor is not None  # folded layers have biases
    return nodes.constant(tensor.detach().cpu().numpy())


def linear(nodes: Nodes, x: str, layer: torch.nn.Linear) -> str:
    """Add a linear layer on [B, C]."""
    return str(nodes.op("Gemm", x, constant(nodes, layer.weight), constant(nodes, layer.bias), transB=1))


def pointwise(nodes: Nodes, x: str, layer: Any) -> str:
    """Add a linear layer on the channels of [B, C, F, T]."""
    return str(nodes.op("Conv", x, constant(nodes, layer.weight[..., None, None]), constant(nodes, layer.bias)))


class _Block:
    """One block while it is added."""

    def __init__(self, nodes: Nodes, block: FusedBlock, n_bands: int, free_batch: bool) -> None:
        self.nodes, self.block, self.n_bands, self.free_batch = nodes, block, n_bands, free_batch
        self.heads: list[str] = []

    def add(self, x: str, number: int) -> str:
        """Add the block on [B, C_in, F, T]; return [B, C_out, F', T']."""
        nodes, block = self.nodes, self.block
        frequency, time = self._context(x) if block.context is not None else ("", "")
        *expand, depthwise, project = (stage for stage in block.stages if isinstance(stage, FusedStage))
        y = self._stage(x, expand[0]) if expand else x
        y = self._stage(y, depthwise, (block.kernel_size, block.stride))
        if isinstance(block.attention, Coordinates):
            for name, sequence in (("time", time), ("frequency", frequency)):
                if name in block.attention.axes:
                    weights = pointwise(nodes, self._pooled(sequence, name), block.attention.axes[name])
                    y = nodes.op("Mul", y, nodes.op("Sigmoid", weights))
        elif isinstance(block.attention, WholeMap):
            y = self._whole(y, block.attention.source, number)
        y = self._stage(y, project)
        return str(nodes.op("Add", y, x)) if block.has_residual else y

    def _context(self, x: str) -> tuple[str, str]:
        nodes, context = self.nodes, self.block.context
        assert context is not None
        frequency = nodes.op("HardSwish", pointwise(nodes, nodes.op("ReduceMean", x, axes=[3]), context.frequency))  # [B, H, F, 1]
        time = nodes.op("HardSwish", pointwise(nodes, nodes.op("ReduceMean", x, axes=[2]), context.time))  # [B, H, 1, T]
        if context.concatenated:
            vector = nodes.op("Concat", *(nodes.op("GlobalAveragePool", part) for part in (frequency, time)), axis=1)
        else:
            both = nodes.op("Concat", frequency, nodes.op("Transpose", time, perm=[0, 1, 3, 2]), axis=2)
            vector = nodes.op("GlobalAveragePool", both)
        if self.block.heads is not None:
            read = linear(nodes, nodes.op("Flatten", vector), self.block.heads)
            sizes = self.block.sizes
            many = len(sizes) > 1
            self.heads = nodes.op("Split", read, nodes.constant(np.array(sizes)), axis=1, n_outputs=len(sizes)) if many else [read]
        return frequency, time

    def _stage(self, x: str, stage: FusedStage, depthwise: tuple[int, int] | None = None) -> str:
        nodes = self.nodes
        kernels = stage.kernels.detach().cpu().numpy()  # [K, C_in, C_out] or [K, C, 1, k, k]
        if depthwise is None:
            kernels = kernels.transpose(0, 2, 1)[..., None, None]  # [K, C_out, C_in, 1, 1]
        else:
            self.n_bands = (self.n_bands - 1) // depthwise[1] + 1
        size, stride = depthwise or (1, 1)
        geometry: dict[str, Any] = {"strides": [stride] * 2, "pads": [size // 2] * 4, "group": 1 if depthwise is None else kernels.shape[1]}
        bias = stage.bias.detach().cpu().numpy()
        mixture = nodes.op("Softmax", self.heads.pop(0), axis=1) if stage.dynamic else ""  # [B, K]
        maps = self._maps(stage.n_maps, len(bias)) if stage.n_maps else []
        if self.free_batch and stage.dynamic:
            y = self._mixed(x, kernels, mixture, geometry, bias)
        else:
            kernel, offset = nodes.constant(kernels[0]), nodes.constant(bias)
            if stage.dynamic:
                kernel = nodes.reshape(nodes.op("MatMul", mixture, nodes.constant(kernels.reshape(len(kernels), -1))), *kernels.shape[1:])
            if stage.n_maps == 2 and not self.free_batch:
                return self._two_maps(x, kernel, offset, maps, geometry)
            y = nodes.op("Conv", x, kernel, offset, **geometry)
        if maps:
            values = [nodes.op("Add", nodes.op("Mul", y, self._place(slope)), self._place(intercept)) for slope, intercept in maps]
            return str(nodes.op("Max", *values)) if len(values) > 1 else str(values[0])
        return str(y) if stage.activation_name == "Identity" else str(nodes.op(stage.activation_name, y))

    def _mixed(self, x: str, kernels: Any, mixture: str, geometry: dict[str, Any], bias: Any) -> str:
        nodes = self.nodes
        n_kernels, c_out = kernels.shape[:2]
        if geometry["group"] == 1:
            kernel = nodes.reshape(nodes.op("MatMul", mixture, nodes.constant(kernels.reshape(n_kernels, -1))), -1, c_out, kernels.shape[2])
            y = nodes.op("MatMul", kernel, nodes.reshape(x, 0, kernels.shape[2], -1))
        else:
            every = nodes.constant(kernels.swapaxes(0, 1).reshape(-1, *kernels.shape[2:]))  # [C K, 1, k, k]
            each = nodes.reshape(nodes.op("Conv", x, every, **geometry), 0, c_out, n_kernels, -1)  # [B, C, K, F' T']
            y = nodes.op("MatMul", nodes.reshape(mixture, -1, 1, 1, n_kernels), each)
        y = nodes.op("Add", nodes.reshape(y, 0, c_out, self.n_bands, -1), nodes.constant(bias[:, None, None]))
        return str(y)

    def _maps(self, n_maps: int, channels: int) -> list[tuple[str, str]]:
        """Return slopes and intercepts [B, C] of each map."""
        nodes = self.nodes
        theta = nodes.op("Split", nodes.op("Sigmoid", self.heads.pop(0)), axis=1, n_outputs=2 * n_maps)
        scales = [2 * DynamicReLU.SLOPE_RANGE] * n_maps + [2 * DynamicReLU.INTERCEPT_RANGE] * n_maps
        offsets = [(i == 0) - scale / 2 for i, scale in enumerate(scales)]
        found = []
        for values, scale, offset in zip(theta, scales, offsets, strict=True):
            found.append(nodes.op("Add", nodes.op("Mul", values, nodes.constant([scale])), nodes.constant([offset])))
        return list(zip(found[:n_maps], found[n_maps:], strict=True))

    def _two_maps(self, x: str, kernel: str, bias: str, maps: list[tuple[str, str]], geometry: dict[str, Any]) -> str:
        """Add a convolution with the maximum of two maps after it, the steeper of which is part of the kernel, as in the fused form."""
        nodes = self.nodes
        (slope0, intercept0), (slope1, intercept1) = ((nodes.reshape(a, -1), nodes.reshape(b, -1)) for a, b in maps)
        slope0 = nodes.op("Add", slope0, nodes.constant([TINY]))  # not below 0 before, so nothing divides by 0
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
        return str(self.nodes.op("Unsqueeze", values, self.nodes.constant(np.array([2, 3]))))

    def _pooled(self, sequence: str, name: str) -> str:
        stride = self.block.stride
        if stride == 1:
            return sequence
        sizes = {"kernel_shape": [3, 1], "strides": [stride, 1], "pads": [1, 0, 1, 0]}
        if name == "time":
            sizes = {key: [*reversed(values[:2]), *reversed(values[2:])] for key, values in sizes.items()}
        return str(self.nodes.op("AveragePool", sequence, count_include_pad=1, **cast(dict[str, Any], sizes)))

    def _whole(self, x: str, source: torch.nn.Module, number: int) -> str:
        nodes = self.nodes
        if not isinstance(source, SqueezeExcitation):
            name = type(source).__name__
            raise ConfigError(
                f"Block {number + 1} has {name}, which dymn cannot export to ONNX; it can: ca, ca_frequency, ca_time, se, none."
            )
        hidden = nodes.op("Relu", pointwise(nodes, nodes.op("GlobalAveragePool", x), source.squeeze))
        return str(nodes.op("Mul", x, nodes.op("Sigmoid", pointwise(nodes, hidden, source.excite))))
