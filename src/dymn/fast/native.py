"""The network as compiled code for CPUs, see `dymn/native/network.c`: packs the weights of a `MobileNet` and calls it.

Where there is no compiled code for this CPU, or a network has parts that it does not know, `dymn.fast.accelerate` takes the form of
`dymn.fast.fused` instead.
"""

from __future__ import annotations

import ctypes
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dymn.config import BlockConfig, ModelConfig, check
from dymn.errors import ConfigError
from dymn.layers import DynamicConv2d, DynamicReLU
from dymn.layers.attention import CoordinateAttention, SqueezeExcitation
from dymn.layers.context import ContextGenerator
from dymn.model import MobileNet, Output
from dymn.native import libraries

Values = npt.NDArray[np.float32]

ACTIVATIONS = {"identity": 0, "relu": 1, "hardswish": 2}
PANEL = 8
SLACK = 64
MOST_KERNELS = 64
MOST_PLACES = 2**29  # of a spectrogram: twelve hours of 128 bands; the compiled code counts them in 32 bits
_POINTERS = ("context", "coefficient", "expand", "depthwise", "project", "frequency", "time", "squeeze", "excite")
_NUMBERS = ("c_in", "c_exp", "c_out", "kernel_size", "stride", "activation", "context_size", "n_expand", "n_depthwise", "n_project")
_FLAGS = ("dynamic_relu", "coordinate_attention", "squeeze_size", "has_residual")


class _Block(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in (*_NUMBERS, *_FLAGS)] + [
        (f"{name}_{kind}", ctypes.c_void_p) for name in _POINTERS for kind in ("weight", "bias")
    ]


class _Network(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("n_blocks", "c_stem", "c_last", "reserved")),
        *((f"{name}_{kind}", ctypes.c_void_p) for name in ("stem", "last") for kind in ("weight", "bias")),
        ("blocks", ctypes.POINTER(_Block)),
    ]


def is_known(config: ModelConfig) -> bool:
    """Return whether the compiled code has all parts of a network: those of DyMN and MN as published do."""
    return config.head == "mlp" and config.c_last % PANEL == 0 and all(_is_known(block) for block in config.blocks)


