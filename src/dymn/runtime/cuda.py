"""Inference on GPUs with a network compiled for few batch sizes, so that few CUDA graphs are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dymn.errors import ConfigError
from dymn.models.mobilenet import MobileNet, Output


def compiled(model: MobileNet, **options: Any) -> Callable[[Tensor], Output]:
    """Return a network compiled with `torch.compile`, from log-mel spectrograms to logits and embedding.

    The spectrograms are [B, 1, n_mels, frames]. Batches are filled up with clips of zeros to the next power of two,
    since each size is compiled for itself; so is each number of frames. What is returned is good until the next call.

    Args:
        model: a network in evaluation mode; it keeps its weights, and shares them.
        options: those of `torch.compile`; without any, kernels for few launches, as CUDA graphs where the device has
            them.

    Raises:
        ConfigError: at a call, if the network cannot be compiled here.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes longer to import than the rest of PyTorch

    network = torch.compile(model, dynamic=False, **(options or {"mode": "reduce-overhead"}))

    def compute(log_mel: Tensor) -> Output:
        n_clips = len(log_mel)
        missing = (1 << (n_clips - 1).bit_length()) - n_clips
        try:
            logits, embedding = network(functional.pad(log_mel, (0, 0, 0, 0, 0, 0, 0, missing)))
        except TorchDynamoException as error:
            reason = " ".join(str(error).split()[:30])
            raise ConfigError(
                f"The network cannot be compiled on this machine; leave compile out ({reason})."
            ) from error
        return Output(logits[:n_clips], embedding[:n_clips])

    return compute
