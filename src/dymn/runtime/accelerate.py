"""Networks for inference alone: the same numbers in less time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dymn.models.mobilenet import MobileNet, Output
from dymn.native import libraries
from dymn.native.network import is_known
from dymn.runtime.compiled import NativeNetwork
from dymn.runtime.cuda import compiled
from dymn.runtime.fused import FusedNetwork, fuse

__all__ = ["FusedNetwork", "NativeNetwork", "accelerate", "compiled", "fuse"]


def accelerate(model: MobileNet) -> Callable[[Tensor], Output]:
    """Return the fastest form of a network for evaluation on this machine's CPU: compiled code, or else the fused form.

    It takes log-mel spectrograms [B, 1, n_mels, frames] and has copies of the weights as they are now. Of weights in half precision
    there is no faster form; the model itself is returned then.
    """
    kinds = {tensor.dtype for tensor in model.parameters()}
    if kinds == {torch.float32} and libraries() and is_known(model.config):
        return NativeNetwork(model)
    return fuse(model) if kinds in ({torch.float32}, {torch.float64}) else model
