"""Import of the state dicts published by EfficientAT (MIT licence, github.com/fschmid56/EfficientAT).

A file holds names and arrays only. Family, width, K, M, context sizes, classes, head and r of Squeeze-and-Excitation
follow from them; kernel sizes and activations are those of Table I. Temperature, strides, dilation, and whether a DyMN
applies its Coordinate Attention leave no trace in a file and are given by the caller.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dymn.architectures import (
    ATTENTION_REDUCTION,
    DILATED,
    HIDDEN_CHANNELS,
    LAST_EXPANSION,
    NO_ATTENTION,
    STRIDED,
    TABLE_I,
    Row,
    context_size,
    has_context,
)
from dymn.config import BlockConfig, ModelConfig, round_channels
from dymn.errors import ConfigError, WeightsError
from dymn.system.arrays import Array
from dymn.weights.files import WeightsFile, read_file
from dymn.weights.format import COUNTER, as_float32, check_finite, shorten
from dymn.weights.shapes import state_shapes
from dymn.weights.torch_files import read_tensors

C_LAST = LAST_EXPANSION * TABLE_I[-1].c_out
CLASSIFIERS = {
    "fully_convolutional": "classifier.0.weight",
    "attention_pooling": "classifier.subspace_proj.weight",
    "mlp": "classifier.5.weight",
}
"""The published name of the last layer's weight by head."""
POOLING_WEIGHTS = "classifier.head_weight"
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Renaming(NamedTuple):
    """Where one tensor of the published layout goes."""

    source: str
    target: str


class Imported(NamedTuple):
    """A published network: its configuration, and its weights under dymn's names."""

    config: ModelConfig
    state: dict[str, Array]


def read_efficientat(
    source: str | Path | WeightsFile | Mapping[str, Array],
    *,
    temperature: float = 1.0,
    strides: Sequence[int] = (2, 2, 2, 2),
    attention: str | None = "ca",
    dilated: bool = False,
    name: str = "The state dict",
) -> Imported:
    """Read a published state dict; return the network that it belongs to, with its weights in float32.

    Args:
        source: a file saved by `torch.save`, its content, or a mapping of published names to arrays.
        temperature, strides, attention, dilated: as for `dymn.weights.import_efficientat`, and so are the errors.
        name: the name of a mapping in messages.
    """
    name, state = open_state(source, name)
    if len(strides) != len(STRIDED) or any(stride not in (1, 2) for stride in strides):
        raise ConfigError(f"strides is {tuple(strides)}; it must be {len(STRIDED)} numbers, each 1 or 2.")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0.")
    if attention not in ("ca", None, NO_ATTENTION):
        raise ConfigError(f"attention is {attention!r}; allowed: ca, {NO_ATTENTION}.")
    dynamic_attention = "ca" if attention == "ca" else None
    try:
        config = _config(state, temperature, dict(zip(STRIDED, strides, strict=True)), dynamic_attention, dilated)
        entries = list(_entries(state, config))
    except KeyError as error:
        raise WeightsError(f"{name} does not fit an EfficientAT network: missing {error.args[0]}.") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{name} does not fit an EfficientAT network: {error}") from error
    if dynamic_attention is None and not any(block.is_dynamic for block in config.blocks):
        raise ConfigError(
            f"attention={attention!r} applies to dynamic blocks only, and {name} has no dynamic blocks. Omit "
            "attention; that of an MN is read from the file."
        )
    return Imported(
        config, taken(name, "EfficientAT", state, entries, config, _constants(state, config) | _unused(config))
    )


def open_state(source: str | Path | WeightsFile | Mapping[str, Array], name: str) -> tuple[str, dict[str, Array]]:
    """Return what a state dict is called in messages, a file by its path and a mapping `name`; its arrays in float32.

    Raises:
        WeightsError: if it cannot be read, or a value is not finite.
    """
    if isinstance(source, (str, Path)):
        source = read_file(Path(source))
    if isinstance(source, WeightsFile):
        name, source = str(source.path), read_tensors(source)
    state = {key: as_float32(values) for key, values in source.items()}
    check_finite(state, name)
    return name, state


