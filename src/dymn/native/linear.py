"""A linear layer in compiled code, see `dymn_affine` in `network.c`."""

from __future__ import annotations

import ctypes

import numpy as np

from dymn.config import check
from dymn.native import within_bounds
from dymn.system.arrays import Array, Floats

ACTIVATIONS = {"identity": 0, "relu": 1, "hardswish": 2}
LINE = 16  # outputs of a linear layer, of which so many are computed at a time
SLACK = 64


class CompiledLinear:
    """Rows of values to rows of others; each row's numbers depend neither on the rows beside it nor on threads."""

    def __init__(self, library: ctypes.CDLL, weight: Array, bias: Array | None = None) -> None:
        """Pack and copy the weights.

        Args:
            library: a value of `dymn.native.libraries`.
            weight: [n_out, n_in].
            bias: [n_out]; None is a layer without.
        """
        self.n_out, self.n_in = weight.shape
        packed = packed_lines(weight)
        self._library, self._width = library, len(packed) * LINE
        self._kept = with_slack(packed), with_slack(np.zeros(self.n_out, np.float32) if bias is None else bias)
        self._weight, self._bias = (ctypes.c_void_p(array.ctypes.data) for array in self._kept)

    def __call__(self, x: Floats, n_threads: int = 1, activation: str = "identity") -> Floats:
        """Return the layer and its activation of rows [..., n_in], as [..., n_out].

        Raises:
            ConfigError: if the rows have another length.
        """
        if x.ndim < 2 or x.shape[-1] != self.n_in:
            check(False, f"The rows have shape {list(x.shape)}; they must be [B, {self.n_in}].")
        rows = np.ascontiguousarray(x, np.float32)
        out = np.empty((*x.shape[:-1], self._width), np.float32)
        given, found = ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(out.ctypes.data)
        counts = (out.size // self._width, self.n_in, self.n_out, ACTIVATIONS[activation], within_bounds(n_threads))
        self._library.dymn_affine(given, self._weight, self._bias, *counts, found)
        return out[..., : self.n_out]


def whole_lines(n: int) -> int:
    """Return the number of outputs of a packed layer that has `n`."""
    return n + -n % LINE


def packed_lines(weight: Array) -> Floats:
    """Return a matrix [n_out, n_in] as [n_out / 16, n_in, 16], zeros where its outputs end."""
    padded = np.pad(weight.astype(np.float32, copy=False), ((0, -len(weight) % LINE), (0, 0)))
    return padded.reshape(-1, LINE, weight.shape[1]).swapaxes(1, 2)


def with_slack(values: Array) -> Floats:
    """Return a copy of values, one after the other, with room behind that may be read."""
    kept = np.empty(values.size + SLACK, np.float32)
    kept[: values.size].reshape(values.shape)[...] = values  # one copy, of packed views too
    kept[values.size :] = 0
    return kept
