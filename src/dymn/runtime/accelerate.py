"""Faster forms of networks for inference, with the same results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dymn.config import check
from dymn.models.heads import FramewiseOutput
from dymn.models.mobilenet import MobileNet, Output
from dymn.native import libraries
from dymn.native.network import is_known
from dymn.runtime.compiled import compile_network
from dymn.runtime.fold import fold
from dymn.runtime.framewise import ArrayFrameHead
from dymn.runtime.fused import fuse
from dymn.system.arrays import Floats


def accelerate(model: MobileNet) -> Callable[[Tensor], Output]:
    """Return the fastest form of a network for inference on this CPU: compiled code, otherwise the fused form.

    Its input are log-mel spectrograms [B, 1, n_mels, frames]. It contains copies of the current weights. For weights in
    half precision, there is no faster form, and the model itself is returned.
    """
    if can_compile(model):
        return NativeNetwork(model)
    kinds = {tensor.dtype for tensor in model.parameters()}
    return fuse(model) if kinds in ({torch.float32}, {torch.float64}) else model


def can_compile(model: MobileNet) -> bool:
    """Return whether this machine has compiled code that supports the network and the type of its weights."""
    is_single = {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    return is_single and bool(libraries()) and is_known(model.config)


class NativeNetwork:
    """A network in compiled code.

    It maps log-mel spectrograms [B, 1, F, T] on the CPU to logits and embedding, without gradients. It contains a copy
    of the weights, keeps the memory of its last call, and may be called from several threads at once.
    """

    def __init__(self, model: MobileNet, build: str | None = None) -> None:
        """Fold and pack the weights of a network; `build` and errors are those of `compile_network`."""
        folded = fold(model.config, model.stored().state)
        self.compiled = compile_network(folded, build)
        self._head = None if model.config.sequence is None else ArrayFrameHead(folded, self.compiled.library)

    def __call__(self, log_mel: Tensor) -> Output:
        """Return logits [B, C] and embedding [B, D], computed by as many threads as PyTorch uses.

        Those of a frame-wise network have `frame_logits` [B, T, C], too.
        """
        if self._head is not None:
            n_threads = torch.get_num_threads()
            embedded, maps = self.compiled.embed_frames(_array(log_mel), n_threads)
            frames, clips = map(torch.from_numpy, self._head.output(maps, n_threads))
            return FramewiseOutput(clips, torch.from_numpy(embedded), frames)
        embedding = self.embed(log_mel)
        return Output(torch.from_numpy(self.compiled.logits(embedding.numpy())), embedding)

    def with_blocks(self, log_mel: Tensor) -> tuple[Output, list[Tensor]]:
        """Return logits and embedding, and the output [B, C, F', T'] of each block.

        Raises:
            ConfigError: if the network is frame-wise.
        """
        check(self._head is None, "The outputs of blocks are not available for a frame-wise network.")
        embedding, maps = self.compiled.embed_blocks(_array(log_mel), torch.get_num_threads())
        output = Output(torch.from_numpy(self.compiled.logits(embedding)), torch.from_numpy(embedding))
        return output, [torch.from_numpy(each) for each in maps.values()]

    def embed(self, log_mel: Tensor) -> Tensor:
        """Return the embedding [B, D]."""
        return torch.from_numpy(self.compiled.embed(_array(log_mel), torch.get_num_threads()))


def _array(log_mel: Tensor) -> Floats:
    return log_mel.detach().to("cpu", torch.float32).numpy()
