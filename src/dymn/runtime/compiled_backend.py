"""The network and its front end in compiled code, from a checkpoint's arrays; PyTorch is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from dymn.audio.windows import Filled
from dymn.config import check
from dymn.native import libraries
from dymn.native.log_mel import array_log_mel
from dymn.native.network import CompiledNetwork, is_known
from dymn.runtime.backend import Backend, BackendOutput, FrameOutput, too_large
from dymn.runtime.compiled import compile_network
from dymn.runtime.fold import fold
from dymn.runtime.framewise import ArrayFrameHead
from dymn.runtime.scores import probabilities
from dymn.runtime.sliding import SlidingLogMel
from dymn.system.arrays import Floats
from dymn.system.cpus import default_threads
from dymn.system.extras import require_torch
from dymn.weights.format import Stored

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet


def can_compile(stored: Stored) -> bool:
    """Return whether this machine has compiled code that supports the network of a checkpoint."""
    return bool(libraries()) and is_known(stored.config)


class CompiledBackend(Backend):
    """A network in compiled code: probabilities, last-layer embeddings and frame scores, on the CPU in float32."""

    def __init__(self, stored: Stored, threads: int | None = None, *, build: str | None = None) -> None:
        """Fold and pack a network.

        Args:
            stored: a checkpoint for which `can_compile` holds.
            threads: number of CPU threads that compute the network; None is one for each CPU that may be used.
            build: as for `compile_network`.

        Raises:
            ConfigError: if `threads` is not allowed, or there is no compiled code for this machine or network.
        """
        check(bool(libraries()), "There is no compiled code for this CPU. Use the backend torch or onnx.")
        self.card, self.embedding_size = stored.card, stored.config.c_last
        self._stored, self._threads = stored, default_threads(threads)
        self._model: MobileNet | None = None
        with np.errstate(over="ignore", invalid="ignore"):
            folded = fold(stored.config, stored.state)
            self._network: CompiledNetwork = compile_network(folded, build)
        self._head: ArrayFrameHead | None = None  # of a frame-wise network
        if stored.config.sequence is not None:
            self._head = ArrayFrameHead(folded, self._network.library)
            self.frame_seconds = self._head.length * self.frame_samples / self.sample_rate
        self._front_end = array_log_mel(stored.card.front_end)

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield log-mel spectrograms [1, F, T], no frame computed twice."""
        sliding = SlidingLogMel(self._front_end, hop)
        return (sliding(window.samples, window.n_samples) for window in windows)

    def run(self, features: Floats) -> BackendOutput:
        """Return probabilities [B, C] and embeddings [B, D] of spectrograms [B, 1, F, T]; see `Backend.run`."""
        if self._head is not None:
            return BackendOutput(*self.frame_run(features)[1:])
        try:
            embedding = self._network.embed(features, self._threads)
        except MemoryError as error:
            raise too_large(len(features)) from error
        return self.checked(
            BackendOutput(probabilities(self._network.logits(embedding), self.card.exclusive), embedding)
        )

    @property
    def frame_samples(self) -> int:
        """The samples between two frames: 10,240 (0.32 s) for published networks, 640 (0.04 s) for frame-wise ones."""
        return self._network.time_stride * self.front_end.hop_length

    def frame_run(self, features: Floats, smoothing: int = 1) -> FrameOutput:
        """See `Backend.frame_run`."""
        try:
            embedding, maps = self._network.embed_frames(features, self._threads)  # [B, D], [B, D, T]
            logits = self._logits(moving_average(maps, smoothing), embedding)
            frames, clips = (probabilities(found, self.card.exclusive) for found in logits)
        except MemoryError as error:
            raise too_large(len(features)) from error
        return self.checked(FrameOutput(frames, clips, embedding))

    def network(self) -> MobileNet:
        """See `Backend.network`."""
        if self._model is None:
            require_torch("Looking inside a network")
            from dymn.models.mobilenet import MobileNet

            self._model = MobileNet.from_stored(self._stored)
        return self._model

    def _logits(self, maps: Floats, embedding: Floats) -> tuple[Floats, Floats]:
        """Return logits of frames [B, T, C] and clips [B, C] of feature maps [B, D, T] and their means [B, D]."""
        if self._head is not None:
            return self._head.scores(maps, self._threads)
        return self._network.logits(maps.swapaxes(1, 2)), self._network.logits(embedding)


def moving_average(maps: Floats, width: int) -> Floats:
    """Return the mean over `width` (odd) frames around each frame of [B, D, T], fewer at the ends."""
    if width <= 1:
        return maps
    n_frames = maps.shape[2]
    places = np.arange(n_frames)
    near = (np.abs(places[:, None] - places) <= width // 2).astype(np.float32)  # [T, T]
    return np.asarray(maps @ near / near.sum(axis=0), np.float32)
