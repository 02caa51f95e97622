"""A network for evaluation on CPUs, in PyTorch alone, without what training needs.

The numbers are those of `dymn.models.mobilenet.MobileNet` to round-off; what differs is the order of the work:

- Batch norm is part of the kernels before it: each of the K is scaled, and what is left is a bias that no attention weighs.
- All that a block reads off its context vector (kernel attentions, the maps of Dy-ReLU) is one linear layer.
- Maps lie as [F, T, C], channels last. A pointwise convolution is then one matrix product, with the bias in it; a depthwise one needs
  no change of layout; and coefficients of channels and frames are added and multiplied along contiguous memory.
- Of the two maps of Dy-ReLU, the steeper one is part of the depthwise kernel, which is this clip's anyway.
- Everything from the expansion to the projection depends on a few bands at a time once the context is known. It is done in tiles of
  bands that stay in the cache; the expanded map is never written as a whole. An attention that looks at the whole map forbids that.
- Clips go through a block one by one: they share no kernel, and one clip's maps are in the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.config import ModelCard, ModelConfig
from dymn.errors import ConfigError
from dymn.models.blocks import InvertedResidual, Skip, Stage
from dymn.models.layers import Context, ContextGenerator, DynamicConv2d, DynamicReLU, StaticActivation
from dymn.models.layers.attention import (
    ChannelFrequencyAttention,
    ChannelTimeAttention,
    CoordinateAttention,
    OriginalCoordinateAttention,
    strided,
)
from dymn.models.layers.context import ConcatenatedContextGenerator, OwnContext, SeparateContextGenerator
from dymn.models.mobilenet import FullyConvolutionalHead, MobileNet, Output

TILE = 2**20  # bytes of an expanded map that are worked on at a time: about what a core's cache holds
MIN_PLACES = 4096  # ... and how many places (bands times frames) they are at least: a smaller product spends its time on its weights


def fuse(model: MobileNet) -> FusedNetwork:
    """Return a network for evaluation with copies of the weights of `model`, at its temperature.

    Later changes of `model` do not reach it. Every variant of Table I can be fused: a part that has no faster form here is taken
    as it is.

    Raises:
        ConfigError: if the weights are neither float32 nor float64.
    """
    kinds = {tensor.dtype for tensor in model.parameters()}
    if kinds not in ({torch.float32}, {torch.float64}):
        found = ", ".join(sorted(map(str, kinds)))
        raise ConfigError(f"The weights are {found}; fuse takes float32 and float64. Call .float() first.")
    with torch.no_grad():
        return FusedNetwork(model).eval().requires_grad_(False)


class FusedNetwork(nn.Module):
    """The network that `fuse` returns, log-mel spectrograms [B, 1, F, T] to logits and embedding.

    It computes in the precision of its weights, inside autocast too. It is made for CPUs; elsewhere it is right, and slow.
    """

    def __init__(self, model: MobileNet) -> None:
        super().__init__()
        self.config: ModelConfig = model.config
        self.card: ModelCard = model.card
        self.stem = _folded(model.stem.conv, model.stem.norm)
        self.blocks = nn.ModuleList(_block(cast(InvertedResidual, block)) for block in model.blocks)
        self.last = _pointwise(model.last.conv, model.last.norm)
        self.head: nn.Module = _head(model.head)

    @torch.inference_mode()
    def forward(self, log_mel: Tensor) -> Output:
        """Return logits and embedding of log-mel spectrograms [B, 1, n_mels, frames], any size from one frame up.

        Raises:
            ConfigError: if the input is not of four dimensions with one channel.
        """
        if log_mel.ndim != 4 or log_mel.shape[1] != 1:
            raise ConfigError(f"log_mel has shape {list(log_mel.shape)}; it must be [B, 1, n_mels, frames].")
        with torch.autocast(log_mel.device.type, enabled=False):
            maps = [self._begin(clip) for clip in log_mel.to(self.stem.weight.dtype).unsqueeze(1)]
            for block in self.blocks:  # all clips through one block: its kernels stay in the cache
                maps = [block(x) for x in maps]
            embedding = torch.stack([self._end(x) for x in maps]) if maps else self.stem.weight.new_empty(0, self.config.c_last)
            return Output(self.head(embedding), embedding)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of classes [B, C]: a sigmoid of each logit, or a softmax where the card says `exclusive`."""
        return torch.softmax(logits, dim=1) if self.card.exclusive else torch.sigmoid(logits)

    def _begin(self, clip: Tensor) -> Tensor:
        """Map [1, 1, n_mels, frames] to [F, T, C]."""
        n_bands, n_frames = clip.shape[2:]
        clip = clip.contiguous().as_strided(clip.shape, (n_bands * n_frames, 1, n_frames, 1))  # one channel, said to be the last axis
        return functional.hardswish(_channels_last(self.stem(clip)), inplace=True)

    def _end(self, x: Tensor) -> Tensor:
        """Map [F, T, C] to the embedding [D]."""
        return functional.hardswish(self.last(x.flatten(0, 1)), inplace=True).mean(dim=0)


