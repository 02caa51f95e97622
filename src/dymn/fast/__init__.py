"""Networks for inference alone: the same numbers in less time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dymn.fast.fused import FusedNetwork, fuse
from dymn.fast.native import NativeNetwork, is_known
from dymn.model import MobileNet, Output
from dymn.native import libraries

__all__ = ["FusedNetwork", "NativeNetwork", "accelerate", "fuse"]


def accelerate(model: MobileNet) -> Callable[[Tensor], Output]:
    """Return the fastest form of a network for evaluation on this machine's CPU: compiled code, or else the fused form.

    It takes log-mel spectrograms [B, 1, n_mels, frames] and has copies of the weights as they are now.
    """
    return NativeNetwork(model) if libraries() and is_known(model.config) else fuse(model)