def _is_known(block: BlockConfig) -> bool:
    has_context = block.is_dynamic or block.attention == "ca"
    return (
        block.c_exp % PANEL == block.c_out % PANEL == 0
        and block.attention in (None, "ca", "se")
        and (not has_context or (block.context == "shared" and block.context_size > 0 and block.context_size % PANEL == 0))
        and (block.n_maps == 2 or not block.dynamic_relus)
        and set(block.dynamic_relus) <= {"depthwise"}
        and block.n_kernels <= MOST_KERNELS
        and block.kernel_size in (3, 5)
        and block.stride in (1, 2)
        and block.activation in ACTIVATIONS
    )


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
        builds = libraries()
        name = build or next(iter(builds), "")
        check(name in builds, f"There is no compiled code {name!r} for this CPU; there is: {', '.join(builds) or 'none'}.")
        check(is_known(model.config), "This network has parts that the compiled code does not know. Take dymn.fast.accelerate.")
        self._library = builds[name]
        self._kept: list[Values] = []
        self._memory: list[Values] = []
        with torch.no_grad():
            self._blocks = (_Block * len(model.blocks))(*map(self._block, model.config.blocks, model.blocks))
            stem, last = (folded(part.conv.weight, part.norm) for part in (model.stem, model.last))
            self._network = _Network(
                n_blocks=len(model.blocks),
                c_stem=len(stem[1]),
                c_last=len(last[1]),
                **self._keep("stem", stem[0], stem[1]),
                **self._keep("last", _panels(last[0].flatten(1)), last[1]),
                blocks=ctypes.cast(self._blocks, ctypes.POINTER(_Block)),
            )
            self._head = [tensor.detach().float().clone() for tensor in model.head.parameters()]

    def __call__(self, log_mel: Tensor) -> Output:
        """Return logits [B, C] and embedding [B, D], computed by as many threads as PyTorch uses."""
        embedding = self.embed(log_mel)
        hidden = nn.functional.hardswish(torch.addmm(self._head[1], embedding, self._head[0].t()))
        return Output(torch.addmm(self._head[3], hidden, self._head[2].t()), embedding)

    def embed(self, log_mel: Tensor) -> Tensor:
        """Return the embedding [B, D]."""
        if log_mel.ndim != 4 or log_mel.shape[1] != 1 or 0 in log_mel.shape[2:]:
            raise ConfigError(f"log_mel has shape {list(log_mel.shape)}; it must be [B, 1, n_mels, frames], none of the last two 0.")
        n_clips, _, n_bands, n_frames = log_mel.shape
        check(n_bands * n_frames < MOST_PLACES, f"A spectrogram of {n_frames} frames is too long for one pass. Give it in windows.")
        x = log_mel.detach().to("cpu", torch.float32).contiguous()
        out = torch.empty(n_clips, self._network.c_last, dtype=torch.float32, device="cpu")  # whatever the defaults are
        sizes = (n_clips, n_bands, n_frames, torch.get_num_threads())
        needed = self._library.dymn_workspace(ctypes.byref(self._network), *sizes)
        try:
            memory = self._memory.pop()  # of an earlier call; calls at the same time have memory of their own
        except IndexError:
            memory = np.zeros(0, np.float32)
        if memory.size < needed:
            memory = np.zeros(needed, np.float32)
        addresses = (ctypes.c_void_p(memory.ctypes.data), ctypes.c_void_p(out.data_ptr()))
        self._library.dymn_embed(ctypes.byref(self._network), ctypes.c_void_p(x.data_ptr()), *sizes, *addresses)
        self._memory.append(memory)
        return out

    def _keep(self, name: str, weight: Tensor, bias: Tensor) -> dict[str, int]:
        """Keep a copy of two tensors with room behind each; return their addresses."""
        found = {}
        for kind, tensor in (("weight", weight), ("bias", bias)):
            kept = np.zeros(tensor.numel() + SLACK, np.float32)
            kept[: tensor.numel()] = tensor.detach().float().cpu().flatten().numpy()
            self._kept.append(kept)
            found[f"{name}_{kind}"] = kept.ctypes.data
        return found

    def _block(self, config: BlockConfig, block: Any) -> _Block:
        fields: dict[str, Any] = {}
        kernels = {"expand": 0, "depthwise": 0, "project": 0}
        heads = []
        for name in kernels:
            stage: Any = getattr(block, name)
            conv: Any = getattr(stage, "conv", None)
            if conv is None:
                continue
            weight, bias = folded(conv.weight, stage.norm)
            fields |= self._keep(name, weight.flatten(-3) if name == "depthwise" else _panels(weight.flatten(-3)), bias)
            kernels[name] = len(weight) if isinstance(conv, DynamicConv2d) else 1
            if kernels[name] > 1:
                heads.append((conv.coefficients.weight / conv.temperature, conv.coefficients.bias / conv.temperature))
        maps = block.depthwise.activation
        if isinstance(maps, DynamicReLU):  # [C * 2 M] to [2 M * C]
            weight, bias = (
                values.reshape(-1, 4, *values.shape[1:]).transpose(0, 1).flatten(0, 1) for values in maps.coefficients.parameters()
            )
            heads.append((weight, bias))
        has_context = isinstance(block.context, ContextGenerator)
        if has_context:
            weight, bias = folded(block.context.conv.weight, block.context.norm)
            fields |= self._keep("context", _panels(weight.flatten(1)), bias)
        if heads:
            weight, bias = (torch.cat(values) for values in zip(*heads, strict=True))
            fields |= self._keep("coefficient", nn.functional.pad(weight.t(), (0, -len(bias) % 16)), bias)
        if isinstance(block.attention, CoordinateAttention):
            for name in ("frequency", "time"):
                gate = getattr(block.attention, name)
                fields |= self._keep(name, _panels(gate.weight.flatten(1)), gate.bias)
        squeeze_size = 0
        if isinstance(block.attention, SqueezeExcitation):
            squeeze, excite = block.attention.squeeze, block.attention.excite
            squeeze_size = squeeze.out_features
            fields |= self._keep("squeeze", squeeze.weight, squeeze.bias) | self._keep("excite", excite.weight.t(), excite.bias)
        return _Block(
            c_in=config.c_in,
            c_exp=config.c_exp,
            c_out=config.c_out,
            kernel_size=config.kernel_size,
            stride=config.stride,
            activation=ACTIVATIONS[config.activation],
            context_size=config.context_size if has_context else 0,
            dynamic_relu=isinstance(maps, DynamicReLU),
            coordinate_attention=isinstance(block.attention, CoordinateAttention),
            squeeze_size=squeeze_size,
            has_residual=block.has_residual,
            **{f"n_{name}": n for name, n in kernels.items()},
            **fields,
        )


def folded(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the kernels [..., C, c, k, k] before it; return them and the bias [C], which no attention weighs."""
    scale = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return weight * scale[:, None, None, None], norm.bias - cast(Tensor, norm.running_mean) * scale


def _panels(weight: Tensor) -> Tensor:
    """Pack matrices [..., C, c] as [..., C / 8, c, 8]."""
    return weight.reshape(*weight.shape[:-2], -1, PANEL, weight.shape[-1]).transpose(-1, -2)
