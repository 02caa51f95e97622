"""A faster form of the network for inference on CPUs, in PyTorch only.

Results equal those of `dymn.models.mobilenet.MobileNet` up to rounding; the order of the computation differs:

- It is built from the folded form (`dymn.runtime.fold`): norms are part of the kernels, and one linear layer computes
  all coefficients of a block from its context.
- Feature maps have the layout [F, T, C], channels last. A pointwise convolution is then one matrix product with a bias,
  a depthwise convolution needs no change of layout, and coefficients of channels and frames are applied along
  contiguous memory.
- Of the two linear maps of Dy-ReLU, the steeper one is multiplied into the depthwise kernel, which is computed for each
  clip in any case.
- Everything from the expansion to the projection is computed in tiles of a few bands that stay in the cache, so the
  expanded map is never written as a whole. This is not possible with an attention that needs the whole map.
- A block processes one clip at a time, because clips do not share kernels, and the maps of one clip fit in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.architectures import HEADS, NEEDS_CONTEXT
from dymn.config import BlockConfig, ModelCard, ModelConfig
from dymn.errors import ConfigError
from dymn.models.heads import Head
from dymn.models.layers import Context, DynamicReLU
from dymn.models.layers.attention import build_attention, strided
from dymn.models.mobilenet import MobileNet, Output, check_log_mel
from dymn.runtime.fold import WHOLE_MAP_HEADS, Folded, coefficients, fold, positions

TILE = 2**20  # bytes of an expanded map that are worked on at a time: about what a core's cache holds
# ... and how many places (bands times frames) they are at least: a smaller product spends its time on its weights
MIN_PLACES = 4096


def fuse(model: MobileNet) -> FusedNetwork:
    """Return a network for inference with copies of the weights of `model`, at its temperature.

    Later changes of `model` do not affect it. Every variant of Table I can be fused; parts without a faster form are
    used unchanged.

    Raises:
        ConfigError: if the weights are neither float32 nor float64.
    """
    kinds = {tensor.dtype for tensor in model.parameters()}
    if kinds not in ({torch.float32}, {torch.float64}):
        found = ", ".join(sorted(map(str, kinds)))
        raise ConfigError(f"The weights are {found}; fuse takes float32 and float64. Call .float() first.")
    kind = FusedWholeMap if model.config.head in WHOLE_MAP_HEADS else FusedNetwork
    form = kind(fold(model.config, model.stored().state), model.card).eval().requires_grad_(False)
    return form.to(next(model.parameters()).device)


class FusedNetwork(nn.Module):
    """A network from log-mel spectrograms [B, 1, F, T] to logits and embedding.

    It computes in the precision of its weights, also inside autocast. It is designed for CPUs; on other devices,
    results are correct but slow.
    """

    def __init__(self, folded: Folded, card: ModelCard) -> None:
        super().__init__()
        folded.config.require_mono("Fusing")
        parts = Parts({name: torch.from_numpy(np.array(values)) for name, values in folded.arrays.items()})
        self.config: ModelConfig = folded.config
        self.card = card
        weight = parts["stem.weight"]
        self.stem = nn.Conv2d(1, len(weight), 3, stride=2, padding=1)
        self.stem.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.stem.bias = nn.Parameter(parts["stem.bias"])
        blocks = [(block, parts.below(f"blocks.{i}.")) for i, block in enumerate(folded.config.blocks)]
        self.blocks = nn.ModuleList(
            OwnBlock(*both) if both[0].context == "own" else FusedBlock(*both) for both in blocks
        )
        self.last = parts.layer("last")
        self.head = LAYERS[folded.config.head](folded.config, parts)

    @torch.inference_mode()
    def forward(self, log_mel: Tensor) -> Output:
        """Return logits and embedding of log-mel spectrograms [B, 1, n_mels, frames], any size from one frame up.

        Raises:
            ConfigError: if the input does not have four dimensions with one channel.
        """
        check_log_mel(log_mel, 1)
        with torch.autocast(log_mel.device.type, enabled=False):
            maps = [self._begin(clip) for clip in log_mel.to(self.stem.weight.dtype).unsqueeze(1)]
            for block in self.blocks:  # all clips through one block: its kernels stay in the cache
                maps = [block(x) for x in maps]
            return self._output([functional.hardswish(self.last(x), inplace=True) for x in maps])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities [B, C]: the sigmoid of each logit or, if the card is `exclusive`, their softmax."""
        return torch.softmax(logits, dim=1) if self.card.exclusive else torch.sigmoid(logits)

    def _begin(self, clip: Tensor) -> Tensor:
        """Map [1, 1, n_mels, frames] to [F, T, C]."""
        n_bands, n_frames = clip.shape[2:]
        # one channel, as the last axis
        clip = clip.contiguous().as_strided(clip.shape, (n_bands * n_frames, 1, n_frames, 1))
        return functional.hardswish(_channels_last(self.stem(clip)), inplace=True)

    def _output(self, maps: list[Tensor]) -> Output:
        """Return the output of the head for the last feature maps, each [F, T, D]."""
        means = [x.flatten(0, 1).mean(dim=0) for x in maps]
        embedding = torch.stack(means) if means else self.stem.weight.new_empty(0, self.config.c_last)
        return Output(self.head(embedding), embedding)