def taken(
    name: str,
    family: str,
    state: Mapping[str, Array],
    entries: Collection[Renaming],
    config: ModelConfig,
    ignored: Collection[str] = (),
    exact: bool = False,
) -> dict[str, Array]:
    """Return the arrays of a published state dict under dymn's names, in dymn's shapes unless they must be `exact`.

    Raises:
        WeightsError: if they are not exactly those that the entries list, or do not fit the configuration.
    """
    expected = {entry.source for entry in entries}
    present = {key for key in state if not key.endswith(COUNTER)}
    missing, extra = sorted(expected - present), sorted(present - expected - set(ignored))
    if missing or extra:
        listed = [f"{word} {shorten(names)}" for word, names in (("missing", missing), ("extra", extra)) if names]
        raise WeightsError(f"{name} does not fit an {family} network: {'; '.join(listed)}.")
    shapes = state_shapes(config)
    targets = shapes.keys() ^ {entry.target for entry in entries}
    if unequal := sorted(target for target in targets if not target.endswith(COUNTER)):
        raise WeightsError(
            f"{name} does not fit an {family} network: its tensors disagree on whether it has {shorten(unequal)}."
        )
    values = {}
    for entry in entries:
        given, shape = state[entry.source], shapes[entry.target]
        if given.size != math.prod(shape) or (exact and given.shape != shape):
            raise WeightsError(
                f"{name}: {entry.source} has shape {list(given.shape)}, which does not fit {list(shape)}."
            )
        values[entry.target] = given.reshape(shape)
    return values


def _config(
    state: Mapping[str, Array],
    temperature: float,
    strides: Mapping[int, int],
    dynamic_attention: str | None,
    dilated: bool,
) -> ModelConfig:
    if "in_c.0.weight" in state:
        last = "out_c"
    elif "features.0.0.weight" in state:
        last = f"features.{len(TABLE_I) + 1}"
    else:
        raise KeyError("in_c.0.weight (of a DyMN) or features.0.0.weight (of an MN)")
    c_last = state[f"{last}.0.weight"].shape[0]
    head, classifier = next((head, name) for head, name in CLASSIFIERS.items() if name in state or head == "mlp")
    num_classes, n_heads = state[classifier].shape[0], 4
    if head == "attention_pooling":
        n_heads = state[POOLING_WEIGHTS].size
        num_classes //= 2 * n_heads
    c_exp = state["classifier.2.weight"].shape[0] if head == "mlp" else c_last
    width = c_exp / (HIDDEN_CHANNELS if head == "mlp" else TABLE_I[-1].c_exp)
    before_tail = state[f"{_stages(state, STRIDED[-1])['depthwise'].norm}.weight"].shape[0]
    if before_tail >= 1.5 * TABLE_I[STRIDED[-1]].c_exp * width:  # the tail, whose channels tell the width, is reduced
        width *= 2
    rows = [
        row._replace(stride=strides.get(i, 1), dilation=2 if dilated and i in DILATED else 1)
        for i, row in enumerate(TABLE_I)
    ]
    return ModelConfig(
        width=round(width, 3),
        blocks=block_configs(state, rows, width, dynamic_attention),
        c_last=c_last,
        c_hidden=c_exp if head == "mlp" else round_channels(HIDDEN_CHANNELS * c_last / C_LAST),
        num_classes=num_classes,
        head=head,
        temperature=temperature,
        pooling_heads=n_heads,
    )


def block_configs(
    state: Mapping[str, Array], rows: Sequence[Row], width: float, dynamic_attention: str | None = "ca"
) -> tuple[BlockConfig, ...]:
    """Return the blocks of a published network, whose channels are those of its arrays."""
    stem = "in_c" if "in_c.0.weight" in state else "features.0"
    blocks: list[BlockConfig] = []
    c_in = state[f"{stem}.0.weight"].shape[0]
    for i, row in enumerate(rows):
        blocks.append(_block_config(state, i, c_in, row, width, dynamic_attention))
        c_in = blocks[-1].c_out
    reduction = _reduction(state)
    return tuple(dataclasses.replace(b, se_reduction=reduction) if b.attention == "se" else b for b in blocks)


