"""Table I as a list of rows, and the named networks built from it.

DyMN and MN are two settings of one network (Sec. III).

This module contains only numbers and names and does not import PyTorch. `dymn.models.mobilenet` builds the networks.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dymn.config import (
    BlockConfig,
    ModelConfig,
    SequenceConfig,
    check,
    check_choice,
    check_number,
    check_numbers,
    round_channels,
    shown,
)
from dymn.errors import NOT_IMPORTED, ConfigError

# What a network can choose by name. The modules that define the classes enter them here; until one of them is imported,
# the class is None.
ATTENTIONS: dict[str, Any] = dict.fromkeys(
    ("ca", "ca_frequency", "ca_time", "ca_original", "ta", "srm", "se", "grn", "cbam", "gc")
)
CONTEXTS: dict[str, Any] = dict.fromkeys(("shared", "separate", "concatenated", "own"))
HEADS: dict[str, Any] = dict.fromkeys(("mlp", "fully_convolutional", "attention_pooling", "frames"))
SEQUENCES: dict[str, Any] = dict.fromkeys(("none", "tf", "gru", "hybrid"))
ACTIVATIONS = ("relu", "hardswish", "identity")
# of dynamic parts with a context of their own: as in the works that introduced them ([13], [14])
OWN_REDUCTIONS = {"conv": 4, "relu": 8}
ATTENTION_REDUCTION = 4  # of the hidden layers in Table VIII, as in MobileNetV3
NEEDS_CONTEXT = ("ca", "ca_frequency", "ca_time")  # attentions that read the context of the block


class Row(NamedTuple):
    """One inverted residual block of Table I, at width 1."""

    kernel_size: int
    c_exp: int
    c_out: int
    stride: int
    activation: str
    time_stride: int | None = None  # of a table that states both strides
    dilation: int = 1


STEM_CHANNELS = 16
TABLE_I = (
    Row(3, 16, 16, 1, "relu"),
    Row(3, 64, 24, 2, "relu"),
    Row(3, 72, 24, 1, "relu"),
    Row(5, 72, 40, 2, "relu"),
    Row(5, 120, 40, 1, "relu"),
    Row(5, 120, 40, 1, "relu"),
    Row(3, 240, 80, 2, "hardswish"),
    Row(3, 200, 80, 1, "hardswish"),
    Row(3, 184, 80, 1, "hardswish"),
    Row(3, 184, 80, 1, "hardswish"),
    Row(3, 480, 112, 1, "hardswish"),
    Row(3, 672, 112, 1, "hardswish"),
    Row(5, 672, 160, 2, "hardswish"),
    Row(5, 960, 160, 1, "hardswish"),
    Row(5, 960, 160, 1, "hardswish"),
)
FRAMEWISE_STRIDES = (
    *((1, 1), (2, 2), (2, 1), (1, 1), (1, 1), (2, 1), (1, 1), (2, 1)),
    *((1, 1), (1, 1), (2, 1), (1, 1), (1, 1), (1, 1), (2, 1)),
)
FRAMEWISE = tuple(
    row._replace(stride=frequency, time_stride=time)
    for row, (frequency, time) in zip(TABLE_I, FRAMEWISE_STRIDES, strict=True)
)
"""Table I with the strides of the frame-wise MobileNets (EfficientSED, arXiv 2503.11373): 128 bands become one, and a
frame of the last feature map lasts four of the spectrogram, 40 ms."""
TABLES = {"I": TABLE_I, "framewise": FRAMEWISE}
REDUCED_TAIL = {12: (1, 2), 13: (2, 2), 14: (2, 2)}  # by what c_exp and c_out of the last blocks are divided
DILATED = (12, 13, 14)  # blocks whose kernels MobileNetV3 can dilate by 2, the first in place of its stride
STRIDED = tuple(i for i, row in enumerate(TABLE_I) if row.stride == 2)
LAST_EXPANSION = 6
HIDDEN_CHANNELS = 1280
NO_ATTENTION = "none"

BLOCK_SETS: dict[str, tuple[int, ...]] = {
    "all": tuple(range(15)),
    "none": (),
    "first5": tuple(range(5)),
    "mid5": tuple(range(5, 10)),
    "last5": tuple(range(10, 15)),
    "se": (3, 4, 5, 10, 11, 12, 13, 14),  # where Table I has Squeeze-and-Excitation
}


@dataclass(frozen=True)
class Variant:
    """The settings in which the networks of Tables II and V-XIII differ; the defaults are DyMN-M.

    `attention` is a key of `ATTENTIONS`, or None (in files "none") for no attention. `dynamic_blocks` and
    `attention_blocks` are keys of `BLOCK_SETS` or block indices from 0 to 14; by default, `attention_blocks` are the
    dynamic blocks. `reduced_tail` halves the channels from the output of block 13 on, and `dilated` dilates the last
    three blocks, which keep their resolution, as in MobileNetV3; they must be static. `se_reduction` is r of
    Squeeze-and-Excitation, `pooling_heads` the number of heads of `head` "attention_pooling".
    """

    width: float = 1.0
    dynamic_blocks: str | tuple[int, ...] = "all"
    dynamic_convs: tuple[str, ...] = ("expand", "depthwise", "project")
    dynamic_relus: tuple[str, ...] = ("depthwise",)
    attention: str | None = "ca"
    attention_blocks: str | tuple[int, ...] | None = None
    context: str = "shared"
    reduction: int = 4
    h_min: int = 32
    h_max: int = 128
    n_kernels: int = 4
    n_maps: int = 2
    strides: tuple[int, ...] = (2, 2, 2, 2)
    reduced_tail: bool = False
    dilated: bool = False
    se_reduction: int = 4
    pooling_heads: int = 4
    head: str = "mlp"
    dropout: float = 0.2
    temperature: float = 1.0
    num_classes: int = 527
    in_chans: int = 1
    table: str = "I"
    sequence: str = "none"
    sequence_size: int = 256
    scores: str = "clip"

    def __post_init__(self) -> None:
        check_number("width", self.width, 0.05, 16)
        check_choice("table", self.table, TABLES)
        check_choice("sequence", self.sequence, SEQUENCES)
        known = self.attention in (None, NO_ATTENTION, *ATTENTIONS)
        check(
            known,
            f"attention is {self.attention!r}; allowed: {NO_ATTENTION}, {', '.join(ATTENTIONS)}. {NOT_IMPORTED}",
        )
        check_choice("context", self.context, CONTEXTS)
        check_choice("head", self.head, HEADS)
        strides_fit = len(self.strides) == len(STRIDED) and all(stride in (1, 2) for stride in self.strides)
        check(strides_fit, f"strides is {self.strides}; it must be {len(STRIDED)} numbers, each 1 or 2.")
        check(
            (self.table == "framewise") == (self.head == "frames"),
            f"table, head are {self.table!r}, {self.head!r}; the table framewise and the head frames must be used "
            "together.",
        )
        check(
            self.sequence == "none" or self.head == "frames",
            f"sequence is {self.sequence!r}; only the networks fmn04 ... fmn30 have a sequence model.",
        )
        check_numbers(self, dict.fromkeys(("reduction", "h_min", "h_max"), 2**16), 1, whole=True)
        for name in ("reduced_tail", "dilated"):
            check(
                isinstance(getattr(self, name), bool), f"{name} is {getattr(self, name)!r}; it must be true or false."
            )
        check(self.table == "I" or not self.dilated, "dilated is true; frame-wise networks are not dilated.")
        check(
            self.se_reduction == 4 or self.attention == "se",
            f"se_reduction is {self.se_reduction!r}; it applies to attention 'se' only, not {self.attention!r}.",
        )
        check(
            self.pooling_heads == 4 or self.head == "attention_pooling",
            f"pooling_heads is {self.pooling_heads!r}; it applies to the head attention_pooling only, not {self.head}.",
        )
        check(self.h_min <= self.h_max, f"h_min, h_max are {self.h_min}, {self.h_max}; h_min <= h_max is required.")

    def config(self) -> ModelConfig:
        """Return the configuration of the network, with all channel counts."""

        def scaled(channels: int) -> int:
            return round_channels(channels * self.width)

        dynamic = _block_indices(self.dynamic_blocks)
        attentive = dynamic if self.attention_blocks is None else _block_indices(self.attention_blocks)
        strides = dict(zip(STRIDED, self.strides, strict=True)) if self.table == "I" else {}
        blocks = []
        c_in = scaled(STEM_CHANNELS)
        for i, row in enumerate(TABLES[self.table]):
            divisors = REDUCED_TAIL.get(i, (1, 1)) if self.reduced_tail else (1, 1)
            attention = self.attention if i in attentive and self.attention != NO_ATTENTION else None
            c_exp, c_out = scaled(row.c_exp // divisors[0]), scaled(row.c_out // divisors[1])
            blocks.append(
                BlockConfig(
                    c_in=c_in,
                    c_exp=c_exp,
                    c_out=c_out,
                    kernel_size=row.kernel_size,
                    stride=strides.get(i, row.stride),
                    activation=row.activation,
                    dynamic_convs=self.dynamic_convs if i in dynamic else (),
                    dynamic_relus=self.dynamic_relus if i in dynamic else (),
                    attention=attention,
                    context=self.context,
                    context_size=context_size(c_exp, self.width, self.reduction, self.h_min, self.h_max),
                    n_kernels=self.n_kernels,
                    n_maps=self.n_maps,
                    time_stride=row.time_stride,
                    dilation=2 if self.dilated and i in DILATED else 1,
                    se_reduction=self.se_reduction if attention == "se" else ATTENTION_REDUCTION,
                )
            )
            c_in = c_out
        return ModelConfig(
            width=self.width,
            blocks=tuple(blocks),
            c_last=LAST_EXPANSION * c_in,
            c_hidden=scaled(HIDDEN_CHANNELS // (2 if self.reduced_tail else 1)),
            num_classes=self.num_classes,
            head=self.head,
            dropout=self.dropout,
            temperature=self.temperature,
            in_chans=self.in_chans,
            sequence=self._sequence() if self.head == "frames" else None,
            pooling_heads=self.pooling_heads,
        )

    def _sequence(self) -> SequenceConfig:
        return SequenceConfig(
            kind=self.sequence,
            size=self.sequence_size,
            n_heads=sequence_heads(self.sequence, self.sequence_size),
            n_frame_classes=self.num_classes,
            n_clip_classes=self.num_classes,
            scores=self.scores,
        )


def sequence_heads(kind: str, size: int) -> int:
    """Return the number of attention heads of EfficientSED's sequence models."""
    return 4 if kind == "tf" and size < 128 else 8


