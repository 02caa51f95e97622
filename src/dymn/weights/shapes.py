"""The names and shapes of a network's weights, computed from its configuration."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping

from dymn.architectures import ATTENTION_REDUCTION, check_parts, has_context, own_context_size
from dymn.config import BlockConfig, ModelConfig, SequenceConfig, round_channels
from dymn.errors import WeightsError
from dymn.system.arrays import Array
from dymn.weights.format import BUFFERS, COUNTER, shorten

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]


def state_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of each array of a network's state by name, but for attentions that are not dymn's."""
    check_parts(config)
    return dict(_network(config))


def n_parameters(config: ModelConfig) -> int:
    """Return the number of values that training changes; those of attentions that are not dymn's own are left out."""
    return sum(math.prod(shape) for name, shape in state_shapes(config).items() if not name.endswith(BUFFERS))


def check_state(state: Mapping[str, Array], config: ModelConfig, source: str) -> None:
    """Raise a `WeightsError` unless weights fit a network, a `ConfigError` if its parts do not exist."""
    expected = state_shapes(config)
    foreign = tuple(
        f"blocks.{i}.attention."
        for i, block in enumerate(config.blocks)
        if block.attention is not None and not any(_attention("", block.attention, 8, 8))
    )
    compare_shapes(
        {name: values.shape for name, values in state.items() if not name.startswith(foreign)}, expected, source
    )