class FusedWholeMap(FusedNetwork):
    """A network whose head takes the whole feature map."""

    def _output(self, maps: list[Tensor]) -> Output:
        head = cast(Head, self.head)
        return head.output(torch.stack([x.permute(2, 0, 1) for x in maps]))


class Parts(dict[str, Tensor]):
    """Folded weights by name."""

    def below(self, prefix: str) -> Parts:
        """Return those whose name begins so, without that."""
        return Parts({name.removeprefix(prefix): tensor for name, tensor in self.items() if name.startswith(prefix)})

    def layer(self, name: str) -> nn.Linear:
        """Return a linear layer, which is also a pointwise convolution with channels last."""
        return _linear(self[f"{name}.weight"], self[f"{name}.bias"])


LAYERS: dict[str, Callable[[ModelConfig, Parts], nn.Module]] = {
    "mlp": lambda config, parts: nn.Sequential(parts.layer("hidden"), nn.Hardswish(), parts.layer("classifier")),
    # a mean of linear class scores is the class scores of the mean
    "fully_convolutional": lambda config, parts: parts.layer("classifier"),
    **dict.fromkeys(WHOLE_MAP_HEADS, lambda config, parts: HEADS[config.head](config).filled(parts.below("head."))),
}


class BlockParts(nn.Module):
    """The parts of a block, whoever computes it."""

    def __init__(self, config: BlockConfig, parts: Parts) -> None:
        super().__init__()
        self.context = Summary(parts, config.context == "concatenated") if "context.weight" in parts else None
        self.stages = nn.ModuleList(FusedStage(config, position, parts) for position in positions(config))
        self.kernel_size, (self.stride, self.time_stride) = config.span, config.strides
        self.attention: Coordinates | WholeMap | None = None
        if config.attention in NEEDS_CONTEXT:
            self.attention = Coordinates(parts, config.stride)
        elif config.attention is not None:
            self.attention = WholeMap(config, parts)
        self.has_residual = config.has_residual
        self.heads: nn.Linear | None = None
        self.sizes: list[int] = []
        if "coefficient.weight" in parts:  # in the order in which the stages ask for them
            listed = coefficients(config)
            order = sorted(
                range(len(listed)), key=lambda i: (BlockConfig.POSITIONS.index(listed[i].position), listed[i].kind)
            )
            sizes = [part.size for part in listed]
            weights, biases = (torch.split(parts[f"coefficient.{kind}"], sizes) for kind in ("weight", "bias"))
            self.heads = _linear(torch.cat([weights[i] for i in order]), torch.cat([biases[i] for i in order]))
            self.sizes = [sizes[i] for i in order]


