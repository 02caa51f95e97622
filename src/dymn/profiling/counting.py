"""Parameters and multiply-adds, without weights and without audio.

The counting rule is that of the paper's tables: multiply-adds of convolutions, linear layers and matrix products (the kernel
aggregation of dynamic convolutions included) for one spectrogram; nothing else is counted. The network runs once on meta
tensors, which have shapes and no values, and every matrix operation that comes by is counted where it happens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dymn.config import ModelConfig, check
from dymn.models.layers import DynamicConv2d
from dymn.models.mobilenet import MobileNet
from dymn.profiling.networks import Network, resolve

KINDS = ("convolution", "aggregation", "context", "attention", "head")


@dataclass(frozen=True)
class Count:
    """Parameters and multiply-adds of a network for one spectrogram.

    `parts` maps the places of Table I ("stem", "block 1" ... "block 15", "last", "head") to the multiply-adds of each of
    `KINDS`; "context" holds the context generation and the linear layers that turn it into coefficients.
    """

    parameters: int
    macs: int
    parts: dict[str, dict[str, int]]

    @property
    def kinds(self) -> dict[str, int]:
        """Multiply-adds of each of `KINDS` over the whole network."""
        return {kind: sum(part.get(kind, 0) for part in self.parts.values()) for kind in KINDS}


def count(model: Network, n_mels: int = 128, n_frames: int = 1000) -> Count:
    """Count parameters and multiply-adds for one spectrogram of `n_mels` bands and `n_frames` frames (1000 are 10 s).

    Raises:
        ConfigError: if a size is below 1; and as `resolve` does.
    """
    check(n_mels >= 1 and n_frames >= 1, f"n_mels, n_frames are {n_mels}, {n_frames}; both must be at least 1.")
    return _count(dataclasses.replace(resolve(model), temperature=1.0), n_mels, n_frames)


@lru_cache(maxsize=256)
def _count(config: ModelConfig, n_mels: int, n_frames: int) -> Count:
    network = MobileNet.skeleton(config).eval()  # shapes without values
    ledger = _Ledger()
    with torch.no_grad(), _places(network, ledger), ledger:
        network(torch.empty(1, 1, n_mels, n_frames, device="meta"))
    parts: dict[str, dict[str, int]] = {place: {} for place in place_names(config)}
    for (place, kind), macs in ledger.macs.items():
        parts[place][kind] = macs
    return Count(sum(p.numel() for p in network.parameters()), sum(ledger.macs.values()), parts)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    return out.numel() * weight[0].numel()


def _product(out: Tensor, *operands: Tensor) -> int:
    return out.numel() * operands[0].shape[-1]


def _biased_product(out: Tensor, bias: Tensor, *operands: Tensor) -> int:
    return _product(out, *operands)


_aten = torch.ops.aten
MULTIPLY_ADDS: dict[Any, Callable[..., int]] = {
    _aten.convolution.default: _convolution,
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.mv.default: _product,
    _aten.dot.default: lambda out, a, b: a.numel(),
    _aten.addmm.default: _biased_product,
    _aten.baddbmm.default: _biased_product,
}


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books the multiply-adds of every operation under the place and kind that are open while it runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: Counter[tuple[str, str]] = Counter()
        self.open: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = _run(func, args, kwargs or {})
        if func in MULTIPLY_ADDS:
            place, kind = self.open[-1]
            if kind == "dynamic convolution":  # a mixture of K kernels is one flat product, the convolution is not
                kind = "aggregation" if func is _aten.mm.default else "convolution"
            self.macs[place, kind] += MULTIPLY_ADDS[func](out, *args)
        return out


_MAX_OUTCOMES = 50_000
_outcomes: dict[Any, tuple[type, list[tuple[Any, ...]]]] = {}


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on meta tensors; when it ran on such shapes before, only make tensors of the shapes that came out.

    PyTorch works out shapes in Python, a quarter of a millisecond an operation; the tables of the paper have 40,000 of them.
    """
    if func.is_view or func._schema.is_mutable:
        return func(*args, **kwargs)
    key = (func, _key(args), _key(tuple(kwargs.items())))
    if key not in _outcomes:
        out = func(*args, **kwargs)
        tensors = out if isinstance(out, (list, tuple)) else [out]
        if len(_outcomes) >= _MAX_OUTCOMES or not all(isinstance(tensor, Tensor) for tensor in tensors):
            return out
        _outcomes[key] = type(out), [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        return out
    kind, shapes = _outcomes[key]
    tensors = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in shapes]
    return kind(tensors) if issubclass(kind, (list, tuple)) else tensors[0]


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(_key(item) for item in value) if isinstance(value, (list, tuple)) else value


def place_names(config: ModelConfig) -> list[str]:
    """Return the places of Table I in the order of the signal."""
    return ["stem", *(f"block {i}" for i in range(1, len(config.blocks) + 1)), "last", "head"]


@contextmanager
def _places(network: MobileNet, ledger: _Ledger) -> Iterator[None]:
    """Tell the ledger through hooks which place and kind each module belongs to."""
    handles = []

    def enter(label: tuple[str, str], *_: Any) -> None:
        ledger.open.append(label)

    def leave(*_: Any) -> None:
        ledger.open.pop()

    def label(module: nn.Module, place: str, kind: str) -> None:
        handles.append(module.register_forward_pre_hook(partial(enter, (place, kind))))
        handles.append(module.register_forward_hook(leave))

    modules = [network.stem, *network.blocks, network.last, network.head]
    for place, module in zip(place_names(network.config), modules, strict=True):
        label(module, place, "head" if place == "head" else "convolution")
    for place, block in zip(place_names(network.config)[1:-2], network.blocks, strict=True):
        for name, part in block.named_modules():
            if name == "attention":
                label(part, place, "attention")
            elif name == "context" or (name.endswith((".coefficients", ".squeeze")) and not name.startswith("attention")):
                label(part, place, "context")
            elif isinstance(part, DynamicConv2d):
                label(part, place, "dynamic convolution")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
