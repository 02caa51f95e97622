"""The network of a tagger, computed by PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dymn.backends import Backend, Scores
from dymn.config import check
from dymn.devices import resolve_device
from dymn.errors import ConfigError
from dymn.frontend import LogMel
from dymn.model import MobileNet, Output


class TorchBackend(Backend):
    """A `MobileNet` in evaluation mode on a device, after its front end."""

    def __init__(self, model: MobileNet, device: str | torch.device | None = None, threads: int | None = None) -> None:
        """Move the model to a device, in evaluation mode.

        Args:
            model: a network whose card names front end and labels.
            device: such as "cpu" or "cuda:0"; None is the first CUDA device, or else the CPU.
            threads: how many CPU threads PyTorch uses in this process from now on; None leaves it as it is.

        Raises:
            ConfigError: if there is no such device, or `threads` is below 1.
        """
        check(threads is None or threads >= 1, f"threads is {threads}; it must be at least 1.")
        self.device = resolve_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = model.to(self.device).eval()
        self.card = model.card
        self.is_cpu = self.device.type == "cpu"
        self._log_mel = LogMel(self.card.front_end).to(self.device)
        self._network: Callable[[Tensor], Tensor] = self._logits

    def _logits(self, log_mel: Tensor) -> Tensor:
        """Return the logits [B, C] of log-mel spectrograms [B, 1, F, T]."""
        output: Output = self.model(log_mel)
        return output.logits

    @torch.inference_mode()
    def probabilities(self, waveforms: npt.NDArray[np.float32] | Tensor) -> Scores:
        """Return the probabilities [B, C] of waveforms [B, N] at `sample_rate`, in full float32 on any device.

        Raises:
            ConfigError: if the batch does not fit the device's memory.
        """
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
                log_mel = self._log_mel(torch.as_tensor(waveforms, device=self.device))
                logits = self._network(log_mel)
                return self.model.probabilities(logits.float()).cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"{self.device} has no room for {len(waveforms)} windows at once. Give a smaller batch size.") from error
