"""Configurations of networks and front ends, as frozen dataclasses that are stored in every checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dymn.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Rebuild a config dataclass from the mapping that `to_dict` returned, also after a round trip through JSON.

    Raises:
        ConfigError: if a name is unknown or missing, or a value is not allowed.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{kind.__name__} must be a mapping of settings, not {type(values).__name__}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{kind.__name__} has no setting {', '.join(unknown)}. Allowed: {', '.join(fields)}.")
    arguments = {name: _restore(kind, name, value) for name, value in values.items()}
    try:
        made = kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} cannot be built from {sorted(values)}: {error}.") from error
    for name, value in arguments.items():
        _check_booleans(name, value, str(fields[name].type))
    return made


def _restore(kind: type, name: str, value: Any) -> Any:
    nested = getattr(kind, "NESTED", {}).get(name)
    if nested is not None and isinstance(value, dict):
        return from_dict(nested, value)
    if isinstance(value, (list, tuple)):
        return tuple(from_dict(nested, item) if nested is not None else item for item in value)
    return value


def _check_booleans(name: str, value: Any, declared: str) -> None:
    """Reject text and numbers for a boolean (Python takes "false" for true), and booleans for anything else.

    `declared` is the annotation of the setting: `bool`, perhaps with None, or a type without booleans.
    """

    def is_boolean(value: Any) -> bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # of Python or NumPy

    if declared.startswith("bool"):
        is_unset = value is None and declared.endswith("None")
        check(is_boolean(value) or is_unset, f"{name} is {shown(value)}; it must be true or false.")
    else:
        parts = value if isinstance(value, tuple) else (value,)
        check(
            not any(is_boolean(part) for part in parts),
            f"{name} is {shown(value)}; true and false are not allowed there.",
        )


def check(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with `message` unless `condition` is true."""
    if not condition:
        raise ConfigError(message)


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise a `ConfigError` unless `value` is one of the allowed names."""
    check(value in tuple(allowed), f"{name} is {value!r}; allowed: {', '.join(allowed)}.")


def check_numbers(settings: object, names: Mapping[str, float], low: float = 0, *, whole: bool = False) -> None:
    """Check numbers among settings with `check_number`: by name the highest allowed value, from `low` up.

    A name may have a section before it, such as "optim.lr", which the message shows.
    """
    for name, high in names.items():
        check_number(name, getattr(settings, name.rpartition(".")[2]), low, high, whole=whole)


def check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    """Raise a `ConfigError` unless `value` is a number from `low` to `high`; booleans are not numbers."""
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    kind = "whole number" if whole else "number"
    fits = number and low <= value <= high  # type: ignore[operator]
    check(fits, f"{name} is {shown(value)}; it must be a {kind} from {low:.12g} to {high:.12g}.")


def shown(value: object, limit: int = 80) -> str:
    """Return a value as shortened text for a message."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= limit else text[:limit] + "…"


def round_channels(channels: float) -> int:
    """Round to a multiple of 8: at least 8 and never below 90 % of the value (as in MobileNetV3)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


@dataclass(frozen=True)
class FrontEndConfig:
    """Settings of the log-mel spectrogram (Sec. IV-A.1).

    Lengths are in samples, frequencies in Hz. The two ranges define the jitter in training: f_min is drawn from [f_min,
    f_min + f_min_range), f_max from the f_max_range integers around f_max, of which the highest is f_max + f_max_range
    // 2; a range of 1 disables jitter. The logarithm is that of max(mel + log_offset, log_floor).
    """

    sample_rate: int = 32_000
    n_fft: int = 1024
    win_length: int = 800
    hop_length: int = 320
    n_mels: int = 128
    f_min: float = 0.0
    f_max: float = 15_000.0
    f_min_range: int = 10
    f_max_range: int = 2_000
    log_offset: float = 1e-5
    log_floor: float = 0.0

    def __post_init__(self) -> None:
        limits = {"sample_rate": 768_000, "n_fft": 2**16, "win_length": 2**16, "hop_length": 2**20, "n_mels": 1024}
        check_numbers(self, limits | {"f_min_range": 2**20, "f_max_range": 2**20}, 1, whole=True)
        check(
            self.win_length <= self.n_fft, f"win_length is {self.win_length}; it must not exceed n_fft ({self.n_fft})."
        )
        check(self.n_fft % 2 == 0, f"n_fft is {self.n_fft}; it must be even.")
        nyquist = self.sample_rate / 2
        check_numbers(self, {"f_min": nyquist, "f_max": nyquist})
        check(
            0 <= self.f_min < self.f_max <= nyquist,
            f"f_min, f_max are {self.f_min}, {self.f_max} Hz; 0 <= f_min < f_max <= {nyquist} Hz is required.",
        )
        check_numbers(self, {"log_offset": 1, "log_floor": 1})
        check(
            max(self.log_offset, self.log_floor) >= 1e-30,
            f"log_offset, log_floor are {self.log_offset}, {self.log_floor}; one of them must be at least 1e-30, "
            "because silence has no logarithm.",
        )


@dataclass(frozen=True)
class BlockConfig:
    """One inverted residual block (Fig. 1): its channel counts, and the parts that depend on the input.

    `dynamic_convs` and `dynamic_relus` contain names from `POSITIONS`; `attention` is a key of
    `dymn.architectures.ATTENTIONS` or None; `context_size` is H. A block whose `c_exp` equals `c_in` has no expansion
    convolution. If `time_stride` is set, it is the stride along time, and `stride` is the stride along frequency.
    `dilation` is that of the depthwise convolution; if it is above 1, the block keeps the resolution, independent of
    the stride, as in MobileNetV3. `se_reduction` divides the channels of Squeeze-and-Excitation.
    """

    c_in: int
    c_exp: int
    c_out: int
    kernel_size: int
    stride: int
    activation: str
    dynamic_convs: tuple[str, ...] = ()
    dynamic_relus: tuple[str, ...] = ()
    attention: str | None = None
    context: str = "shared"
    context_size: int = 0
    n_kernels: int = 4
    n_maps: int = 2
    time_stride: int | None = None
    dilation: int = 1
    se_reduction: int = 4

    POSITIONS = ("expand", "depthwise", "project")

    def __post_init__(self) -> None:
        sizes = ("c_in", "c_exp", "c_out", "kernel_size", "stride", "n_kernels", "n_maps")
        check_numbers(self, dict.fromkeys(sizes, 2**16), 1, whole=True)
        names = (self.activation, self.context, *(() if self.attention is None else (self.attention,)))
        check(
            all(isinstance(name, str) for name in names),
            f"activation, context, attention are {names!r:.100}; they must be names.",
        )
        if self.time_stride is not None:
            check_number("time_stride", self.time_stride, 1, 2**16, whole=True)
        check(self.kernel_size % 2 == 1, f"kernel_size is {self.kernel_size}; it must be odd.")
        for name in ("dynamic_convs", "dynamic_relus"):
            unknown = [position for position in getattr(self, name) if position not in self.POSITIONS]
            check(not unknown, f"{name} contains {shown(unknown)}; allowed: {', '.join(self.POSITIONS)}.")
        check_number("context_size", self.context_size, 0, 2**16, whole=True)
        check_numbers(self, {"dilation": 64, "se_reduction": 2**16}, 1, whole=True)
        check(
            self.dilation == 1 or (not self.is_dynamic and self.attention in (None, "se")),
            f"dilation is {self.dilation}; only static blocks, with Squeeze-and-Excitation or no attention, have one.",
        )
        check(
            not self.is_dynamic or self.context_size >= 1,
            f"context_size is {self.context_size}; a block with dynamic parts needs at least 1.",
        )
        check(
            self.time_stride in (None, self.stride) or (not self.is_dynamic and self.attention in (None, "se")),
            f"stride, time_stride are {self.stride}, {self.time_stride}; only static blocks, with "
            "Squeeze-and-Excitation or no attention, have two strides.",
        )

    @property
    def is_dynamic(self) -> bool:
        """Whether any convolution or activation that the block has depends on the input."""
        absent = {"expand"} if self.c_exp == self.c_in else set()
        return bool({*self.dynamic_convs, *self.dynamic_relus} - absent)

    @property
    def strides(self) -> tuple[int, int]:
        """The strides along frequency and time."""
        if self.dilation > 1:
            return 1, 1
        return self.stride, self.stride if self.time_stride is None else self.time_stride

    @property
    def span(self) -> int:
        """The size of the depthwise kernel including the gaps of its dilation."""
        return self.dilation * (self.kernel_size - 1) + 1

    @property
    def has_residual(self) -> bool:
        """Whether the input is added to the output: if shapes agree, and no dilation replaces a stride."""
        return self.stride == 1 and self.strides == (1, 1) and self.c_in == self.c_out


@dataclass(frozen=True)
class SequenceConfig:
    """The part of a frame-wise network after the last feature map: a sequence model and two heads.

    Attributes:
        length: number of frames; sequences of another length are averaged or interpolated to it.
        kind: a key of `dymn.architectures.SEQUENCES`.
        size: number of values per frame in the sequence model; a GRU has this number in each direction.
        n_layers: number of layers.
        n_heads: number of attention heads.
        expansion: size of the hidden layer of a feed-forward part, in multiples of `size`.
        n_frame_classes, n_clip_classes: numbers of classes of the head for frames and of the head for clips.
        scores: the trained head: "frames", or "clip", which then also scores frames.
    """

    length: int = 250
    kind: str = "none"
    size: int = 256
    n_layers: int = 2
    n_heads: int = 8
    expansion: int = 4
    n_frame_classes: int = 527
    n_clip_classes: int = 527
    scores: str = "frames"

    SCORES = ("frames", "clip")

    def __post_init__(self) -> None:
        limits = {"length": 2**16, "size": 2**16, "n_layers": 64, "n_heads": 1024, "expansion": 64}
        check_numbers(self, limits | {"n_frame_classes": 2**20, "n_clip_classes": 2**20}, 1, whole=True)
        check(isinstance(self.kind, str), f"kind is {shown(self.kind)}; it must be a name.")
        check(self.scores in self.SCORES, f"scores is {shown(self.scores)}; allowed: {', '.join(self.SCORES)}.")
        check(
            self.size % self.n_heads == 0 or self.kind in ("none", "gru"),
            f"size is {self.size}; it must be a multiple of n_heads, {self.n_heads}.",
        )
        check(
            self.kind != "tf" or self.size // self.n_heads % 2 == 0,
            f"size, n_heads are {self.size}, {self.n_heads}; each head must have an even number of values.",
        )

    @property
    def n_classes(self) -> int:
        """The number of classes of the head that has been trained."""
        return self.n_frame_classes if self.scores == "frames" else self.n_clip_classes

    def has_input(self, c_in: int) -> bool:
        """Whether a linear layer maps frames of `c_in` values to `size` values before the sequence model."""
        return self.kind in ("tf", "hybrid") and c_in != self.size


@dataclass(frozen=True)
class ModelConfig:
    """A network: stem, blocks, last convolution and head (Table I), with all channel counts."""

    width: float
    blocks: tuple[BlockConfig, ...]
    c_last: int
    c_hidden: int
    num_classes: int = 527
    head: str = "mlp"
    dropout: float = 0.2
    temperature: float = 1.0
    in_chans: int = 1
    sequence: SequenceConfig | None = None
    pooling_heads: int = 4  # of the head attention_pooling

    NESTED = {"blocks": BlockConfig, "sequence": SequenceConfig}

    def __post_init__(self) -> None:
        listed = isinstance(self.blocks, tuple) and all(isinstance(block, BlockConfig) for block in self.blocks)
        check(listed, f"blocks is {shown(self.blocks)}; it must be a list of blocks.")
        check(len(self.blocks) >= 1, "blocks is empty; a network has at least one block.")
        for before, after in zip(self.blocks, self.blocks[1:], strict=False):
            check(
                before.c_out == after.c_in,
                f"a block with {before.c_out} outputs is followed by one with {after.c_in} inputs.",
            )
        sizes = {"c_last": 2**20, "c_hidden": 2**20, "num_classes": 2**20, "in_chans": 1024, "pooling_heads": 1024}
        check_numbers(self, sizes, 1, whole=True)
        check(isinstance(self.head, str), f"head is {shown(self.head)}; it must be a name.")
        check_numbers(self, {"width": 1000, "dropout": 1})
        check(self.dropout < 1, "dropout is 1; it must be below 1.")
        check_number("temperature", self.temperature, 1e-30, 1e30)
        check(
            self.sequence is None or isinstance(self.sequence, SequenceConfig),
            f"sequence is {shown(self.sequence)}; it must be a SequenceConfig.",
        )
        check(
            (self.head == "frames") == (self.sequence is not None),
            f"head is {self.head!r}; the head frames and a sequence must be used together.",
        )
        check(
            self.sequence is None or self.sequence.n_classes == self.num_classes,
            f"num_classes is {self.num_classes}; it must be the number of classes of the head that scores.",
        )

    @property
    def time_stride(self) -> int:
        """Number of frames of the spectrogram per frame of the last feature map."""
        return 2 * math.prod(block.strides[1] for block in self.blocks)

    @property
    def c_frame(self) -> int:
        """The number of values per frame that the heads of a frame-wise network receive."""
        sequence = self.sequence
        if sequence is None or sequence.kind == "none":
            return self.c_last
        return sequence.size * (2 if sequence.kind == "gru" else 1)

    def require_mono(self, purpose: str) -> None:
        """Reject a network with several input channels where recordings are mixed down to mono.

        Raises:
            ConfigError: naming the purpose and the remedy.
        """
        check(
            self.in_chans == 1,
            f"{purpose} needs a network with one input channel, but in_chans is {self.in_chans}. Call the network "
            "with your own spectrograms, or call model.reset_input(1) first.",
        )


MAX_TEXT = 1_000
MAX_JSON = 2**16


@dataclass(frozen=True)
class ModelCard:
    """Metadata that are stored with weights: front end, labels, licence, metrics and provenance.

    `labels` names the classes in the order of the logits. `metrics` maps names to finite numbers ("mAP": 0.432),
    `provenance` names to plain JSON values. A card may come from an untrusted file: names, licences and labels are
    printable and at most 1,000 characters long, each of the two mappings is at most 64 KiB of JSON. With `exclusive`,
    each clip has exactly one class, and probabilities are a softmax of the logits instead of a sigmoid of each logit.
    """

    name: str = ""
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    labels: tuple[str, ...] = ()
    licence: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    exclusive: bool = False

    NESTED = {"front_end": FrontEndConfig}

    def __post_init__(self) -> None:
        check(isinstance(self.exclusive, bool), f"exclusive is {shown(self.exclusive)}; it must be true or false.")
        check(
            isinstance(self.front_end, FrontEndConfig),
            f"front_end is {shown(self.front_end)}; it must be a FrontEndConfig.",
        )
        check(isinstance(self.labels, tuple), f"labels is {shown(self.labels)}; it must be a list of strings.")
        for text in (self.name, self.licence, *self.labels):
            plain = isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable()
            check(
                plain,
                f"{shown(text)} is not a valid name, licence or label; it must be printable text of up to {MAX_TEXT} "
                "characters.",
            )
        repeated = [label for label, times in Counter(self.labels).items() if times > 1]
        check(
            not repeated,
            f"labels contains {', '.join(map(shown, repeated[:3]))} more than once; each class needs its own label.",
        )
        for title in ("metrics", "provenance"):
            entries = getattr(self, title)
            check(isinstance(entries, dict), f"{title} is {shown(entries)}; it must be a mapping.")
            check(all(isinstance(key, str) for key in entries), f"{title} must map strings to values.")
            try:
                size = len(json.dumps(entries, allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(f"{title} must contain only plain, finite JSON values: {error}.") from error
            check(size <= MAX_JSON, f"{title} has {size} characters of JSON; at most {MAX_JSON} are allowed.")
        for key, value in self.metrics.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(number, f"metrics has {shown(key)} = {shown(value)}; it must be a number.")
