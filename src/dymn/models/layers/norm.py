"""Batch norm and the activation behind it, one operation on a feature map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dymn.models.layers.operation import Operation


@Operation
def normalised(x: Tensor, norm: nn.Module, activation: nn.Module, *context: Any) -> Tensor:
    """Return the activation, which may depend on the context, of a normalised map [B, C, F, T]."""
    return activation(norm(x), *context)  # type: ignore[no-any-return]
