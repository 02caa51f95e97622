"""What a tagger needs of a network, whatever computes it: waveforms in, probabilities out, and the card that says what they mean.

Nothing here imports PyTorch. `dymn.runtime.torch_backend` holds the implementation for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from dymn.inference.embedding import BaseEmbedder

Scores = npt.NDArray[np.float32]
"""Probabilities of labels, [C] or [B, C]."""


class FrameScores(NamedTuple):
    """Probabilities of the frames of windows, and of the windows as wholes."""

    frames: Scores  # [B, T, C]
    clip: Scores  # [B, C]


CPU_BATCH_SIZE, BATCH_SIZE = 4, 32
"""How many windows go through a network at once on a CPU and elsewhere, if nobody says otherwise."""


class Filled(NamedTuple):
    """A window of a recording [N] after filling, and how many of its samples are the recording's."""

    samples: npt.NDArray[np.float32]
    n_samples: int


def probabilities(logits: Scores, exclusive: bool) -> Scores:
    """Return the probabilities of classes [..., C]: a sigmoid of each logit, or a softmax where one class excludes the others."""
    with np.errstate(over="ignore", invalid="ignore"):  # `Backend.checked` tells of what is not finite
        if exclusive:
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


class Backend(ABC):
    """A network with its front end, ready to compute.

    Attributes:
        card: labels in the order of the probabilities, the front end's configuration, name, licence, digest.
        is_cpu: whether the network is computed on the CPU.
        precision: how exactly, where that can be chosen.
    """

    card: ModelCard
    is_cpu: bool = True
    precision: str = "float32"

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
            ResourceError: if the batch does not fit the device's memory.
        """

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield for each window of a recording, which begin `hop` samples apart, what `scores` takes; here its samples.

        Called in threads that decode, each of which has said so with `enter_worker`. What can be done for one window without the
        network, such as its spectrogram, is best done here.
        """
        return (window.samples for window in windows)

    def scores(self, features: npt.NDArray[np.float32]) -> Scores:
        """Return the probabilities [B, C] of a batch of what `features` gave, [B, ...].

        Raises:
            ResourceError: if the batch does not fit the device's memory.
        """
        return self.probabilities(features)

    def enter_worker(self) -> None:  # noqa: B027
        """Called once in each thread that decodes, before it does anything else."""

    def entered_workers(self) -> None:  # noqa: B027
        """Called in the thread that runs the network, after all others have called `enter_worker`."""

    @property
    def frame_samples(self) -> int:
        """How many samples lie between two frames of `frame_scores`.

        Raises:
            ConfigError: if this backend tells only of whole windows.
        """
        raise self._no_frames()

    def frame_scores(self, features: npt.NDArray[np.float32], smoothing: int = 1) -> FrameScores:
        """Return the probabilities of each frame of the last feature map of a batch of `features`, and of the windows as wholes.

        Frame i lies around sample i * `frame_samples`. `smoothing`, an odd number, is over how many frames the map is averaged first.

        Raises:
            ConfigError: if this backend tells only of whole windows.
            ResourceError: if the batch does not fit the device's memory.
        """
        raise self._no_frames()

    def embedder(self, layers: str | Sequence[str]) -> BaseEmbedder:
        """Return what embeds recordings with this network.

        Raises:
            ConfigError: if there is no such layer, or this backend cannot look into it.
        """
        raise ConfigError(f"{type(self).__name__} gives no embeddings. Load the model in PyTorch.")

    def checked(self, scores: Scores) -> Scores:
        """Return probabilities [..., C] as they are.

        Raises:
            WeightsError: if they are not finite numbers for the C labels: the weights are of no use, whatever their file says.
        """
        if scores.shape[-1:] != (len(self.labels),) or scores.dtype != np.float32 or not np.isfinite(scores).all():
            raise WeightsError(
                f"The model {self.card.name or 'without a name'} gives {scores.dtype} {list(scores.shape)} that are not all finite "
                f"probabilities of its {len(self.labels)} labels. Its weights are damaged; get them again."
            )
        return scores

    def _no_frames(self) -> ConfigError:
        return ConfigError(f"{type(self).__name__} tells only of whole windows. Use the method windows, or load the model in PyTorch.")
