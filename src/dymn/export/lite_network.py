"""A network for one clip of fixed length, with operations that runtimes for small devices support.

It is built from the weights of the fused form. A mixed pointwise kernel is a product of matrices; of a mixed depthwise
one, such runtimes take only constant kernels, so that the results of all K are mixed. Everything has four dimensions
where it can, and nothing is written in place: what XNNPACK cannot take over breaks the network into parts, each of
which costs seconds when it is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.models.layers import Context, DynamicReLU
from dymn.runtime.fused import BlockParts, Coordinates, FusedNetwork, FusedStage, WholeMap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "hardswish": functional.hardswish,
    "identity": nn.Identity(),
}


class LiteNetwork(nn.Module):
    """Log-mel spectrograms [1, 1, n_mels, frames] to probabilities [1, C], logits [1, C] and embedding [1, D]."""

    def __init__(self, source: FusedNetwork) -> None:
        super().__init__()
        self.exclusive = source.card.exclusive
        self.stem = source.stem
        self.blocks = nn.Sequential(*(LiteBlock(block) for block in source.blocks))
        self.last = pointwise(source.last)
        self.head = source.head

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [1, 1, n_mels, frames]."""
        x = self.blocks(functional.hardswish(self.stem(log_mel)))
        embedding = functional.hardswish(self.last(x)).mean(dim=(2, 3), keepdim=True).flatten(1)
        logits = self.head(embedding)
        return torch.softmax(logits, dim=1) if self.exclusive else torch.sigmoid(logits), logits, embedding


class LiteBlock(nn.Module):
    """An inverted residual block from [1, C_in, F, T] to [1, C_out, F', T']."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        block = cast(BlockParts, source)
        self.sizes, self.stride, self.has_residual = block.sizes, block.stride, block.has_residual
        self.concatenates = block.context is not None and block.context.concatenated
        self.heads = None if block.heads is None else pointwise(block.heads)
        *expand, depthwise, project = block.stages
        self.expand = LiteStage(expand[0]) if expand else None
        self.depthwise = LiteStage(depthwise, block.kernel_size, block.stride)
        self.project = LiteStage(project)
        self.summary: nn.ModuleList | None = None
        if block.context is not None:
            self.summary = nn.ModuleList([pointwise(block.context.frequency), pointwise(block.context.time)])
        axes = dict(block.attention.axes.items()) if isinstance(block.attention, Coordinates) else {}
        self.weights = nn.ModuleDict({name: pointwise(layer) for name, layer in axes.items()})
        self.attention = block.attention.source if isinstance(block.attention, WholeMap) else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [1, C_in, F, T]."""
        context = None if self.summary is None else self._context(x, *self.summary)
        read = iter(()) if self.heads is None or context is None else pieces(self.heads(context.vector), self.sizes)
        y: Tensor = x if self.expand is None else self.expand(x, read)
        y = self.depthwise(y, read)
        if context is not None:
            for name, layer in self.weights.items():
                y = y * torch.sigmoid(layer(pooled(getattr(context, name), self.stride)))
        if self.attention is not None:
            y = self.attention(y, context and context._replace(vector=context.vector.flatten(1)))
        y = self.project(y, read)
        return x + y if self.has_residual else y

    def _context(self, x: Tensor, of_bands: nn.Module, of_frames: nn.Module) -> Context:
        """Return the context, its vector as [1, H, 1, 1]."""
        n_bands, n_frames = x.shape[2:]
        frequency = functional.hardswish(of_bands(functional.avg_pool2d(x, (1, n_frames))))
        time = functional.hardswish(of_frames(functional.avg_pool2d(x, (n_bands, 1))))
        means = [sequence.mean(dim=(2, 3), keepdim=True) for sequence in (frequency, time)]
        if self.concatenates:
            return Context(torch.cat(means, dim=1), frequency, time)
        share = n_bands / (n_bands + n_frames)
        return Context(means[0] * share + means[1] * (1 - share), frequency, time)


