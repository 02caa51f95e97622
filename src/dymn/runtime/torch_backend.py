"""A network computed by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dymn.audio.windows import Filled
from dymn.config import check, check_choice
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet, Output
from dymn.native.log_mel import array_log_mel
from dymn.runtime.accelerate import accelerate
from dymn.runtime.backend import Backend, BackendOutput, FrameOutput
from dymn.runtime.cuda import compiled
from dymn.runtime.scores import Scores, probabilities
from dymn.runtime.sliding import SlidingLogMel
from dymn.system.arrays import Floats
from dymn.system.devices import COMPUTE_PRECISIONS, compute_alone_after_fork, computing, resolve_device, use_threads


class TorchBackend(Backend):
    """A `MobileNet` in evaluation mode on a device, after its front end."""

    def __init__(
        self,
        model: MobileNet,
        device: str | torch.device | None = None,
        threads: int | None = None,
        *,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        """Move the model to a device, in evaluation mode.

        Args:
            model: a network whose card names front end and labels; it is used as it is and not copied.
            device, threads, precision: as for `dymn.Tagger`; the front end is always computed in float32.
            compile: whether `run` is compiled with `torch.compile`, separately for each batch size; the first batches
                are slow.

        Raises:
            ConfigError: if there is no such device or precision, `threads` is below 1, or the network has several input
                channels.
        """
        check_choice("precision", precision, COMPUTE_PRECISIONS)
        model.config.require_mono("Inference on recordings")
        self.precision, self.compile = precision, compile
        self.device = resolve_device(device)
        if threads is not None:
            use_threads(threads)
        compute_alone_after_fork()
        self.model = model.to(self.device).eval()
        self.card = model.card
        check(not compile or model.config.sequence is None, "Frame-wise networks are not compiled. Leave compile out.")
        self.embedding_size = model.config.c_last
        self.is_cpu = self.device.type == "cpu"
        self._log_mel = LogMel(self.card.front_end).to(self.device)
        if model.config.sequence is not None:
            self.frame_seconds = model.config.sequence.length * self.frame_samples / self.sample_rate

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, without the fast form, which is built again at first use."""
        return {name: value for name, value in vars(self).items() if name != "_network"}

    @cached_property
    def _network(self) -> Callable[[Tensor], Output]:
        """Log-mel spectrograms [B, 1, F, T] to logits; on a CPU in the fastest form, with the weights at first use."""
        if self.model.config.sequence is not None:
            return self._of_frames
        if self.compile:
            return compiled(self.model)
        return accelerate(self.model) if self.is_cpu and self.precision == "float32" else self.model

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield log-mel spectrograms [1, F, T] on a CPU, no frame computed twice; on other devices, samples."""
        if not self.is_cpu:
            return super().features(windows, hop)
        sliding = SlidingLogMel(array_log_mel(self.front_end), hop)
        return (sliding(window.samples, window.n_samples) for window in windows)

    @torch.inference_mode()
    def run(self, features: Floats) -> BackendOutput:
        """See `Backend.run`; a `ConfigError` if the network is to be compiled and cannot be."""
        with computing(self.device, len(features), self.precision):
            found = self._network(self._log_mels(features))
            return self.checked(BackendOutput(self._probabilities(found.logits), _array(found.embedding)))

    def enter_worker(self) -> None:
        """Compute spectrograms with one thread: each decoder is a thread already."""
        torch.set_num_threads(1)

    def entered_workers(self) -> None:
        """Set this thread's number of threads again, as PyTorch gives new threads the number that was set last."""
        torch.set_num_threads(torch.get_num_threads())

    @property
    def frame_samples(self) -> int:
        """The number of samples between two frames: 10,240 (0.32 s) for the published networks."""
        return self.model.time_stride * self.front_end.hop_length

    @torch.inference_mode()
    def frame_run(self, features: Floats, smoothing: int = 1) -> FrameOutput:
        """See `Backend.frame_run`."""
        with computing(self.device, len(features), self.precision):
            maps = self.model.features(self._log_mels(features))
            embedding = maps.mean(dim=(2, 3))
            frames, clip = map(self._probabilities, self.model.scores(maps, embedding, smoothing))
            return self.checked(FrameOutput(frames, clip, _array(embedding)))

    def network(self) -> MobileNet:
        """Return the network."""
        return self.model

    def _of_frames(self, log_mel: Tensor) -> Output:
        """Return the output of the trained head of a frame-wise network."""
        maps = self.model.features(log_mel)
        embedding = maps.mean(dim=(2, 3))
        return Output(self.model.head(maps, embedding), embedding)

    def _log_mels(self, features: Floats) -> Tensor:
        """Return log-mel spectrograms [B, 1, F, T] on the device: on a CPU the features themselves."""
        given = torch.as_tensor(features, device=self.device)
        return given if self.is_cpu else self._log_mel(given)

    def _probabilities(self, logits: Tensor) -> Scores:
        return probabilities(_array(logits), self.card.exclusive)


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
