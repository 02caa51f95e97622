"""Backends run networks: features of windows in, probabilities and embeddings out.

A backend does not handle tags, events or layers. It has two tasks, which may run in different threads: `features`
prepares one window at a time, and `run` computes the network for a batch of windows. This module does not import
PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from dymn.audio.samples import to_float32, to_mono
from dymn.audio.windows import Filled
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import AudioError, ConfigError, ResourceError, WeightsError, resource_error
from dymn.runtime.scores import Scores
from dymn.system.arrays import Floats

if TYPE_CHECKING:
    from torch import Tensor

    from dymn.models.mobilenet import MobileNet


CPU_BATCH_SIZE, BATCH_SIZE = 4, 32
"""The default number of windows per batch, on a CPU and on other devices."""


class BackendOutput(NamedTuple):
    """The results of a network for a batch of windows."""

    probabilities: Scores  # [B, C]
    embedding: Floats  # [B, D], the averaged last feature map


class FrameOutput(NamedTuple):
    """The results of a network for a batch of windows and their frames, from one pass."""

    frames: Scores  # [B, T, C], probabilities of each frame of the last feature map
    probabilities: Scores  # [B, C]
    embedding: Floats  # [B, D]


O = TypeVar("O", BackendOutput, FrameOutput)  # noqa: E741


class Backend(ABC):
    """A network with its front end, ready for inference.

    Attributes:
        card: labels in the order of the probabilities, the front end's configuration, name, licence, digest.
        embedding_size: number of values of an embedding, D.
        is_cpu: whether the network is computed on the CPU.
        precision: the number format of the network's arithmetic, such as "float32".
        seconds: the only length of windows on which `run` can be called; None for any.
        frame_seconds: for a frame-wise network, the length of the windows on which `frame_run` must be called; None for
            other networks.
    """

    card: ModelCard
    embedding_size: int
    is_cpu: bool = True
    precision: str = "float32"
    seconds: float | None = None
    frame_seconds: float | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the C classes, in the order of the probabilities."""
        return self.card.labels

    @property
    def front_end(self) -> FrontEndConfig:
        """The settings of the log-mel spectrogram."""
        return self.card.front_end

    @property
    def sample_rate(self) -> int:
        """The sample rate of the windows, in Hz."""
        return self.card.front_end.sample_rate

    @property
    def batch_size(self) -> int:
        """The default number of windows per batch."""
        return CPU_BATCH_SIZE if self.is_cpu else BATCH_SIZE

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield the input of `run` for each window of one recording: by default its samples [N].

        Called in decoding threads, each of which has called `enter_worker`. All computation on single windows before
        the network, such as the spectrogram, belongs here.

        Args:
            windows: windows of one recording, in chronological order.
            hop: distance between the starts of two windows, in samples; overlapping windows may share frames.
        """
        return (window.samples for window in windows)

    @abstractmethod
    def run(self, features: Floats) -> BackendOutput:
        """Return probabilities [B, C] and embeddings [B, D] of a batch of `features`, [B, ...].

        Raises:
            ResourceError: if the batch does not fit the device's memory.
            WeightsError: if the network returns values that are not finite.
        """

    def run_waveforms(self, waveforms: npt.NDArray[np.generic] | Tensor) -> BackendOutput:
        """Return probabilities [B, C] and embeddings [B, D] of windows given as waveforms [B, N] at `sample_rate`.

        Raises:
            AudioError: if the waveforms are not [B, N], or a sample is not finite.
            ResourceError: if the batch does not fit the device's memory.
        """
        return self.run(self.waveform_features(waveforms))

    def waveform_features(self, waveforms: npt.NDArray[np.generic] | Tensor) -> Floats:
        """Return the `features` [B, ...] of waveforms [B, N] at `sample_rate`, each of which is one window.

        Raises:
            AudioError: if the waveforms are not [B, N], or a sample is not finite.
            ResourceError: if the batch does not fit the memory.
        """
        samples = checked_waveforms(waveforms)
        length = samples.shape[1]
        try:
            return np.stack([next(self.features([Filled(window, length)], length)) for window in samples])
        except (MemoryError, RuntimeError) as error:
            if resource_error(error) is None:
                raise
            raise too_large(len(samples)) from error

    @property
    def frame_samples(self) -> int:
        """The number of samples between two frames of `frame_run`.

        Raises:
            ConfigError: if this backend computes whole windows only.
        """
        raise self._no_frames()

    def frame_run(self, features: Floats, smoothing: int = 1) -> FrameOutput:
        """Return what `run` does and the probabilities of each frame of the last feature map, in one pass.

        Frame i is centred on sample i * `frame_samples`; frames of a frame-wise network start there.

        Args:
            features: features of a batch of windows, [B, ...].
            smoothing: odd number of frames over which the feature map is averaged first; not used by frame-wise
                networks.

        Raises:
            ConfigError: if this backend computes whole windows only.
            ResourceError: if the batch does not fit the device's memory.
            WeightsError: if the network returns values that are not finite.
        """
        raise self._no_frames()

    @property
    def scores_frames(self) -> bool:
        """Whether `frame_run` can be called."""
        try:
            return self.frame_samples > 0
        except ConfigError:
            return False

    def network(self) -> MobileNet:
        """Return the network as a PyTorch module in evaluation mode, for access to its layers.

        Raises:
            ConfigError: if there is none.
            MissingExtraError: if PyTorch is not installed.
        """
        kind = type(self).__name__
        raise ConfigError(
            f"{kind} has no PyTorch network, which layers other than last need. Load the model with backend torch."
        )

    def enter_worker(self) -> None:  # noqa: B027
        """Called once in each decoding thread before anything else."""

    def entered_workers(self) -> None:  # noqa: B027
        """Called in the thread that runs the network, after all decoding threads have called `enter_worker`."""

    def checked(self, output: O) -> O:
        """Return an output as it is; every `run` ends with it.

        Raises:
            WeightsError: if a value is not finite or the probabilities do not fit the labels: the weights are damaged.
        """
        fits = output.probabilities.shape[-1:] == (len(self.labels),)
        if not fits or not all(values.dtype == np.float32 and np.isfinite(values).all() for values in output):
            scores = output.probabilities
            raise WeightsError(
                f"The model {self.card.name or 'without a name'} returned {scores.dtype} {list(scores.shape)} that "
                f"are not all finite probabilities of its {len(self.labels)} labels. Its weights are damaged; "
                "download or copy them again."
            )
        return output

    def _no_frames(self) -> ConfigError:
        kind = type(self).__name__
        return ConfigError(
            f"{kind} computes scores of whole windows only. Use the method windows, or load the model with backend "
            "torch."
        )


def too_large(n_windows: int) -> ResourceError:
    """Return the error for a batch that does not fit the memory."""
    return ResourceError(f"There is not enough memory for a batch of {n_windows} windows. Use a smaller batch size.")


def checked_waveforms(waveforms: npt.NDArray[np.generic] | Tensor) -> Floats:
    """Return waveforms [B, N] as float32 with full scale 1, or raise an `AudioError` for other or infinite ones."""
    if not isinstance(waveforms, np.ndarray):
        waveforms = waveforms.detach().float().cpu().numpy()
    if waveforms.ndim != 2 or 0 in waveforms.shape:
        raise AudioError(f"The waveform has shape {list(waveforms.shape)}; it must be [B, N] with at least one sample.")
    samples: Floats = to_float32(waveforms)
    for i, window in enumerate(samples):
        to_mono(f"Waveform {i}", window[:, None])
    return samples
