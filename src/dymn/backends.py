"""What a tagger needs of a network, whatever computes it: waveforms in, probabilities out, and the card that says what they mean.

Nothing here imports PyTorch. `dymn.torch_backend` holds the implementation for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dymn.config import FrontEndConfig, ModelCard

if TYPE_CHECKING:
    from torch import Tensor

Scores = npt.NDArray[np.float32]
"""Probabilities of labels, [C] or [B, C]."""

CPU_BATCH_SIZE, BATCH_SIZE = 4, 32
"""How many windows go through a network at once on a CPU and elsewhere, if nobody says otherwise."""


class Backend(ABC):
    """A network with its front end, ready to compute.

    Attributes:
        card: labels in the order of the probabilities, the front end's configuration, name, licence, digest.
        is_cpu: whether the network is computed on the CPU.
    """

    card: ModelCard
    is_cpu: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.card.labels

    @property
    def front_end(self) -> FrontEndConfig:
        """How waveforms become log-mel spectrograms."""
        return self.card.front_end

    @property
    def sample_rate(self) -> int:
        """The rate of the waveforms, in Hz."""
        return self.card.front_end.sample_rate

    @property
    def batch_size(self) -> int:
        """How many windows to compute at once, if nobody says otherwise."""
        return CPU_BATCH_SIZE if self.is_cpu else BATCH_SIZE

    @abstractmethod
    def probabilities(self, waveforms: npt.NDArray[np.float32] | Tensor) -> Scores:
        """Return the probabilities [B, C] of waveforms [B, N] at `sample_rate`, which come as an array, or as a tensor if PyTorch is used.

        Raises:
            ConfigError: if the batch does not fit the device's memory.
        """
