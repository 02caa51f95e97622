"""The folded form of a network, packed for the compiled code of `dymn.native.network`."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from dymn.config import check
from dymn.native.network import LINE, PANEL, CompiledNetwork, PackedNetwork, head_layers, is_known
from dymn.runtime.fold import Folded
from dymn.system.arrays import Array, Floats


def compile_network(folded: Folded, build: str | None = None) -> CompiledNetwork:
    """Return a network in compiled code.

    Args:
        folded: a network for which `dymn.native.network.is_known` holds.
        build: a key of `dymn.native.libraries`; None is the fastest.

    Raises:
        ConfigError: if there is no such build, or the compiled code does not support parts of the network.
    """
    return CompiledNetwork(pack(folded), build)


def pack(folded: Folded) -> PackedNetwork:
    """Return a network as the compiled code takes it: views of the folded arrays where that is enough.

    Raises:
        ConfigError: if it has parts that the compiled code does not support.
    """
    config, arrays = folded
    check(
        is_known(config), "This network has parts that the compiled code does not support. Use dymn.runtime.accelerate."
    )
    layers = head_layers(config)
    return PackedNetwork(config, {name: _packed(name, array, layers) for name, array in arrays.items()})


def _packed(name: str, values: Array, head: Container[str]) -> Floats:
    part, kind = name.split(".")[-2:]
    values = values.astype(np.float32, copy=False)
    if kind == "weight" and part in ("expand", "project", "context", "frequency", "time", "last"):
        values = values.reshape(*values.shape[:-2], -1, PANEL, values.shape[-1]).swapaxes(-1, -2)  # [..., C / 8, c, 8]
    elif kind == "weight" and part in head:
        padded = np.pad(values, ((0, -len(values) % LINE), (0, 0)))
        values = padded.reshape(-1, LINE, values.shape[1]).swapaxes(1, 2)  # [C / 16, c, 16], zeros where C ends
    elif kind == "weight" and part == "coefficient":
        values = np.pad(values.T, ((0, 0), (0, -len(values) % LINE)))
    elif kind == "weight" and part == "excite":
        values = values.T
    return values
