"""Parameters and multiply-adds of a network, computed from its configuration.

The counting rule is that of the paper's tables: multiply-adds of convolutions, linear layers and matrix products
(including the kernel aggregation of dynamic convolutions) for one spectrogram. Weights, audio and PyTorch are not
needed; only a custom attention mechanism is run once, on tensors without values.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from dymn.architectures import ATTENTION_REDUCTION, check_parts, has_context, own_context_size
from dymn.config import BlockConfig, ModelConfig, SequenceConfig, check, round_channels
from dymn.profiling.networks import Network, resolve

KINDS = ("convolution", "aggregation", "context", "attention", "head")
STEM_TAPS = 9  # of the 3x3 kernel of the stem
GATE_TAPS = 2 * 7 * 7  # of the 7x7 convolution in TA and CBAM, on a maximum and a mean


@dataclass(frozen=True)
class Count:
    """Parameters and multiply-adds of a network for one spectrogram.

    `parts` maps the places of Table I ("stem", "block 1" ... "block 15", "last", "head") to the multiply-adds of each
    of `KINDS`; "context" contains the context generation and the linear layers that compute coefficients from it.
    """

    parameters: int
    macs: int
    parts: dict[str, dict[str, int]]

    @property
    def kinds(self) -> dict[str, int]:
        """Multiply-adds of each of `KINDS` over the whole network."""
        return {kind: sum(part.get(kind, 0) for part in self.parts.values()) for kind in KINDS}


class Cost(NamedTuple):
    """Parameters and multiply-adds of one part."""

    parameters: int
    macs: int


class Map(NamedTuple):
    """The shape of a feature map."""

    channels: int
    bands: int
    frames: int

    def after(self, channels: int, stride: int, time_stride: int | None = None) -> Map:
        """Return the shape after a convolution with padding of half its kernel."""
        return Map(channels, -(-self.bands // stride), -(-self.frames // (time_stride or stride)))

    @property
    def places(self) -> int:
        """Bands times frames."""
        return self.bands * self.frames


def count(model: Network, n_mels: int = 128, n_frames: int = 1000) -> Count:
    """Count parameters and multiply-adds for one spectrogram of `n_mels` bands and `n_frames` frames (1000 are 10 s).

    Raises:
        ConfigError: if a size is below 1; also as for `resolve`.

    Example:
        >>> count("dymn04").parameters
        1961239
    """
    check(n_mels >= 1 and n_frames >= 1, f"n_mels, n_frames are {n_mels}, {n_frames}; both must be at least 1.")
    return _count(dataclasses.replace(resolve(model), temperature=1.0), n_mels, n_frames)


@lru_cache(maxsize=256)
def _count(config: ModelConfig, n_mels: int, n_frames: int) -> Count:
    check_parts(config)
    places = place_names(config)
    stem = Map(1, n_mels, n_frames).after(config.blocks[0].c_in, 2)
    costs: dict[str, Mapping[str, Cost]] = {"stem": {"convolution": _convolution(STEM_TAPS * config.in_chans, stem)}}
    x = stem
    for place, block in zip(places[1:-2], config.blocks, strict=True):
        costs[place] = _block(block, x)
        x = x.after(block.c_out, *block.strides)
    last = x.after(config.c_last, 1)
    costs["last"] = {"convolution": _convolution(x.channels, last)}
    costs["head"] = {"head": _head(config, last)}
    parts = {place: {kind: cost.macs for kind, cost in part.items() if cost.macs} for place, part in costs.items()}
    parameters = sum(cost.parameters for part in costs.values() for cost in part.values())
    return Count(parameters, sum(macs for part in parts.values() for macs in part.values()), parts)


def place_names(config: ModelConfig) -> list[str]:
    """Return the places of Table I in the order of the signal."""
    return ["stem", *(f"block {i}" for i in range(1, len(config.blocks) + 1)), "last", "head"]


def _convolution(taps: int, out: Map) -> Cost:
    """Return the cost of a static convolution of `taps` weights per output channel, with its batch norm."""
    return Cost(taps * out.channels + 2 * out.channels, taps * out.channels * out.places)


def _linear(n_in: int, n_out: int, rows: int = 1, bias: bool = True) -> Cost:
    return Cost(n_in * n_out + bias * n_out, n_in * n_out * rows)


def _head(config: ModelConfig, last: Map) -> Cost:
    if config.sequence is not None:
        return _sequence(config.sequence, config.c_last, config.c_frame)
    if config.head == "fully_convolutional":
        return _convolution(last.channels, last._replace(channels=config.num_classes))
    if config.head == "attention_pooling":
        heads = config.pooling_heads
        return _total(_linear(config.c_last, 2 * heads * config.num_classes, last.frames), Cost(heads, 0))
    return _total(_linear(config.c_last, config.c_hidden), _linear(config.c_hidden, config.num_classes))


def _sequence(config: SequenceConfig, c_in: int, c_frame: int) -> Cost:
    """Return the cost of a sequence model and the two heads; the products of attention are those of matrices."""
    rows, size = config.length, config.size
    heads = _total(_linear(c_frame, config.n_frame_classes, rows), _linear(c_frame, config.n_clip_classes))
    if config.kind == "none":
        return heads
    if config.kind == "gru":
        inputs = [c_in, *[2 * size] * (config.n_layers - 1)]
        gates = [_linear(n_in, 3 * size, rows) for values in inputs for n_in in (values, size)]
        return _total(heads, *gates, *gates)
    hidden = config.expansion * size
    layer = [
        Cost(2 * size, 2 * rows * rows * size),  # two norms; queries with keys, and their weights with values
        _linear(size, 3 * size, rows, bias=False),
        _linear(size, size, rows, bias=False),
        _linear(size, hidden, rows),
        _linear(hidden, size, rows),
    ]
    if config.kind == "tf":
        layer.append(_linear(size, config.n_heads, rows))
    else:
        layer += [_linear(size, 2 * size, rows, bias=False)] * 2 + [_linear(2 * size, size, rows, bias=False)]
        layer.append(Cost(2 * (size // config.n_heads), 0))
    before = [_linear(c_in, size, rows)] if config.has_input(c_in) else []
    return _total(heads, *before, *layer * config.n_layers, Cost(size, 0))


def _total(*costs: Cost) -> Cost:
    return Cost(sum(cost.parameters for cost in costs), sum(cost.macs for cost in costs))


def _block(block: BlockConfig, x: Map) -> dict[str, Cost]:
    """Return the cost of a block on a map `x`, by kind."""
    expanded, filtered = x.after(block.c_exp, 1), x.after(block.c_exp, *block.strides)
    stages = [("expand", block.c_in, block.c_in, expanded)] if block.c_exp != block.c_in else []
    stages += [
        ("depthwise", block.c_exp, block.kernel_size**2, filtered),
        ("project", block.c_exp, block.c_exp, filtered._replace(channels=block.c_out)),
    ]
    found: Counter[str] = Counter()
    parameters = 0

    def book(kind: str, cost: Cost) -> None:
        nonlocal parameters
        parameters += cost.parameters
        found[kind] += cost.macs

    if has_context(block):
        twice = block.context == "separate"  # weights of its own for each of the two sequences
        size = block.context_size
        book("context", Cost((1 + twice) * (block.c_in * size + 2 * size), (x.bands + x.frames) * block.c_in * size))
    for position, c_in, taps, out in stages:
        n_kernels = block.n_kernels if position in block.dynamic_convs else 0
        kernel = taps * out.channels
        book("convolution", Cost(max(1, n_kernels) * kernel + 2 * out.channels, kernel * out.places))
        if n_kernels:
            book("aggregation", Cost(0, n_kernels * kernel))
            book("context", _read_off(block, "conv", c_in, n_kernels))
        if position in block.dynamic_relus:
            book("context", _read_off(block, "relu", out.channels, 2 * block.n_maps * out.channels))
    if block.attention is not None:
        book("attention", _attention(block, filtered))
    costs = {kind: Cost(0, macs) for kind, macs in found.items()}
    return costs | {"convolution": Cost(parameters, found["convolution"])}


def _read_off(block: BlockConfig, part: str, channels: int, n_values: int) -> Cost:
    """Return the cost of reading `n_values` coefficients off the context that a dynamic part of a block gets."""
    if block.context == "own":
        size = own_context_size(part, channels)
        return _total(_linear(channels, size), _linear(size, n_values))
    return _linear(block.context_size * (2 if block.context == "concatenated" else 1), n_values)


def _attention(block: BlockConfig, x: Map) -> Cost:
    """Return the cost of an attention on a map `x`, which the depthwise convolution has given."""
    known = ATTENTION_COSTS.get(block.attention or "")
    if known is None:
        return _measured(block, x)
    reduction = block.se_reduction if block.attention == "se" else ATTENTION_REDUCTION
    return known(x, block.context_size, round_channels(x.channels // reduction))


def _gate(*places: int, norm: int = 0) -> Cost:
    """Return the cost of 7x7 gates over maps of so many places, with or without batch norm (2 parameters)."""
    return Cost(len(places) * (GATE_TAPS + norm), GATE_TAPS * sum(places))


# of a map, the size H of the context and the size h of a hidden layer
ATTENTION_COSTS: dict[str, Callable[[Map, int, int], Cost]] = {
    "ca": lambda x, H, h: _total(_linear(H, x.channels, x.bands), _linear(H, x.channels, x.frames)),
    "ca_frequency": lambda x, H, h: _linear(H, x.channels, x.bands),
    "ca_time": lambda x, H, h: _linear(H, x.channels, x.frames),
    "ca_original": lambda x, H, h: _total(
        _linear(h, x.channels, x.bands),
        _linear(h, x.channels, x.frames),
        _linear(x.channels, h, x.bands + x.frames),
        Cost(2 * h, 0),
    ),
    "ta": lambda x, H, h: _gate(x.places, x.channels * x.frames, x.channels * x.bands, norm=2),
    "srm": lambda x, H, h: Cost(4 * x.channels, 0),
    "se": lambda x, H, h: _total(_linear(x.channels, h), _linear(h, x.channels)),
    "grn": lambda x, H, h: Cost(2, 0),
    "cbam": lambda x, H, h: _total(Cost(2 * x.channels * h, 4 * x.channels * h), _gate(x.places)),
    "gc": lambda x, H, h: _total(
        _linear(x.channels, 1, 2 * x.places, bias=False), _linear(x.channels, h), _linear(h, x.channels), Cost(2 * h, 0)
    ),
}


def _measured(block: BlockConfig, x: Map) -> Cost:
    """Return the cost of an attention that somebody added to `ATTENTIONS`, as it runs on tensors without values."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dymn.models.layers import Context
    from dymn.models.layers.attention import build_attention

    with torch.device("meta"), torch.no_grad():
        module = build_attention(block).eval()
        n_bands, n_frames = x.bands * block.stride, x.frames * block.stride
        sizes = ((block.context_size,), (block.context_size, n_bands, 1), (block.context_size, 1, n_frames))
        context = Context(*(torch.empty(1, *size) for size in sizes))
        with FlopCounterMode(display=False) as counter:
            module(torch.empty(1, *x), context)
    return Cost(sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops() // 2)