def compare_shapes(given: Mapping[str, Shape], expected: Mapping[str, Shape], source: str) -> None:
    """Raise a `WeightsError` for missing (but for counters), extra or wrong names and shapes of weights."""
    missing = [name for name in expected if name not in given and not name.endswith(COUNTER)]
    extra = [name for name in given if name not in expected]
    wrong = [
        f"{name} {list(given[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in given and tuple(given[name]) != tuple(shape)
    ]
    problems = [
        f"{word} {shorten(names)}"
        for word, names in (("missing", missing), ("extra", extra), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise WeightsError(f"{source} does not fit the network that its config describes: {'; '.join(problems)}.")


def _network(config: ModelConfig) -> Shapes:
    yield "stem.conv.weight", (config.blocks[0].c_in, config.in_chans, 3, 3)
    yield from _norm("stem.norm", config.blocks[0].c_in)
    for i, block in enumerate(config.blocks):
        yield from _block(f"blocks.{i}", block)
    yield "last.conv.weight", (config.c_last, config.blocks[-1].c_out, 1, 1)
    yield from _norm("last.norm", config.c_last)
    if config.sequence is not None:
        yield from _sequence("head.sequence", config.c_last, config.sequence)
        yield from _linear("head.frame", config.c_frame, config.sequence.n_frame_classes)
        yield from _linear("head.clip", config.c_frame, config.sequence.n_clip_classes)
    elif config.head == "attention_pooling":
        yield from _linear("head.classifier", config.c_last, 2 * config.pooling_heads * config.num_classes)
        yield "head.weights", (config.pooling_heads,)
    elif config.head == "mlp":
        yield from _linear("head.hidden", config.c_last, config.c_hidden)
        yield from _linear("head.classifier", config.c_hidden, config.num_classes)
    else:
        yield "head.classifier.weight", (config.num_classes, config.c_last, 1, 1)
        yield from _norm("head.norm", config.num_classes)


def _block(name: str, block: BlockConfig) -> Shapes:
    if has_context(block):
        for part in ("", "time_") if block.context == "separate" else ("",):
            yield f"{name}.context.{part}conv.weight", (block.context_size, block.c_in, 1, 1)
            yield from _norm(f"{name}.context.{part}norm", block.context_size)
    if block.c_exp != block.c_in:
        yield from _stage(name, block, "expand", block.c_in, (block.c_exp, block.c_in, 1, 1))
    yield from _stage(name, block, "depthwise", block.c_exp, (block.c_exp, 1, block.kernel_size, block.kernel_size))
    if block.attention is not None:
        reduction = block.se_reduction if block.attention == "se" else ATTENTION_REDUCTION
        yield from _attention(f"{name}.attention", block.attention, block.c_exp, block.context_size, reduction)
    yield from _stage(name, block, "project", block.c_exp, (block.c_out, block.c_exp, 1, 1))


def _stage(block_name: str, block: BlockConfig, position: str, c_in: int, kernel: Shape) -> Shapes:
    name = f"{block_name}.{position}"
    conv = f"{name}.conv"
    if position in block.dynamic_convs:
        conv = yield from _dynamic(conv, block, "conv", c_in, block.n_kernels)
        kernel = (block.n_kernels, *kernel)
        c_out = kernel[1]
    else:
        c_out = kernel[0]
    yield f"{conv}.weight", kernel
    yield from _norm(f"{name}.norm", c_out)
    if position in block.dynamic_relus:
        yield from _dynamic(f"{name}.activation", block, "relu", c_out, 2 * block.n_maps * c_out)


def _dynamic(
    name: str, block: BlockConfig, part: str, channels: int, n_values: int
) -> Generator[tuple[str, Shape], None, str]:
    """Yield the layers that read coefficients off a context; return the name of the part that they belong to."""
    size = block.context_size * (2 if block.context == "concatenated" else 1)
    if block.context == "own":
        size = own_context_size(part, channels)
        yield from _linear(f"{name}.squeeze", channels, size)
        name = f"{name}.part"
    yield from _linear(f"{name}.coefficients", size, n_values)
    return name


def _attention(name: str, attention: str, c: int, context_size: int, reduction: int = ATTENTION_REDUCTION) -> Shapes:
    hidden = round_channels(c // reduction)
    if attention in ("ca", "ca_frequency", "ca_time", "ca_original"):
        size = hidden if attention == "ca_original" else context_size
        for axis in ("frequency", "time"):
            if attention in ("ca", "ca_original", f"ca_{axis}"):
                yield f"{name}.{axis}.weight", (c, size, 1, 1)
                yield f"{name}.{axis}.bias", (c,)
        if attention == "ca_original":
            yield f"{name}.context.conv.weight", (hidden, c, 1, 1)
            yield f"{name}.context.conv.bias", (hidden,)
            yield from _norm(f"{name}.context.norm", hidden)
    elif attention == "ta":
        for i in range(3):
            yield f"{name}.gates.{i}.conv.weight", (1, 2, 7, 7)
            yield from _norm(f"{name}.gates.{i}.norm", 1)
    elif attention == "srm":
        yield f"{name}.style", (c, 2)
        yield from _norm(f"{name}.norm", c)
    elif attention == "grn":
        yield from ((f"{name}.{value}", (1,)) for value in ("scale", "shift"))
    elif attention in ("se", "gc"):
        yield from _linear(f"{name}.squeeze", c, hidden)
        yield from _linear(f"{name}.excite", hidden, c)
        if attention == "gc":
            yield f"{name}.key.weight", (1, c, 1, 1)
            yield from ((f"{name}.norm.{value}", (hidden,)) for value in ("weight", "bias"))
    elif attention == "cbam":
        yield f"{name}.squeeze.weight", (hidden, c)
        yield f"{name}.excite.weight", (c, hidden)
        yield f"{name}.gate.conv.weight", (1, 2, 7, 7)


def _sequence(name: str, c_in: int, config: SequenceConfig) -> Shapes:
    size, hidden = config.size, config.expansion * config.size
    if config.kind == "gru":
        for layer in range(config.n_layers):
            for way in ("", "_reverse"):
                for kind, n_in in (("ih", c_in if layer == 0 else 2 * size), ("hh", size)):
                    yield f"{name}.gru.weight_{kind}_l{layer}{way}", (3 * size, n_in)
                    yield f"{name}.gru.bias_{kind}_l{layer}{way}", (3 * size,)
    if config.kind not in ("tf", "hybrid"):
        return
    if config.has_input(c_in):
        yield from _linear(f"{name}.input", c_in, size)
    for layer in range(config.n_layers):
        mix, feed = f"{name}.mixes.{layer}", f"{name}.feeds.{layer}"
        yield f"{mix}.norm.gamma", (size,)
        yield f"{mix}.qkv.weight", (3 * size, size)
        yield f"{mix}.out.weight", (size, size)
        if config.kind == "tf":
            yield f"{mix}.frequencies", (size // config.n_heads // 2,)
            yield from _linear(f"{mix}.gates", size, config.n_heads)
        else:
            yield from ((f"{mix}.{way}.weight", (2 * size, size)) for way in ("ahead", "back"))
            yield f"{mix}.recurrent.weight", (size, 2 * size)
            yield from ((f"{mix}.{part}_norm.gamma", (size // config.n_heads,)) for part in ("attention", "recurrent"))
        yield f"{feed}.norm.gamma", (size,)
        yield from _linear(f"{feed}.expand", size, hidden)
        yield from _linear(f"{feed}.contract", hidden, size)
    yield f"{name}.norm.gamma", (size,)


def _linear(name: str, n_in: int, n_out: int) -> Shapes:
    yield f"{name}.weight", (n_out, n_in)
    yield f"{name}.bias", (n_out,)


def _norm(name: str, channels: int) -> Shapes:
    for value in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{value}", (channels,)
    yield f"{name}.{COUNTER}", ()
