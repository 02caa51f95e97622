"""Parameters and multiply-adds of a network, computed from its configuration.

The counting rule is that of the paper's tables: multiply-adds of convolutions, linear layers and matrix products
(including the kernel aggregation of dynamic convolutions) for one spectrogram. Weights, audio and PyTorch are not
needed; only a custom attention mechanism is run once, on tensors without values.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dymn.architectures import ATTENTION_REDUCTION, check_parts, has_context, own_context_size
from dymn.config import BlockConfig, ModelConfig, SequenceConfig, check, round_channels
from dymn.profiling.networks import Network, resolve
from dymn.weights.shapes import n_parameters

if TYPE_CHECKING:
    from torch import nn

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

    @property
    def values(self) -> int:
        """Number of values."""
        return self.channels * self.places


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
    found: dict[str, dict[str, int]] = {"stem": {"convolution": _convolution(STEM_TAPS * config.in_chans, stem)}}
    x, parameters = stem, n_parameters(config)
    for place, block in zip(places[1:-2], config.blocks, strict=True):
        found[place] = _block(block, x)
        x = x.after(block.c_out, *block.strides)
        if block.attention is not None and block.attention not in ATTENTION_MACS:
            parameters += sum(parameter.numel() for parameter in _custom(block).parameters())
    last = x.after(config.c_last, 1)
    found["last"] = {"convolution": _convolution(x.channels, last)}
    found["head"] = {"head": _head(config, last)}
    parts = {place: {kind: macs for kind, macs in part.items() if macs} for place, part in found.items()}
    return Count(parameters, sum(macs for part in parts.values() for macs in part.values()), parts)


def place_names(config: ModelConfig) -> list[str]:
    """Return the places of Table I in the order of the signal."""
    return ["stem", *(f"block {i}" for i in range(1, len(config.blocks) + 1)), "last", "head"]


# The functions below return multiply-adds.


def _convolution(taps: int, out: Map) -> int:
    """Count a convolution of `taps` weights per output channel."""
    return taps * out.values


def _head(config: ModelConfig, last: Map) -> int:
    if config.sequence is not None:
        return _sequence(config.sequence, config.c_last, config.c_frame)
    if config.head == "fully_convolutional":
        return _convolution(last.channels, last._replace(channels=config.num_classes))
    if config.head == "attention_pooling":
        return config.c_last * 2 * config.pooling_heads * config.num_classes * last.frames
    return config.c_last * config.c_hidden + config.c_hidden * config.num_classes


def _sequence(config: SequenceConfig, c_in: int, c_frame: int) -> int:
    """Count a sequence model and the two heads; the products of attention are those of matrices."""
    rows, size = config.length, config.size
    heads = c_frame * (config.n_frame_classes * rows + config.n_clip_classes)
    if config.kind == "none":
        return heads
    if config.kind == "gru":
        inputs = [c_in, *[2 * size] * (config.n_layers - 1)]
        return heads + 2 * sum((values + size) * 3 * size * rows for values in inputs)
    attention = (3 + 1) * size * size + 2 * rows * size  # layers before and after; with keys, and with values
    mix = size * config.n_heads if config.kind == "tf" else 3 * size * 2 * size  # gates, or recurrent layers
    feed = 2 * size * config.expansion * size
    before = c_in * size * rows if config.has_input(c_in) else 0
    return heads + before + config.n_layers * rows * (attention + mix + feed)


def _block(block: BlockConfig, x: Map) -> dict[str, int]:
    """Count a block on a map `x`, by kind."""
    expanded, filtered = x.after(block.c_exp, 1), x.after(block.c_exp, *block.strides)
    stages = [("expand", block.c_in, block.c_in, expanded)] if block.c_exp != block.c_in else []
    stages += [
        ("depthwise", block.c_exp, block.kernel_size**2, filtered),
        ("project", block.c_exp, block.c_exp, filtered._replace(channels=block.c_out)),
    ]
    found: Counter[str] = Counter()
    if has_context(block):
        found["context"] += (x.bands + x.frames) * block.c_in * block.context_size
    for position, c_in, taps, out in stages:
        found["convolution"] += _convolution(taps, out)
        if position in block.dynamic_convs:
            found["aggregation"] += block.n_kernels * taps * out.channels
            found["context"] += _coefficients(block, "conv", c_in, block.n_kernels)
        if position in block.dynamic_relus:
            found["context"] += _coefficients(block, "relu", out.channels, 2 * block.n_maps * out.channels)
    if block.attention is not None:
        found["attention"] += _attention(block, filtered)
    return found


def _coefficients(block: BlockConfig, part: str, channels: int, n_values: int) -> int:
    """Count the layers that compute `n_values` coefficients from the context of a dynamic part of a block."""
    if block.context == "own":
        return own_context_size(part, channels) * (channels + n_values)
    return block.context_size * (2 if block.context == "concatenated" else 1) * n_values


def _attention(block: BlockConfig, x: Map) -> int:
    """Count an attention on a map `x`, the output of the depthwise convolution."""
    known = ATTENTION_MACS.get(block.attention or "")
    if known is None:
        return _measured(block, x)
    reduction = block.se_reduction if block.attention == "se" else ATTENTION_REDUCTION
    return known(x, block.context_size, round_channels(x.channels // reduction))


# of a map, the size H of the context and the size h of a hidden layer
ATTENTION_MACS: dict[str, Callable[[Map, int, int], int]] = {
    "ca": lambda x, H, h: H * x.channels * (x.bands + x.frames),
    "ca_frequency": lambda x, H, h: H * x.channels * x.bands,
    "ca_time": lambda x, H, h: H * x.channels * x.frames,
    "ca_original": lambda x, H, h: 2 * h * x.channels * (x.bands + x.frames),
    "ta": lambda x, H, h: GATE_TAPS * (x.places + x.channels * (x.bands + x.frames)),
    "srm": lambda x, H, h: 0,
    "se": lambda x, H, h: 2 * x.channels * h,
    "grn": lambda x, H, h: 0,
    "cbam": lambda x, H, h: 4 * x.channels * h + GATE_TAPS * x.places,
    "gc": lambda x, H, h: 2 * x.values + 2 * x.channels * h,
}


def _custom(block: BlockConfig) -> nn.Module:
    """Return a custom attention, which the user has added to `ATTENTIONS`, as a module without values."""
    import torch

    from dymn.models.layers.attention import build_attention

    with torch.device("meta"):
        return build_attention(block).eval()


def _measured(block: BlockConfig, x: Map) -> int:
    """Count a custom attention by running it on tensors without values."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dymn.models.layers import Context

    module = _custom(block)
    with torch.device("meta"), torch.no_grad():
        n_bands, n_frames = x.bands * block.stride, x.frames * block.stride
        sizes = ((block.context_size,), (block.context_size, n_bands, 1), (block.context_size, 1, n_frames))
        context = Context(*(torch.empty(1, *size) for size in sizes))
        with FlopCounterMode(display=False) as counter:
            module(torch.empty(1, *x), context)
    return int(counter.get_total_flops() // 2)
