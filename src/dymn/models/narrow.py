"""Reduction of a wide static network to a narrow one that computes approximately the same, without training.

The network is built block by block, on a sample of clips:

- Between blocks, it carries the linear combinations of the wide network's channels that predict best what the next
  layers compute (reduced-rank regression). Blocks with residual connections share one set of combinations.
- Within a block, expanded channels are removed one by one, each time the one that the others replace best in a linear
  prediction of the block's output (backward elimination).
- Pointwise convolutions and the head are fitted by least squares to the wide network's values, from the narrow
  network's own, so that later layers make up for errors of earlier ones. Depthwise kernels are copied.

Squeeze-and-Excitation is left out; its mean effect is part of what is fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dymn.config import ModelConfig
from dymn.errors import ConfigError
from dymn.models.mobilenet import MobileNet

ROWS = 40_000  # places of a layer's output, over all clips, that a fit is based on
BATCH = 16  # clips
RIDGE, HEAD_RIDGE = 1e-3, 1e-2  # of least squares, in units of the inputs' mean variance
WINDOWS = 4  # of each clip, whose means the head is fitted to

Layer = Callable[[Tensor], Tensor]


@torch.no_grad()
def narrow(parent: MobileNet, config: ModelConfig, log_mel: Tensor, generator: torch.Generator) -> MobileNet:
    """Return a static network that approximates `parent` with the channels of `config`, in evaluation mode.

    Args:
        parent: a static network of Table I.
        config: of a network with the same blocks and at most the parent's channels. Its dynamic parts are ignored.
        log_mel: [B, 1, F, T]; a few hundred clips.
        generator: of the CPU; draws the values that the fits are based on.

    Raises:
        ConfigError: if the parent is dynamic or narrower, the two differ in more than their channels, there are no
            clips, or some values are not finite.

    Example:
        >>> narrow(parent, model_config("mn04", width=0.2), log_mel, torch.Generator())  # doctest: +SKIP
    """
    _check(parent.config, config)
    if not len(log_mel) or not log_mel.isfinite().all():
        raise ConfigError("A narrower network is fitted to spectrograms; there are none, or not all values are finite.")
    static = {"dynamic_convs": (), "dynamic_relus": (), "attention": None, "context_size": 0}
    blocks = tuple(dataclasses.replace(block, **static) for block in config.blocks)  # type: ignore[arg-type]
    child = MobileNet(dataclasses.replace(config, blocks=blocks)).to(log_mel.device).eval()
    child.card = parent.card
    fit = _Fit(parent.eval(), child, generator)
    wide, slim, kept = fit.stem(log_mel)
    for number, combinations in enumerate(fit.combinations(wide, kept)):
        wide, slim = fit.block(number, combinations, wide, slim)
    fit.head(wide, slim)
    return child


class _Fit:
    """Fills `child` layer by layer. Feature maps of the two networks are called wide and slim, [B, C, F, T]."""

    def __init__(self, parent: MobileNet, child: MobileNet, generator: torch.Generator) -> None:
        self.parent, self.child = parent, child
        self._blocks: list[Any] = list(child.blocks)
        self._generator = generator

    def stem(self, log_mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the first convolution; return its outputs and the channels that are kept.

        They are those of the first block, which does not expand.
        """
        wide = _mapped(self.parent.stem, log_mel)
        block = self.parent.blocks[0]
        places = self._places(block, wide)
        inputs, outputs = _rows(_excited(block), wide, places), _rows(block, wide, places)
        kept = select(inputs, outputs, self.child.stem.conv.out_channels, RIDGE)
        _copy_channels(self.child.stem, self.parent.stem, kept)
        _copy_channels(self.child.blocks[0].depthwise, block.depthwise, kept)
        return wide, wide[:, kept], kept

    def combinations(self, wide: Tensor, kept: Tensor) -> list[Tensor]:
        """Return for each block the combinations [c, C] of its output that the narrow network carries.

        Blocks that add their input to their output share them; the first one's are the channels `kept` of the stem. A
        narrow network can have a residual connection that the parent lacks, where numbers of channels are rounded to
        the same value. Such a block is fitted less well.
        """
        blocks: list[Any] = list(self.parent.blocks)
        readers = [*(block.expand for block in blocks[1:]), self.parent.last]
        residual = [
            block.has_residual and static.has_residual for block, static in zip(blocks, self._blocks, strict=True)
        ]
        found: list[Tensor] = []
        outputs: list[Tensor] = []
        for number, block in enumerate(blocks):
            outputs.append(_rows(block, wide, self._places(block, wide)))
            wide = _mapped(block, wide)
            if number + 1 < len(blocks) and residual[number + 1]:
                continue
            first = len(found)
            if first == 0 and residual[0]:
                shared = torch.eye(outputs[0].shape[1], dtype=torch.float64, device=wide.device)[kept]
            else:
                read = torch.cat([_pointwise(reader) for reader in readers[first : number + 1]])
                shared = _combinations(torch.cat(outputs), read, self.child.config.blocks[first].c_out)
            found += [shared] * len(outputs)
            outputs.clear()
        return found

    def block(self, number: int, combinations: Tensor, wide: Tensor, slim: Tensor) -> tuple[Tensor, Tensor]:
        """Fill a block; return the outputs of the two networks."""
        block, static = cast(Any, self.parent.blocks[number]), self._blocks[number]
        places = self._places(block, wide)
        target = _rows(block, wide, places) @ combinations.T
        if static.has_residual:
            target -= _rows(_same, slim, places)
        if number > 0:
            kept = select(_rows(_excited(block), wide, places), target, static.project.conv.in_channels, RIDGE)
            _copy_channels(static.depthwise, block.depthwise, kept)
            before_places = self._places(_same, wide)
            before = _rows(lambda x: block.expand.norm(block.expand.conv(x, None)), wide, before_places)
            _fill(static.expand, _rows(_same, slim, before_places), before[:, kept])
        _fill(static.project, _rows(_excited(static), slim, places), target)
        return _mapped(block, wide), _mapped(static, slim)

    def head(self, wide: Tensor, slim: Tensor) -> None:
        """Fill the last convolution and the head."""
        parent, child = self.parent, self.child
        windows = _means(_mapped(parent.last, wide))
        hidden = _linear(parent.head.hidden, windows)
        active = parent.head.activation(hidden)
        logits = _linear(parent.head.classifier, active)
        kept = select(windows, hidden, child.last.conv.out_channels, HEAD_RIDGE)
        places = self._places(_same, wide)
        before = _rows(lambda x: parent.last.norm(parent.last.conv(x)), wide, places)
        _fill(child.last, _rows(_same, slim, places), before[:, kept])
        kept = select(active, logits, child.head.hidden.out_features, HEAD_RIDGE)
        windows = _means(_mapped(child.last, slim))
        _fill_linear(child.head.hidden, windows, hidden[:, kept])
        _fill_linear(child.head.classifier, child.head.activation(_linear(child.head.hidden, windows)), logits)

    def _places(self, layer: Layer, x: Tensor) -> Tensor:
        """Return random places [B, P] of the output of a layer, of which all clips together have about `ROWS`."""
        size = layer(x[:1])[0, 0].numel()
        count = min(size, max(1, ROWS // len(x)))
        drawn = [torch.randperm(size, generator=self._generator)[:count] for _ in x]
        return torch.stack(drawn).to(x.device)


def select(x: Tensor, y: Tensor, count: int, ridge: float) -> Tensor:
    """Return the indices of `count` columns of x [N, C] that predict y [N, D] best, by backward elimination.

    The sum of squared errors of the least-squares prediction rises by |w|^2 / p if a column is removed, where w is its
    row of the weights and p its diagonal element of the inverse covariance.
    """
    covariance, common = _moments(x, y, ridge)
    inverse = torch.linalg.inv(covariance)
    weights = inverse @ common
    gone = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    for _ in range(x.shape[1] - count):
        worst = (weights.square().sum(dim=1) / inverse.diagonal()).masked_fill(gone, torch.inf).argmin()
        share = inverse[:, worst] / inverse[worst, worst]
        weights.addr_(share, weights[worst].clone(), alpha=-1)
        inverse.addr_(share, inverse[worst].clone(), alpha=-1)
        gone[worst] = True
    return (~gone).nonzero()[:, 0]


def regress(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the weights [D, C] and offsets [D] of a ridge regression of y [N, D] on x [N, C]."""
    weights = torch.linalg.solve(*_moments(x, y, ridge)).T
    return weights, y.mean(dim=0) - weights @ x.mean(dim=0)


def _moments(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the covariance [C, C] of x, with the ridge, and that of x and y [C, D]."""
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    covariance = x.T @ x / len(x)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean().clamp_min(1e-12))
    return covariance, x.T @ y / len(x)


def _combinations(x: Tensor, readers: Tensor, count: int) -> Tensor:
    """Return `count` combinations [count, C] of x [N, C] that predict x @ readers.T best, each of variance one."""
    if count == x.shape[1]:
        return torch.eye(count, dtype=x.dtype, device=x.device)
    covariance = _moments(x, x, RIDGE)[0]
    _, directions = torch.linalg.eigh(readers @ covariance @ readers.T)
    best = directions[:, -count:].T @ readers
    spread: Tensor = (best @ covariance @ best.T).diagonal().sqrt()
    scaled: Tensor = best / spread[:, None]
    return scaled


def _same(x: Tensor) -> Tensor:
    return x


def _mapped(layer: Layer, x: Tensor) -> Tensor:
    return torch.cat([layer(part) for part in torch.split(x, BATCH)])


def _rows(layer: Layer, x: Tensor, places: Tensor) -> Tensor:
    """Return the output of a layer at places [B, P] as rows [B * P, C], in double precision."""
    parts = []
    for part, drawn in zip(torch.split(x, BATCH), torch.split(places, BATCH), strict=True):
        y = layer(part).flatten(2)
        parts.append(y.gather(2, drawn[:, None].expand(-1, y.shape[1], -1)).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).double()


def _excited(block: Any) -> Layer:
    """Return what maps the input of a block to the input of its project convolution."""

    def excited(x: Tensor) -> Tensor:
        context = block.context(x)
        out: Tensor = block.attention(block.depthwise(block.expand(x, context), context), context)
        return out

    return excited


def _means(features: Tensor) -> Tensor:
    """Return the means of `WINDOWS` windows of each clip as rows, in double precision."""
    pooled = nn.functional.adaptive_avg_pool2d(features, (1, WINDOWS))
    return pooled[:, :, 0].transpose(1, 2).flatten(0, 1).double()


def _pointwise(stage: Any) -> Tensor:
    """Return the weights [C', C] of a pointwise convolution and its norm."""
    scale: Tensor = stage.norm.weight / (stage.norm.running_var + stage.norm.eps).sqrt()
    weight: Tensor = stage.conv.weight.flatten(1)
    return (scale[:, None] * weight).double()


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.double().T + layer.bias.double()


def _fill(stage: Any, x: Tensor, y: Tensor) -> None:
    """Fit a pointwise convolution to y [N, C']. Its norm keeps the mean and variance of what was fitted."""
    weights, offset = regress(x, y, RIDGE)
    out = x @ weights.T
    mean, variance = out.mean(dim=0), out.var(dim=0, unbiased=False)
    norm = stage.norm
    stage.conv.weight.copy_(weights[:, :, None, None])
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean + offset)


def _fill_linear(layer: nn.Linear, x: Tensor, y: Tensor) -> None:
    weights, offset = regress(x, y, HEAD_RIDGE)
    layer.weight.copy_(weights)
    layer.bias.copy_(offset)


def _copy_channels(stage: Any, source: Any, kept: Tensor) -> None:
    """Copy some channels of a convolution that has a kernel for each, and of its norm."""
    stage.conv.weight.copy_(source.conv.weight[kept])
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(stage.norm, name).copy_(getattr(source.norm, name)[kept])


def _check(wide: ModelConfig, slim: ModelConfig) -> None:
    if any(block.is_dynamic for block in wide.blocks):
        raise ConfigError("The parent has dynamic blocks; weights are inherited from a static network (an MN).")

    def kind(config: ModelConfig) -> list[Any]:
        blocks = [(b.kernel_size, b.strides, b.dilation, b.activation) for b in config.blocks]
        return [blocks, config.num_classes, config.in_chans]

    def channels(config: ModelConfig) -> list[int]:
        return [n for b in config.blocks for n in (b.c_in, b.c_exp, b.c_out)] + [config.c_last, config.c_hidden]

    def fits(config: ModelConfig) -> bool:
        expands = [block.c_exp != block.c_in for block in config.blocks]
        return config.head == "mlp" and not expands[0] and all(expands[1:])

    wider = kind(wide) == kind(slim) and all(map(int.__ge__, channels(wide), channels(slim)))
    if not (wider and fits(wide) and fits(slim)):
        raise ConfigError(
            "Weights are inherited by a network with the same blocks, classes and input channels and at most the "
            "parent's channels. For another width, both need an MLP head, and all blocks but the first must expand. "
            f"The student's width is {slim.width:g}, the parent's {wide.width:g}."
        )