def _block_config(
    state: Mapping[str, Array], i: int, c_in: int, row: Row, width: float, dynamic_attention: str | None
) -> BlockConfig:
    stages = _stages(state, i)
    dynamic_convs = tuple(p for p, name in stages.items() if f"{name.conv}.residuals.0.weight" in state)
    c_exp = state[f"{stages['depthwise'].norm}.weight"].shape[0]
    n_kernels, n_maps = 4, 2
    if dynamic_convs:
        attention_groups, n_kernels = state[f"{stages['depthwise'].conv}.weight"].shape[1:3]
        if attention_groups != 1:
            raise ValueError(f"layers.{i} has {attention_groups} groups of kernel attention; only one is supported.")
    activation = f"layers.{i}.depth_act.coef_net.0.weight"
    if activation in state:
        n_maps = state[activation].shape[0] // (2 * c_exp)
    context = f"layers.{i}.context_gen.joint_conv.weight"
    static_attention = "se" if _squeeze_excitation(state, i) else None
    attention = dynamic_attention if context in state else static_attention
    return BlockConfig(
        c_in=c_in,
        c_exp=c_exp,
        c_out=state[f"{stages['project'].norm}.weight"].shape[0],
        kernel_size=row.kernel_size,
        stride=row.stride,
        time_stride=row.time_stride,
        activation=row.activation,
        dynamic_convs=dynamic_convs if c_exp != c_in or not dynamic_convs else BlockConfig.POSITIONS,
        dynamic_relus=("depthwise",) if activation in state else (),
        attention=attention,
        context_size=state[context].shape[0] if context in state else context_size(c_exp, width),
        n_kernels=n_kernels,
        n_maps=n_maps,
        dilation=row.dilation,
    )


def _reduction(state: Mapping[str, Array]) -> int:
    """Return r of Squeeze-and-Excitation: 4 as published, or else the least that gives all hidden layers."""
    names = [name for i in range(len(TABLE_I)) if (name := _squeeze_excitation(state, i))]
    shapes = [state[f"{name}.fc1.weight"].shape for name in names]  # hidden, channels
    most: int = max((channels for _, channels in shapes), default=0)
    for r in [ATTENTION_REDUCTION, *range(1, most + 1)]:
        if all(round_channels(channels // r) == hidden for hidden, channels in shapes):
            return int(r)
    return ATTENTION_REDUCTION  # which does not fit either, as the shapes will show


class StageNames(NamedTuple):
    """The published names of a convolution and its norm."""

    conv: str
    norm: str


def _stages(state: Mapping[str, Array], i: int) -> dict[str, StageNames]:
    """Return position → published names of block `i`, without "expand" where the block has none."""
    if f"layers.{i}.depth_norm.weight" in state:
        names = {"expand": "exp", "depthwise": "depth", "project": "proj"}
        stages = {p: StageNames(f"layers.{i}.{n}_conv", f"layers.{i}.{n}_norm") for p, n in names.items()}
        if f"{stages['expand'].norm}.weight" not in state:
            del stages["expand"]
        # A static convolution inside a dynamic block is published with a wrapper's name.
        return {
            p: s._replace(conv=f"{s.conv}.module") if f"{s.conv}.module.weight" in state else s
            for p, s in stages.items()
        }
    prefix = _static_prefix(state, i)
    convs = [j for j in range(4) if f"{prefix}.{j}.0.weight" in state]
    if len(convs) not in (2, 3):
        raise KeyError(f"{prefix}.0.0.weight and its neighbours, or layers.{i}.depth_norm.weight")
    positions = BlockConfig.POSITIONS[-len(convs) :]
    return {p: StageNames(f"{prefix}.{j}.0", f"{prefix}.{j}.1") for p, j in zip(positions, convs, strict=True)}


def _static_prefix(state: Mapping[str, Array], i: int) -> str:
    return f"layers.{i}.block" if "in_c.0.weight" in state else f"features.{i + 1}.block"


def _squeeze_excitation(state: Mapping[str, Array], i: int) -> str | None:
    prefix = _static_prefix(state, i)
    names = [f"{prefix}.{j}.conc_se_layers.0" for j in (1, 2)]
    return next((name for name in names if f"{name}.fc1.weight" in state), None)


def _entries(state: Mapping[str, Array], config: ModelConfig) -> Iterator[Renaming]:
    """Yield every tensor that a network of this config has, under its published name."""
    yield from backbone_entries(state, config)
    if config.head == "mlp":
        yield from _linear("classifier.2", "head.hidden")
        yield from _linear("classifier.5", "head.classifier")
    elif config.head == "attention_pooling":
        yield from _linear("classifier.subspace_proj", "head.classifier")
        yield Renaming(POOLING_WEIGHTS, "head.weights")
    else:
        yield Renaming("classifier.0.weight", "head.classifier.weight")
        yield from _norm("classifier.1", "head.norm")


def backbone_entries(state: Mapping[str, Array], config: ModelConfig) -> Iterator[Renaming]:
    """Yield the tensors of the first convolution, the blocks and the last convolution."""
    dymn = "in_c.0.weight" in state
    stem, last = ("in_c", "out_c") if dymn else ("features.0", f"features.{len(TABLE_I) + 1}")
    for source, target in ((stem, "stem"), (last, "last")):
        yield Renaming(f"{source}.0.weight", f"{target}.conv.weight")
        yield from _norm(f"{source}.1", f"{target}.norm")
    for i, block in enumerate(config.blocks):
        for position, names in _stages(state, i).items():
            target = f"blocks.{i}.{position}"
            yield Renaming(f"{names.conv}.weight", f"{target}.conv.weight")
            if position in block.dynamic_convs:
                yield from _linear(f"{names.conv}.residuals.0", f"{target}.conv.coefficients")
            yield from _norm(names.norm, f"{target}.norm")
        if block.dynamic_relus:
            yield from _linear(f"layers.{i}.depth_act.coef_net.0", f"blocks.{i}.depthwise.activation.coefficients")
        context = f"layers.{i}.context_gen"
        if has_context(block):
            yield Renaming(f"{context}.joint_conv.weight", f"blocks.{i}.context.conv.weight")
            yield from _norm(f"{context}.joint_norm", f"blocks.{i}.context.norm")
        if block.attention == "ca":
            yield from _linear(f"{context}.conv_f", f"blocks.{i}.attention.frequency")
            yield from _linear(f"{context}.conv_t", f"blocks.{i}.attention.time")
        elif block.attention == "se":
            attention = _squeeze_excitation(state, i)
            yield from _linear(f"{attention}.fc1", f"blocks.{i}.attention.squeeze")
            yield from _linear(f"{attention}.fc2", f"blocks.{i}.attention.excite")


def _linear(source: str, target: str) -> Iterator[Renaming]:
    for name in ("weight", "bias"):
        yield Renaming(f"{source}.{name}", f"{target}.{name}")


def _norm(source: str, target: str) -> Iterator[Renaming]:
    for name in STATISTICS:
        yield Renaming(f"{source}.{name}", f"{target}.{name}")


def _constants(state: Mapping[str, Array], config: ModelConfig) -> set[str]:
    """Return the names of the Dy-ReLU constants in the file, where they have the values that dymn builds in."""
    names = set()
    for i, block in enumerate(config.blocks):
        m = block.n_maps
        expected = {"lambdas": [1.0] * m + [0.5] * m, "init_v": [1.0] + [0.0] * (2 * m - 1)}
        for name, values in expected.items():
            key = f"layers.{i}.depth_act.{name}"
            if key in state and state[key].tolist() == values:
                names.add(key)
    return names


def _unused(config: ModelConfig) -> set[str]:
    """Return the names of tensors that a file may hold for parts of a dynamic block that its network does not use."""
    names = set()
    for i, block in enumerate(config.blocks):
        context = f"layers.{i}.context_gen"
        if block.attention is None:
            names |= {f"{context}.conv_{axis}.{name}" for axis in "ft" for name in ("weight", "bias")}
        if not has_context(block):
            names |= {f"{context}.joint_conv.weight", *(f"{context}.joint_norm.{name}" for name in STATISTICS)}
    return names
