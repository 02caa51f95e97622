"""The network as compiled code for CPUs: packs the weights of a `MobileNet` for `dymn.native.network`, and calls that with tensors.

Where there is no compiled code for this CPU, or a network has parts that it does not know, `dymn.fast.accelerate` takes the form of
`dymn.runtime.fused` instead.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from dymn.config import BlockConfig, check
from dymn.models.layers import DynamicConv2d, DynamicReLU
from dymn.models.layers.attention import CoordinateAttention, SqueezeExcitation
from dymn.models.layers.context import ContextGenerator
from dymn.models.mobilenet import MobileNet, Output
from dymn.native.network import LINE, PANEL, CompiledNetwork, Floats, Packed, is_known


class NativeNetwork:
    """A network in compiled code: log-mel spectrograms [B, 1, F, T] on the CPU to logits and embedding, without gradients.

    It keeps a copy of the weights as they were, and the memory of its last call. It may be called from several threads at once.
    """

    def __init__(self, model: MobileNet, build: str | None = None) -> None:
        """Pack the weights of a network.

        Args:
            model: a network for which `is_known` holds.
            build: a key of `dymn.native.libraries`; None is the fastest.

        Raises:
            ConfigError: if there is no such build, or the network has parts that the compiled code does not know.
        """
        self.compiled = CompiledNetwork(pack(model), build)

    def __call__(self, log_mel: Tensor) -> Output:
        """Return logits [B, C] and embedding [B, D], computed by as many threads as PyTorch uses."""
        embedding = self.embed(log_mel)
        return Output(torch.from_numpy(self.compiled.logits(embedding.numpy())), embedding)

    def embed(self, log_mel: Tensor) -> Tensor:
        """Return the embedding [B, D]."""
        return torch.from_numpy(self.compiled.embed(log_mel.detach().to("cpu", torch.float32).numpy(), torch.get_num_threads()))


@torch.no_grad()
def pack(model: MobileNet) -> Packed:
    """Return a network as the compiled code takes it.

    Raises:
        ConfigError: if it has parts that the compiled code does not know.
    """
    check(is_known(model.config), "This network has parts that the compiled code does not know. Take dymn.fast.accelerate.")
    parts = {name: folded(part.conv.weight, part.norm) for name, part in (("stem", model.stem), ("last", model.last))}
    parts["last"] = (_panels(parts["last"][0].flatten(1)), parts["last"][1])
    head: Any = model.head
    parts |= {name: (_lines(layer.weight), layer.bias) for name, layer in (("hidden", head.hidden), ("classifier", head.classifier))}
    for i, block in enumerate(model.blocks):
        parts |= {f"blocks.{i}.{name}": both for name, both in _parts(block).items()}
    arrays = {
        f"{name}.{kind}": _array(values) for name, both in parts.items() for kind, values in zip(("weight", "bias"), both, strict=True)
    }
    return Packed(model.config, arrays)


def _parts(block: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weight and bias of each part of a block."""
    parts = {}
    heads = []
    for name in BlockConfig.POSITIONS:
        stage: Any = getattr(block, name)
        conv: Any = getattr(stage, "conv", None)
        if conv is None:
            continue
        weight, bias = folded(conv.weight, stage.norm)
        parts[name] = (weight if name == "depthwise" else _panels(weight.flatten(-3)), bias)
        if isinstance(conv, DynamicConv2d) and len(weight) > 1:
            heads.append((conv.coefficients.weight / conv.temperature, conv.coefficients.bias / conv.temperature))
    maps = block.depthwise.activation
    if isinstance(maps, DynamicReLU):  # [C * 2 M] to [2 M * C]
        coefficients = (values.reshape(-1, 4, *values.shape[1:]).transpose(0, 1).flatten(0, 1) for values in maps.coefficients.parameters())
        heads.append(cast(tuple[Tensor, Tensor], tuple(coefficients)))
    if isinstance(block.context, ContextGenerator):
        weight, bias = folded(block.context.conv.weight, block.context.norm)
        parts["context"] = (_panels(weight.flatten(1)), bias)
    if heads:
        weight, bias = (torch.cat(values) for values in zip(*heads, strict=True))
        parts["coefficient"] = (nn.functional.pad(weight.t(), (0, -len(bias) % LINE)), bias)
    if isinstance(block.attention, CoordinateAttention):
        for name in ("frequency", "time"):
            gate = getattr(block.attention, name)
            parts[name] = (_panels(gate.weight.flatten(1)), gate.bias)
    if isinstance(block.attention, SqueezeExcitation):
        squeeze, excite = block.attention.squeeze, block.attention.excite
        parts |= {"squeeze": (squeeze.weight, squeeze.bias), "excite": (excite.weight.t(), excite.bias)}
    return parts


def folded(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the kernels [..., C, c, k, k] before it; return them and the bias [C], which no attention weighs."""
    scale = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return weight * scale[:, None, None, None], norm.bias - cast(Tensor, norm.running_mean) * scale


def _panels(weight: Tensor) -> Tensor:
    """Pack matrices [..., C, c] as [..., C / 8, c, 8]."""
    return weight.reshape(*weight.shape[:-2], -1, PANEL, weight.shape[-1]).transpose(-1, -2)


def _lines(weight: Tensor) -> Tensor:
    """Pack a matrix [C, c] as [C / 16, c, 16], with zeros where C ends."""
    return nn.functional.pad(weight, (0, 0, 0, -len(weight) % LINE)).view(-1, LINE, weight.shape[1]).transpose(1, 2)


def _array(values: Tensor) -> Floats:
    return cast(Floats, values.detach().float().cpu().contiguous().numpy())