class FusedBlock(BlockParts):
    """An inverted residual block from [F, T, C_in] to [F', T', C_out]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, T, C_in] to [F', T', C_out]."""
        context: _ClipContext | None = None if self.context is None else self.context(x)
        read = iter(
            () if self.heads is None or context is None else torch.split(self.heads(context.vector), self.sizes)
        )
        *expand, depthwise, project = [cast(FusedStage, stage).of_clip(read) for stage in self.stages]
        weigh = None if self.attention is None else self.attention.of_clip(context)
        n_bands, n_frames = (x.shape[0] - 1) // self.stride + 1, (x.shape[1] - 1) // self.time_stride + 1
        out = x.new_empty(n_bands, n_frames, project.kernel.shape[1])
        for bands, padded in self._tiles(x, expand[0] if expand else None, n_bands):
            rows = _channels_last(
                functional.conv2d(
                    _channels_first(padded),
                    depthwise.kernel,
                    depthwise.bias,
                    (self.stride, self.time_stride),
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
        """Yield bands of the output with the depthwise convolution's input for them [rows, T, C_exp], zero-padded."""
        # `kept` rows are read by the next tile too
        reach, kept = self.kernel_size // 2, max(0, self.kernel_size - self.stride)
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


class OwnBlock(BlockParts):
    """A block whose dynamic parts each summarise the whole map that they get (context "own", Table XII)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [F, T, C_in] to [F', T', C_out]."""
        context = None if self.context is None else self.context(x)
        y = x
        for module in self.stages:
            stage = cast(FusedStage, module)
            kernel, reach = stage.kernel(stage.read("kernels", y)), self.kernel_size // 2
            if stage.position == "depthwise":
                strides = self.stride, self.time_stride
                y = functional.conv2d(_channels_first(y), kernel, stage.bias, strides, reach, groups=y.shape[2])
                y = _channels_last(y)
            else:
                y = torch.addmm(stage.bias, y.flatten(0, 1), kernel).view(*y.shape[:2], -1)
            y = stage.activation(stage.read("maps", y))(y)
            if stage.position == "depthwise" and self.attention is not None:
                y = self.attention.of_clip(context)(y, slice(0, len(y)))
        return x + y if self.has_residual else y


class _ClipContext(NamedTuple):
    """The context of one clip."""

    vector: Tensor  # [H] or [2 H]
    frequency: Tensor  # [F, H]
    time: Tensor  # [T, H]


class Summary(nn.Module):
    """The Context Generation Module with batch norm in its weights."""

    def __init__(self, parts: Parts, concatenated: bool = False) -> None:
        super().__init__()
        self.frequency = parts.layer("context")
        self.time = parts.layer("time_context") if "time_context.weight" in parts else self.frequency
        self.concatenated = concatenated

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
    """The K kernels of a stage and its activation."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, config: BlockConfig, position: str, parts: Parts) -> None:
        super().__init__()
        kernels = parts[f"{position}.weight"]  # [K, C_out, C_in] or [K, C, k, k]
        kernels = kernels[:, :, None] if position == "depthwise" else kernels.transpose(1, 2)
        self.register_buffer("kernels", kernels.contiguous())  # [K, C, 1, k, k] or [K, C_in, C_out]
        self.register_buffer("bias", parts[f"{position}.bias"])
        self.position, self.dynamic = position, len(kernels) > 1
        self.n_maps = config.n_maps if position in config.dynamic_relus else 0
        self.activation_name = "identity" if position == "project" else config.activation
        names = [kind for kind in ("kernels", "maps") if f"{position}.{kind}.squeeze.weight" in parts]
        self.own = nn.ModuleDict(  # layers that read coefficients off the stage's own input or output
            {
                kind: nn.Sequential(
                    parts.layer(f"{position}.{kind}.squeeze"), nn.ReLU(), parts.layer(f"{position}.{kind}.coefficient")
                )
                for kind in names
            }
        )

    def read(self, kind: str, x: Tensor) -> Tensor | None:
        """Return the coefficients that the stage reads off the mean of a map [F, T, C], None without any."""
        return self.own[kind](x.mean(dim=(0, 1))) if kind in self.own else None

    def kernel(self, logits: Tensor | None) -> Tensor:
        """Return the kernel of a clip [C_in, C_out] or [C, 1, k, k], mixed by kernel attention."""
        kernel = self.kernels[0]
        return kernel if logits is None else (torch.softmax(logits, dim=0) @ self.kernels.flatten(1)).view(kernel.shape)

    def activation(self, coefficients: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return the activation of a clip, which may work in place."""
        if coefficients is None:
            return IN_PLACE[self.activation_name]
        slopes, intercepts = self._maps(coefficients)
        return lambda y: torch.stack([torch.addcmul(b, y, a) for a, b in zip(slopes, intercepts, strict=True)]).amax(
            dim=0
        )

    def of_clip(self, read: Iterator[Tensor]) -> _ClipStage:
        """Return the stage of a clip; `read` yields the coefficients from the context in the order of the stages."""
        kernel = self.kernel(next(read) if self.dynamic else None)
        if not self.n_maps:
            return _ClipStage(kernel, self.bias, IN_PLACE[self.activation_name])
        return _with_maps(kernel, self.bias, *self._maps(next(read)))

    def _maps(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts, each [M, C]."""
        slopes, intercepts = torch.split(torch.sigmoid(coefficients).view(2 * self.n_maps, -1), self.n_maps)
        slopes = slopes * (2 * DynamicReLU.SLOPE_RANGE) - DynamicReLU.SLOPE_RANGE
        slopes[0] += 1
        return slopes, intercepts * (2 * DynamicReLU.INTERCEPT_RANGE) - DynamicReLU.INTERCEPT_RANGE


def _with_maps(kernel: Tensor, bias: Tensor, slopes: Tensor, intercepts: Tensor) -> _ClipStage:
    """Return a stage with the maximum of M maps as its activation."""
    order = slopes.abs().argsort(dim=0, descending=True)
    slopes, intercepts = slopes.gather(0, order), intercepts.gather(0, order)
    steepest, first = slopes[0], intercepts[0]
    # with y the steepest map of the convolution, map m is ratio y + shift; no ratio is above 1, so nothing is lost to
    # round-off
    ratios = torch.where(steepest == 0, 0, slopes[1:] / steepest)
    shifts = intercepts[1:] - ratios * first

    def activate(y: Tensor) -> Tensor:
        if len(ratios) == 1:
            return torch.maximum(y, torch.addcmul(shifts[0], y, ratios[0]), out=y)
        maps = [torch.addcmul(shift, y, ratio) for shift, ratio in zip(shifts, ratios, strict=True)]
        for values in maps:
            torch.maximum(y, values, out=y)
        return y

    return _ClipStage(
        kernel * (steepest if kernel.ndim == 2 else steepest[:, None, None, None]), bias * steepest + first, activate
    )


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "hardswish": partial(functional.hardswish, inplace=True),
    "identity": nn.Identity(),
}
Weigh = Callable[[Tensor, slice], Tensor]


class Coordinates(nn.Module):
    """Coordinate Attention in full or along one axis, in place on any bands of a map."""

    def __init__(self, parts: Parts, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.axes = nn.ModuleDict(
            {name: parts.layer(name) for name in ("frequency", "time") if f"{name}.weight" in parts}
        )

    def of_clip(self, context: _ClipContext | None) -> Weigh:
        """Return what weighs [rows, T, C], which is the given bands of the clip's map."""
        weights = {
            name: torch.sigmoid(layer(_pooled(getattr(context, name), self.stride)))
            for name, layer in self.axes.items()
        }

        def weigh(rows: Tensor, bands: slice) -> Tensor:
            if "time" in weights:
                rows *= weights["time"]
            if "frequency" in weights:
                rows *= weights["frequency"][bands, None]
            return rows

        return weigh


class WholeMap(nn.Module):
    """An unchanged attention, which needs the whole map."""

    def __init__(self, config: BlockConfig, parts: Parts) -> None:
        super().__init__()
        self.source: nn.Module = build_attention(config)
        state = parts.below("attention.") or parts  # Squeeze-and-Excitation is folded like all that is published
        own = self.source.state_dict()
        self.source.load_state_dict({name: state[name] for name in own if name in state}, strict=True, assign=True)

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
    return x.unsqueeze(0).permute(0, 3, 1, 2)  # with these strides the layout is channels last


def _channels_last(x: Tensor) -> Tensor:
    """Return [1, C, F, T] as contiguous [F, T, C]."""
    return x.squeeze(0).permute(1, 2, 0).contiguous()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer of these weights, copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer
