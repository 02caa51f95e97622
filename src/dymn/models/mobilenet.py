"""Table I as a list of rows; DyMN and MN are two settings of one network (Sec. III)."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dymn.config import BlockConfig, ModelConfig, check, round_channels
from dymn.errors import ConfigError
from dymn.models.blocks import InvertedResidual
from dymn.models.layers import ATTENTIONS, CONTEXTS, DynamicConv2d
from dymn.models.layers.context import BatchNorm2d
from dymn.models.pretrained import Pretrained


class Row(NamedTuple):
    """One inverted residual block of Table I, at width 1."""

    kernel_size: int
    c_exp: int
    c_out: int
    stride: int
    activation: str


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

    `attention` is a key of `dymn.models.layers.ATTENTIONS`; None, or "none" where a file has no other way to say it, is no attention.
    `dynamic_blocks` and `attention_blocks` are keys of `BLOCK_SETS` or block indices from 0 to 14; `attention_blocks` None
    means the dynamic blocks.
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
    head: str = "mlp"
    dropout: float = 0.2
    temperature: float = 1.0
    num_classes: int = 527

    def __post_init__(self) -> None:
        check(0.05 <= self.width <= 16, f"width is {self.width}; it must be between 0.05 and 16.")
        known = self.attention in (None, NO_ATTENTION, *ATTENTIONS)
        check(known, f"attention is {self.attention!r}; allowed: {NO_ATTENTION}, {', '.join(ATTENTIONS)}.")
        check(self.context in CONTEXTS, f"context is {self.context!r}; allowed: {', '.join(CONTEXTS)}.")
        check(self.head in HEADS, f"head is {self.head!r}; allowed: {', '.join(HEADS)}.")
        strides_fit = len(self.strides) == len(STRIDED) and all(stride in (1, 2) for stride in self.strides)
        check(strides_fit, f"strides is {self.strides}; it must be {len(STRIDED)} numbers, each 1 or 2.")
        check(self.reduction >= 1, f"reduction is {self.reduction}; it must be at least 1.")
        check(1 <= self.h_min <= self.h_max, f"h_min, h_max are {self.h_min}, {self.h_max}; 1 <= h_min <= h_max is required.")

    def config(self) -> ModelConfig:
        """Return the network with every channel count worked out."""

        def scaled(channels: int) -> int:
            return round_channels(channels * self.width)

        dynamic = _block_indices(self.dynamic_blocks)
        attentive = dynamic if self.attention_blocks is None else _block_indices(self.attention_blocks)
        strides = dict(zip(STRIDED, self.strides, strict=True))
        blocks = []
        c_in = scaled(STEM_CHANNELS)
        for i, row in enumerate(TABLE_I):
            c_exp, c_out = scaled(row.c_exp), scaled(row.c_out)
            blocks.append(
                BlockConfig(
                    c_in=c_in,
                    c_exp=c_exp,
                    c_out=c_out,
                    kernel_size=row.kernel_size,
                    stride=strides.get(i, 1),
                    activation=row.activation,
                    dynamic_convs=self.dynamic_convs if i in dynamic else (),
                    dynamic_relus=self.dynamic_relus if i in dynamic else (),
                    attention=self.attention if i in attentive and self.attention != NO_ATTENTION else None,
                    context=self.context,
                    context_size=context_size(c_exp, self.width, self.reduction, self.h_min, self.h_max),
                    n_kernels=self.n_kernels,
                    n_maps=self.n_maps,
                )
            )
            c_in = c_out
        return ModelConfig(
            width=self.width,
            blocks=tuple(blocks),
            c_last=LAST_EXPANSION * c_in,
            c_hidden=scaled(HIDDEN_CHANNELS),
            num_classes=self.num_classes,
            head=self.head,
            dropout=self.dropout,
            temperature=self.temperature,
        )


def context_size(c_exp: int, width: float, reduction: int = 4, h_min: int = 32, h_max: int = 128) -> int:
    """Return H, the share of `c_exp` that a block's context has, within bounds that scale with the width (Sec. IV-A.3)."""
    return min(max(round_channels(c_exp // reduction), round_channels(h_min * width)), round_channels(h_max * width))


def _block_indices(blocks: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(blocks, str):
        check(blocks in BLOCK_SETS, f"{blocks!r} is no set of blocks; allowed: {', '.join(BLOCK_SETS)}, or indices from 0 to 14.")
        return BLOCK_SETS[blocks]
    check(all(0 <= i < len(TABLE_I) for i in blocks), f"block indices are {tuple(blocks)}; each must be from 0 to 14.")
    return tuple(blocks)


class Output(NamedTuple):
    """What a network says of a batch of clips."""

    logits: Tensor  # [B, C]
    embedding: Tensor  # [B, D], the averaged output of the last convolution


class MLPHead(nn.Module):
    """Two linear layers on the averaged feature map (Table I)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.c_last, config.c_hidden)
        self.activation = nn.Hardswish()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.c_hidden, config.num_classes)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return logits [B, classes] from the embedding [B, D]."""
        return self.classifier(self.dropout(self.activation(self.hidden(embedding))))  # type: ignore[no-any-return]

    def frames(self, features: Tensor) -> Tensor:
        """Return logits [B, T, classes]: of each frame of the feature map [B, D, F, T] as if it were the whole clip."""
        return self.forward(features, features.mean(dim=2).transpose(1, 2))


class FullyConvolutionalHead(nn.Module):
    """Class scores at each place of the last feature map, then their mean, as in some published MobileNets."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(config.c_last, config.num_classes, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(config.num_classes)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return logits [B, classes] from the last feature map [B, D, F, T]."""
        return self.norm(self.classifier(features)).mean(dim=(2, 3))  # type: ignore[no-any-return]

    def frames(self, features: Tensor) -> Tensor:
        """Return logits [B, T, classes], whose mean over T is that of the clip."""
        return self.norm(self.classifier(features)).mean(dim=2).transpose(1, 2)  # type: ignore[no-any-return]


HEADS: dict[str, type[nn.Module]] = {"mlp": MLPHead, "fully_convolutional": FullyConvolutionalHead}


class ConvNormAct(nn.Sequential):
    """Static convolution, batch norm, hard swish: the first and the last convolution of Table I."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = BatchNorm2d(c_out)
        self.activation = nn.Hardswish()


class MobileNet(Pretrained):
    """The network of Table I. Which of its blocks are dynamic is the config's word; `forward` is the same for all."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check(config.head in HEADS, f"head is {config.head!r}; allowed: {', '.join(HEADS)}.")
        self.config = config
        self.stem = ConvNormAct(1, config.blocks[0].c_in, kernel_size=3, stride=2)
        self.blocks = nn.Sequential(*(InvertedResidual(block) for block in config.blocks))
        self.last = ConvNormAct(config.blocks[-1].c_out, config.c_last, kernel_size=1, stride=1)
        self.head = HEADS[config.head](config)
        self.temperature = config.temperature

    def features(self, log_mel: Tensor) -> Tensor:
        """Return the last feature map [B, D, F', T'] of log-mel spectrograms [B, 1, F, T]."""
        return self.last(self.blocks(self.stem(log_mel)))  # type: ignore[no-any-return]

    def forward(self, log_mel: Tensor) -> Output:
        """Return logits and embedding of log-mel spectrograms [B, 1, n_mels, frames], any size from one frame up.

        Raises:
            ConfigError: if the input is not of four dimensions with one channel.
        """
        if log_mel.ndim != 4 or log_mel.shape[1] != 1:
            raise ConfigError(f"log_mel has shape {list(log_mel.shape)}; it must be [B, 1, n_mels, frames].")
        features = self.features(log_mel)
        embedding = features.mean(dim=(2, 3))
        return Output(self.head(features, embedding), embedding)

    def frame_logits(self, features: Tensor, smoothing: int = 1) -> Tensor:
        """Return logits [B, T', C] of each frame of the last feature map [B, D, F', T'], averaged over `smoothing` frames first (odd)."""
        if smoothing > 1:
            features = avg_pool2d(features, (1, smoothing), stride=1, padding=(0, smoothing // 2), count_include_pad=False)
        return self.head.frames(features)  # type: ignore[no-any-return,operator]

    @property
    def time_stride(self) -> int:
        """How many frames of the spectrogram lie between two of the last feature map."""
        return 2 * math.prod(block.stride for block in self.config.blocks)

    def feature_maps(self, log_mel: Tensor) -> list[Tensor]:
        """Return the output of each block, a list of [B, C, F', T']."""
        maps = [self.stem(log_mel)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]

    @property
    def temperature(self) -> float:
        """The temperature of the kernel attention (eq. 2). Setting it reaches every block and the config."""
        return self.config.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.config = dataclasses.replace(self.config, temperature=float(value))
        for module in self.modules():
            if isinstance(module, DynamicConv2d):
                module.temperature = float(value)

    def initialise(self, generator: torch.Generator | None = None) -> MobileNet:
        """Draw fresh weights: convolutions Kaiming normal (fan out, each kernel by itself), linear layers N(0, 0.01)."""
        for module in self.modules():
            if isinstance(module, DynamicConv2d):
                for kernel in module.weight.data:
                    nn.init.kaiming_normal_(kernel, mode="fan_out", generator=generator)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return self


MODELS: dict[str, dict[str, Any]] = {
    **{f"dymn{round(10 * width):02d}": {"width": width} for width in (0.4, 0.6, 1.0, 2.0)},
    **{f"dymn{round(10 * width):02d}_replace_se": {"width": width, "dynamic_blocks": "se"} for width in (0.4, 1.0)},
    **{
        f"mn{round(10 * width):02d}": {"width": width, "dynamic_blocks": "none", "attention": "se", "attention_blocks": "se"}
        for width in (0.1, 0.2, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0)
    },
}
ALIASES = {"dymn_s": "dymn04", "dymn_m": "dymn10", "dymn_l": "dymn20"}


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a named architecture, with the `Variant` settings in `overrides` replaced.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is not allowed.
    """
    key = ALIASES.get(name.lower().replace("-", "_"), name)
    if key not in MODELS:
        raise ConfigError(f"There is no architecture {name!r}. Choose one of: {', '.join(MODELS)}.")
    settings = MODELS[key] | {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    allowed = [field.name for field in dataclasses.fields(Variant)]
    unknown = sorted(set(settings) - set(allowed))
    check(not unknown, f"A model has no setting {', '.join(unknown)}. Allowed: {', '.join(allowed)}.")
    try:
        return Variant(**settings).config()
    except (TypeError, AttributeError, OverflowError) as error:  # a setting of another type, out of a file
        raise ConfigError(f"No network can be built from {settings}: {error}.") from error


def create_model(name: str, num_classes: int = 527, *, generator: torch.Generator | None = None, **overrides: Any) -> MobileNet:
    """Build a freshly initialised network, such as `create_model("dymn10", num_classes=50, n_kernels=2)`.

    Args:
        name: an architecture, see `architectures`; "dymn_s", "dymn_m" and "dymn_l" are the paper's sizes.
        num_classes: how many classes the head scores.
        generator: the source of the random weights; the global generator if None.
        overrides: settings of `Variant`, by name.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is not allowed.
    """
    return MobileNet(model_config(name, num_classes=num_classes, **overrides)).initialise(generator)


def architectures(pattern: str | None = None) -> list[str]:
    """Return the names of the architectures, those that match a shell-style pattern if one is given."""
    return [name for name in MODELS if pattern is None or fnmatch.fnmatch(name, pattern)]
