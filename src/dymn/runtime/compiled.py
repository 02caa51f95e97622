"""The folded form of a network, packed for the compiled code of `dymn.native.network`."""

from __future__ import annotations

import numpy as np

from dymn.config import check
from dymn.native.linear import LINE
from dymn.native.network import PANEL, CompiledNetwork, PackedNetwork, is_known
from dymn.runtime.fold import HEAD, Folded
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

    Errors are those of `compile_network`. The head of a frame-wise network is left out, see `dymn.runtime.framewise`.
    """
    config, arrays = folded
    check(
        is_known(config), "This network has parts that the compiled code does not support. Use dymn.runtime.accelerate."
    )
    return PackedNetwork(
        config, {name: _packed(name, array) for name, array in arrays.items() if not name.startswith(HEAD)}
    )


def _packed(name: str, values: Array) -> Floats:
    part, kind = name.split(".")[-2:]
    values = values.astype(np.float32, copy=False)
    if kind == "weight" and part in ("expand", "project", "context", "frequency", "time", "last"):
        values = values.reshape(*values.shape[:-2], -1, PANEL, values.shape[-1]).swapaxes(-1, -2)  # [..., C / 8, c, 8]
    elif kind == "weight" and part == "coefficient":
        values = np.pad(values.T, ((0, 0), (0, -len(values) % LINE)))
    elif kind == "weight" and part == "excite":
        values = values.T
    return values
