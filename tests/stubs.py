"""Backends whose answers can be foreseen."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from dymn.runtime.backend import Backend, BackendOutput


class StubBackend(Backend):
    """A backend without a network: its features are the samples of windows, its embeddings their loudest sample."""

    embedding_size = 1

    @abstractmethod
    def scores(self, samples):
        """Return the probabilities [B, C] of windows [B, N]."""

    def run(self, features):
        return BackendOutput(self.scores(features), np.abs(features).max(axis=1, keepdims=True).astype(np.float32))