class LiteStage(nn.Module):
    """A convolution, constant or mixed, and its activation."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, source: nn.Module, kernel_size: int = 0, stride: int = 1) -> None:
        super().__init__()
        stage = cast(FusedStage, source)
        self.n_maps, self.activation = stage.n_maps, ACTIVATIONS.get(stage.activation_name, nn.Identity())
        self.dynamic, self.mixes_kernels = stage.dynamic, stage.dynamic and not kernel_size
        # [K, C_out, C_in / groups, k, k]
        kernels = stage.kernels if kernel_size else stage.kernels.transpose(1, 2)[..., None, None]
        self.own = nn.ModuleDict(
            {
                kind: nn.Sequential(pointwise(layers[0]), nn.ReLU(), pointwise(layers[2]))
                for kind, layers in _layers(stage)
            }
        )
        self.shape = kernels.shape[1:3]
        if self.mixes_kernels:
            self.register_buffer("kernels", kernels.flatten(1).t().contiguous())  # [C_out C_in, K]
            self.register_buffer("bias", stage.bias[:, None, None])
        else:
            self.convs = nn.ModuleList(convolution(kernel, stage.bias, stride) for kernel in kernels)

    def forward(self, x: Tensor, read: Iterator[Tensor]) -> Tensor:
        """Map [1, C_in, F, T]; `read` gives the coefficients [1, n, 1, 1] that the stage reads off the context."""
        if not self.dynamic:
            y = self.convs[0](x)
        else:
            mixture = torch.softmax(self._read("kernels", x, read).flatten(1), dim=1)  # [1, K]
            if self.mixes_kernels:
                kernel = functional.linear(mixture, self.kernels).view(1, *self.shape)
                y = torch.bmm(kernel, x.flatten(2)).view(1, self.shape[0], *x.shape[2:]) + self.bias
            else:
                shares = pieces(mixture[..., None, None], [1] * len(self.convs))
                y = reduce(torch.add, (conv(x) * share for conv, share in zip(self.convs, shares, strict=True)))
        return self._activated(y, read) if self.n_maps else self.activation(y)

    def _read(self, kind: str, x: Tensor, read: Iterator[Tensor]) -> Tensor:
        """Return coefficients [1, n, 1, 1], from the block's context, or from x for parts that have their own."""
        return self.own[kind](x.mean(dim=(2, 3), keepdim=True)) if kind in self.own else next(read)

    def _activated(self, y: Tensor, read: Iterator[Tensor]) -> Tensor:
        """Return the maximum of the maps."""
        values = 2 * torch.sigmoid(self._read("maps", y, read)) - 1
        theta = list(pieces(values, [y.shape[1]] * (2 * self.n_maps)))
        slopes = [slope * DynamicReLU.SLOPE_RANGE for slope in theta[: self.n_maps]]
        intercepts = [intercept * DynamicReLU.INTERCEPT_RANGE for intercept in theta[self.n_maps :]]
        slopes[0] = slopes[0] + 1
        out, *others = (y * slope + intercept for slope, intercept in zip(slopes, intercepts, strict=True))
        for other in others:
            out = torch.maximum(out, other)
        return out


def _layers(stage: FusedStage) -> list[tuple[str, nn.Sequential]]:
    return [(kind, cast(nn.Sequential, layers)) for kind, layers in stage.own.items()]


def pieces(x: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Yield parts of the channels of [1, C, 1, 1]."""
    begin = 0
    for size in sizes:
        yield x[:, begin : begin + size]
        begin += size


def pooled(sequence: Tensor, stride: int) -> Tensor:
    """Shorten a sequence [1, H, F, 1] or [1, H, 1, T] as a depthwise convolution of this stride shortens its axis."""
    if stride == 1:
        return sequence
    along_time = sequence.shape[2] == 1
    padded = functional.pad(sequence, (1, 1, 0, 0) if along_time else (0, 0, 1, 1))
    return functional.avg_pool2d(padded, (1, 3) if along_time else (3, 1), (1, stride) if along_time else (stride, 1))


def convolution(kernel: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv2d:
    """Return a convolution with a constant kernel [C_out, C_in / groups, k, k], depthwise if it is not pointwise."""
    c_out, size, k = kernel.shape[:3]
    conv = nn.Conv2d(size if k == 1 else c_out, c_out, k, stride, k // 2, groups=1 if k == 1 else c_out)
    conv.weight, conv.bias = nn.Parameter(kernel.contiguous()), nn.Parameter(bias)
    return conv


def pointwise(layer: nn.Module) -> nn.Conv2d:
    """Return a linear layer on the channels of [1, C, F, T]."""
    source = cast(nn.Linear, layer)
    return convolution(source.weight[..., None, None], source.bias)