def context_size(c_exp: int, width: float, reduction: int = 4, h_min: int = 32, h_max: int = 128) -> int:
    """Return H, a block's context size: a share of `c_exp` within bounds that scale with the width (Sec. IV-A.3)."""
    return min(max(round_channels(c_exp // reduction), round_channels(h_min * width)), round_channels(h_max * width))


def reads_context(attention: str | None) -> bool:
    """Return whether an attention reads the context of its block, rather than the feature map alone."""
    return attention in NEEDS_CONTEXT or getattr(ATTENTIONS.get(attention or ""), "needs_context", False)


def has_context(block: BlockConfig) -> bool:
    """Return whether a block generates a context (Sec. III-C) for its dynamic parts or its attention."""
    return (block.is_dynamic and block.context != "own") or reads_context(block.attention)


def own_context_size(part: str, channels: int) -> int:
    """Return the context size of a dynamic "conv" or "relu" with a context of its own (context "own", Table XII)."""
    return round_channels(channels // OWN_REDUCTIONS[part])


def check_parts(config: ModelConfig) -> None:
    """Raise a `ConfigError`, which names what is allowed, if a network has parts that do not exist."""
    check_choice("head", config.head, HEADS)
    if config.sequence is not None:
        kind = config.sequence.kind
        check(kind in SEQUENCES, f"kind of sequence model is {kind!r:.80}; allowed: {', '.join(SEQUENCES)}.")
    for block in config.blocks:
        check_block(block)


def check_block(block: BlockConfig) -> None:
    """Raise a `ConfigError`, which names what is allowed, if a block has parts that do not exist."""
    check(
        block.attention is None or block.attention in ATTENTIONS,
        f"attention is {block.attention!r}; allowed: None, {', '.join(ATTENTIONS)}. {NOT_IMPORTED}",
    )
    check_choice("context", block.context, CONTEXTS)
    check_choice("activation", block.activation, ACTIVATIONS)


def _block_indices(blocks: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(blocks, str):
        check(
            blocks in BLOCK_SETS,
            f"{blocks!r} is not a valid set of blocks; allowed: {', '.join(BLOCK_SETS)}, or indices from 0 to 14.",
        )
        return BLOCK_SETS[blocks]
    check(all(0 <= i < len(TABLE_I) for i in blocks), f"block indices are {tuple(blocks)}; each must be from 0 to 14.")
    return tuple(blocks)


MN: dict[str, Any] = {"dynamic_blocks": "none", "attention": "se", "attention_blocks": "se"}
FRAMES = {"table": "framewise", "head": "frames"}
MODELS: dict[str, dict[str, Any]] = {
    **{f"dymn{round(10 * width):02d}": {"width": width} for width in (0.2, 0.4, 0.6, 1.0, 2.0)},
    **{f"dymn{round(10 * width):02d}_replace_se": {"width": width, "dynamic_blocks": "se"} for width in (0.4, 1.0)},
    **{f"mn{round(10 * width):02d}": {"width": width, **MN} for width in (0.1, 0.2, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0)},
    **{f"fmn{round(10 * width):02d}": {"width": width, **MN, **FRAMES} for width in (0.4, 0.6, 1.0, 2.0, 3.0)},
}
ALIASES = {"dymn_s": "dymn04", "dymn_m": "dymn10", "dymn_l": "dymn20"}


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a named architecture, with the `Variant` settings in `overrides` replaced.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is not allowed.
    """
    key = ALIASES.get(name.lower().replace("-", "_"), name)
    if key not in MODELS:
        raise ConfigError(f"There is no architecture {name!r}. Available: {', '.join(MODELS)}.")
    settings = MODELS[key] | {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    allowed = [field.name for field in dataclasses.fields(Variant)]
    unknown = sorted(set(settings) - set(allowed))
    check(not unknown, f"A model has no setting {', '.join(unknown)}. Allowed: {', '.join(allowed)}.")
    try:
        return Variant(**settings).config()
    except (TypeError, AttributeError, OverflowError) as error:  # a setting of another type, out of a file
        raise ConfigError(f"A network cannot be built from {shown(settings, 300)}: {error}.") from error


def architectures(pattern: str | None = None) -> list[str]:
    """Return the names of the architectures that match a shell-style pattern; by default, all of them."""
    return [name for name in MODELS if pattern is None or fnmatch.fnmatch(name, pattern)]