def _head(head: nn.Module) -> nn.Module:
    """Return what maps embeddings [B, D] to logits; a mean of linear class scores is the class scores of the mean."""
    if isinstance(head, FullyConvolutionalHead):
        return _linear(*_fold(head.classifier.weight.flatten(1), head.norm))
    parts: Any = head
    return nn.Sequential(copy.deepcopy(parts.hidden), nn.Hardswish(), copy.deepcopy(parts.classifier))


class BlockParts(nn.Module):
    """What a block consists of, whoever computes it."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.context = Summary(block.context) if isinstance(block.context, ContextGenerator) else None
        self.stages = nn.ModuleList(FusedStage(stage) for stage in stages_of(block))
        depthwise: Any = without_context(block.depthwise.conv)
        sizes = (depthwise.kernel_size, depthwise.stride)
        self.kernel_size, self.stride = (int(size if isinstance(size, int) else size[0]) for size in sizes)
        self.attention: Coordinates | WholeMap | None = None
        if isinstance(block.attention, ALONG_AXES) and not isinstance(block.attention, OriginalCoordinateAttention):
            self.attention = Coordinates(block.attention)
        elif not isinstance(block.attention, Skip):
            self.attention = WholeMap(block.attention)
        self.has_residual = block.has_residual


class FusedBlock(BlockParts):
    """An inverted residual block from [F, T, C_in] to [F', T', C_out]."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__(block)
        heads = [head for stage in stages_of(block) for head in heads_of(stage)]
        self.sizes = [len(head.weight) for head in heads]
        self.heads = _linear(torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])) if heads else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, T, C_in] to [F', T', C_out]."""
        context: _ClipContext | None = None if self.context is None else self.context(x)
        read = iter(() if self.heads is None or context is None else torch.split(self.heads(context.vector), self.sizes))
        *expand, depthwise, project = [cast(FusedStage, stage).of_clip(read) for stage in self.stages]
        weigh = None if self.attention is None else self.attention.of_clip(context)
        n_bands, n_frames = ((size - 1) // self.stride + 1 for size in x.shape[:2])
        out = x.new_empty(n_bands, n_frames, project.kernel.shape[1])
        for bands, padded in self._tiles(x, expand[0] if expand else None, n_bands):
            rows = _channels_last(
                functional.conv2d(
                    _channels_first(padded),
                    depthwise.kernel,
                    depthwise.bias,
                    self.stride,
                    (0, self.kernel_size // 2),
                    groups=padded.shape[2],
                )
            )
            rows = depthwise.activate(rows)
            if weigh is not None:
                rows = weigh(rows, bands)
            target = out[bands]
            torch.addmm(project.bias, rows.flatten(0, 1), project.kernel, out=target.view(-1, target.shape[2]))
            project.activate(target)
            if self.has_residual:
                target += x[bands]
        return out

    def _tiles(self, x: Tensor, expand: _ClipStage | None, n_bands: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield bands of the output with what the depthwise convolution reads for them [rows, T, C_exp], zeros at the edges included."""
        reach, kept = self.kernel_size // 2, max(0, self.kernel_size - self.stride)  # `kept` rows are read by the next tile too
        channels = x.shape[2] if expand is None else expand.kernel.shape[1]
        whole = isinstance(self.attention, WholeMap)
        places = max(TILE // (4 * channels), MIN_PLACES)
        per_tile = n_bands if whole else min(n_bands, max(1, places // (self.stride * x.shape[1])))
        rows = x.new_zeros((per_tile - 1) * self.stride + self.kernel_size, x.shape[1], channels)
        for first in range(0, n_bands, per_tile):
            last = min(first + per_tile, n_bands)
            top = first * self.stride - reach  # the band of x that is row 0
            start = max(top, 0)
            if first and kept:
                rows[:kept] = rows[len(rows) - kept :].clone()
                start = top + kept
            end = min((last - 1) * self.stride + reach + 1, len(x))
            fresh = rows[start - top : end - top]
            if expand is None:
                fresh.copy_(x[start:end])
            else:
                torch.addmm(expand.bias, x[start:end].flatten(0, 1), expand.kernel, out=fresh.view(-1, channels))
                expand.activate(fresh)
            needed = (last - first - 1) * self.stride + self.kernel_size
            if end - top < needed:
                rows[end - top : needed] = 0
            yield slice(first, last), rows[:needed]


class UnchangedBlock(nn.Module):
    """A block as it is, for one whose dynamic parts each look for themselves."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.block = copy.deepcopy(block)

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, T, C_in] to [F', T', C_out]."""
        return _channels_last(self.block(_channels_first(x)))


def stages_of(block: InvertedResidual) -> list[Stage]:
    """Return the stages that a block has."""
    return [stage for stage in (block.expand, block.depthwise, block.project) if isinstance(stage, Stage)]


def without_context(part: nn.Module) -> nn.Module:
    """Return a part of a stage without the context of its own that it may have."""
    return part.part if isinstance(part, OwnContext) else part


def _block(block: InvertedResidual) -> nn.Module:
    own = any(isinstance(module, OwnContext) for module in block.modules())
    return UnchangedBlock(block) if own else FusedBlock(block)


class _ClipContext(NamedTuple):
    """The context of one clip."""

    vector: Tensor  # [H] or [2 H]
    frequency: Tensor  # [F, H]
    time: Tensor  # [T, H]


class Summary(nn.Module):
    """The Context Generation Module with batch norm in its weights."""

    def __init__(self, source: ContextGenerator) -> None:
        super().__init__()
        self.frequency = _pointwise(source.conv, source.norm)
        self.time = self.frequency
        if isinstance(source, SeparateContextGenerator):
            self.time = _pointwise(source.time_conv, source.time_norm)
        self.concatenated = isinstance(source, ConcatenatedContextGenerator)

    def forward(self, x: Tensor) -> _ClipContext:
        """Summarise [F, T, C]."""
        frequency = functional.hardswish(self.frequency(x.mean(dim=1)))
        time = functional.hardswish(self.time(x.mean(dim=0)))
        if self.concatenated:
            return _ClipContext(torch.cat([frequency.mean(dim=0), time.mean(dim=0)]), frequency, time)
        return _ClipContext((frequency.sum(dim=0) + time.sum(dim=0)) / (len(frequency) + len(time)), frequency, time)


class _ClipStage(NamedTuple):
    """A stage of a block for one clip: a kernel, a bias, and what follows."""

    kernel: Tensor  # [C_in, C_out] or [C, 1, k, k]
    bias: Tensor  # [C_out]
    activate: Callable[[Tensor], Tensor]  # in place on [..., C_out]


class FusedStage(nn.Module):
    """The K kernels of a stage, scaled for its batch norm, and its activation."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        conv: Any = without_context(stage.conv)
        self.dynamic = isinstance(conv, DynamicConv2d)
        weight = conv.weight if self.dynamic else conv.weight[None]  # [K, C_out, C_in / groups, k, k]
        kernels, bias = _fold(weight.transpose(0, 1), stage.norm)
        kernels = kernels.transpose(0, 1)
        if conv.groups == 1:
            kernels = kernels.flatten(2).transpose(1, 2)  # [K, C_in, C_out]
        self.register_buffer("kernels", kernels.contiguous())
        self.register_buffer("bias", bias)
        self.static: Callable[[Tensor], Tensor] | None = None
        self.n_maps = 0
        self.activation_name = ""
        activation = without_context(stage.activation)
        if isinstance(activation, DynamicReLU):
            self.n_maps = activation.n_maps
        else:
            kind = type(cast(StaticActivation, activation).activation)
            self.static, self.activation_name = IN_PLACE[kind], ACTIVATION_NAMES[kind]

    def of_clip(self, read: Iterator[Tensor]) -> _ClipStage:
        """Return the stage of a clip; `read` gives what the block reads off the context, in the order of `heads_of`."""
        kernel = self.kernels[0]
        if self.dynamic:
            kernel = (torch.softmax(next(read), dim=0) @ self.kernels.flatten(1)).view(kernel.shape)
        if self.static is not None:
            return _ClipStage(kernel, self.bias, self.static)
        theta = torch.sigmoid(next(read)).view(2 * self.n_maps, -1)  # [2 M, C]
        return _with_maps(kernel, self.bias, *torch.split(theta, self.n_maps))


def _with_maps(kernel: Tensor, bias: Tensor, slopes: Tensor, intercepts: Tensor) -> _ClipStage:
    """Return a stage with the maximum of M maps as its activation."""
    slopes = slopes * (2 * DynamicReLU.SLOPE_RANGE) - DynamicReLU.SLOPE_RANGE
    slopes[0] += 1
    intercepts = intercepts * (2 * DynamicReLU.INTERCEPT_RANGE) - DynamicReLU.INTERCEPT_RANGE
    order = slopes.abs().argsort(dim=0, descending=True)
    slopes, intercepts = slopes.gather(0, order), intercepts.gather(0, order)
    steepest, first = slopes[0], intercepts[0]
    # with y the steepest map of the convolution, map m is ratio y + shift; no ratio is above 1, so nothing is lost to round-off
    ratios = torch.where(steepest == 0, 0, slopes[1:] / steepest)
    shifts = intercepts[1:] - ratios * first

    def activate(y: Tensor) -> Tensor:
        if len(ratios) == 1:
            return torch.maximum(y, torch.addcmul(shifts[0], y, ratios[0]), out=y)
        maps = [torch.addcmul(shift, y, ratio) for shift, ratio in zip(shifts, ratios, strict=True)]
        for values in maps:
            torch.maximum(y, values, out=y)
        return y

    return _ClipStage(kernel * (steepest if kernel.ndim == 2 else steepest[:, None, None, None]), bias * steepest + first, activate)


def heads_of(stage: Stage) -> list[nn.Linear]:
    """Return the linear layers that a stage has on the context, in the order in which `FusedStage.of_clip` asks for their outputs."""
    heads = []
    conv, activation = without_context(stage.conv), without_context(stage.activation)
    if isinstance(conv, DynamicConv2d):
        heads.append(_linear(conv.coefficients.weight / conv.temperature, conv.coefficients.bias / conv.temperature))
    if isinstance(activation, DynamicReLU):
        coefficients, values = activation.coefficients, 2 * activation.n_maps
        weight = (
            coefficients.weight.view(-1, values, coefficients.in_features).transpose(0, 1).flatten(0, 1)
        )  # from [C, 2 M] to [2 M, C] rows
        heads.append(_linear(weight, coefficients.bias.view(-1, values).t().flatten()))
    return heads


ALONG_AXES = (CoordinateAttention, ChannelFrequencyAttention, ChannelTimeAttention)
IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Hardswish: partial(functional.hardswish, inplace=True),
    nn.Identity: nn.Identity(),
}
ACTIVATION_NAMES: dict[type[nn.Module], str] = {nn.ReLU: "Relu", nn.Hardswish: "HardSwish", nn.Identity: "Identity"}  # as ONNX has them
Weigh = Callable[[Tensor, slice], Tensor]


class Coordinates(nn.Module):
    """Coordinate Attention in full or along one axis, in place on any bands of a map."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.stride = cast(int, source.stride)
        self.axes = nn.ModuleDict({name: _pointwise(getattr(source, name)) for name in ("frequency", "time") if hasattr(source, name)})

    def of_clip(self, context: _ClipContext | None) -> Weigh:
        """Return what weighs [rows, T, C], which is the given bands of the clip's map."""
        weights = {name: torch.sigmoid(layer(_pooled(getattr(context, name), self.stride))) for name, layer in self.axes.items()}

        def weigh(rows: Tensor, bands: slice) -> Tensor:
            if "time" in weights:
                rows *= weights["time"]
            if "frequency" in weights:
                rows *= weights["frequency"][bands, None]
            return rows

        return weigh


class WholeMap(nn.Module):
    """An attention as it is, which looks at the whole map."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = copy.deepcopy(source)

    def of_clip(self, context: _ClipContext | None) -> Weigh:
        """Return what weighs the clip's map [F, T, C]."""
        whole = None
        if context is not None:
            vector, frequency, time = context
            whole = Context(vector[None], frequency.t()[None, :, :, None], time.t()[None, :, None, :])
        return lambda rows, bands: _channels_last(self.source(_channels_first(rows), whole))


def _pooled(sequence: Tensor, stride: int) -> Tensor:
    """Shorten a sequence [L, H] as a depthwise convolution of this stride shortens its axis."""
    return strided(sequence.t()[None, :, :, None], stride, axis=0)[0, :, :, 0].t()


def _channels_first(x: Tensor) -> Tensor:
    """View [F, T, C] as [1, C, F, T]."""
    return x.unsqueeze(0).permute(0, 3, 1, 2)  # in this order the strides say channels last


def _channels_last(x: Tensor) -> Tensor:
    """Return [1, C, F, T] as contiguous [F, T, C]."""
    return x.squeeze(0).permute(1, 2, 0).contiguous()


def _fold(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a weight [C_out, ...] without bias scaled for the batch norm after it, and the bias [C_out] that is left of the norm."""
    norm = cast(nn.BatchNorm2d, norm)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    scaled = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), (norm.bias.double() - mean.double() * scale).to(weight.dtype)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return a convolution without bias and the batch norm after it as one convolution, for maps with the channels last."""
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)  # type: ignore[arg-type]
    weight, bias = _fold(conv.weight, norm)
    folded.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    folded.bias = nn.Parameter(bias)
    return folded


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer of these weights, copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer


def _pointwise(conv: nn.Conv2d, norm: nn.Module | None = None) -> nn.Linear:
    """Return a pointwise convolution, with the batch norm after it if there is one, as a linear layer on channels that lie last."""
    weight = conv.weight.flatten(1)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias
    if norm is not None:
        weight, shift = _fold(weight, norm)
        bias = _fold(bias, norm)[0] + shift
    return _linear(weight, bias)
