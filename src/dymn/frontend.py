"""Waveform to log-mel spectrogram (Sec. IV-A.1), as the published weights expect it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.config import FrontEndConfig
from dymn.errors import AudioError, ConfigError

PREEMPHASIS = 0.97
LOG_OFFSET = 1e-5


def mel_basis(config: FrontEndConfig, f_min: float, f_max: float) -> Tensor:
    """Return triangular mel filters [n_mels, n_fft / 2 + 1]: linear on the mel axis 1127 ln(1 + f / 700), peak 1.

    The column of the Nyquist bin is zero. Computed in float32, as for the published weights: in quiet bands the logarithm
    shows the difference to float64.
    """
    low, high = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (f_min, f_max))
    spacing = (high - low) / (config.n_mels + 1)
    index = torch.arange(config.n_mels).unsqueeze(1)
    left, centre, right = (low + (index + offset) * spacing for offset in (0.0, 1.0, 2.0))  # each [n_mels, 1]
    frequencies = torch.arange(config.n_fft // 2) * (config.sample_rate / config.n_fft)
    bins = 1127.0 * torch.log(1.0 + frequencies / 700.0)
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return functional.pad(triangles, (0, 1))


class LogMel(nn.Module):
    """Log-mel spectrograms of waveforms: [B, N] at `config.sample_rate` to [B, 1, n_mels, frames].

    N samples give 1 + (N - 1) // hop_length frames. Always computed in float32, inside autocast too.
    """

    window: Tensor
    basis: Tensor

    def __init__(self, config: FrontEndConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrontEndConfig()
        window = torch.hann_window(self.config.win_length, periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("basis", mel_basis(self.config, self.config.f_min, self.config.f_max), persistent=False)

    def jittered_basis(self, generator: torch.Generator) -> Tensor:
        """Draw f_min and f_max as in training and return the mel basis between them [n_mels, n_fft / 2 + 1].

        Raises:
            ConfigError: if the ranges are so wide that f_max can fall below f_min, and it did.
        """
        c = self.config
        up, down = (int(torch.randint(n, (), generator=generator)) for n in (c.f_min_range, c.f_max_range))
        f_max = min(c.f_max + 1000 - down, c.sample_rate / 2) if c.f_max_range > 1 else c.f_max
        if c.f_min + up >= f_max:
            raise ConfigError(f"The jitter of f_min and f_max drew {c.f_min + up} and {f_max} Hz. Set smaller f_min_range and f_max_range.")
        return mel_basis(c, c.f_min + up, f_max).to(self.basis.device)

    def forward(self, waveform: Tensor, basis: Tensor | None = None) -> Tensor:
        """Return [B, 1, n_mels, frames], with another mel basis than the standard one if `basis` is given.

        A waveform that is too short for the transform's reflection at the edges is extended with zeros first.

        Raises:
            AudioError: if the waveform is not [B, N] with N of at least 1.
        """
        if waveform.ndim != 2 or waveform.shape[1] < 1:
            raise AudioError(f"The waveform has shape {list(waveform.shape)}; it must be [B, N] with at least one sample.")
        with torch.autocast(waveform.device.type, enabled=False):
            return self._transform(waveform.float(), self.basis if basis is None else basis)

    def _transform(self, waveform: Tensor, basis: Tensor) -> Tensor:
        c = self.config
        waveform = functional.pad(waveform, (0, max(0, c.n_fft // 2 + 2 - waveform.shape[1])))
        emphasised = waveform[:, 1:] - PREEMPHASIS * waveform[:, :-1]
        spectrum = torch.stft(emphasised, c.n_fft, c.hop_length, c.win_length, self.window, center=True, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, bins, frames]
        log_mel = torch.log(basis @ power + LOG_OFFSET)
        return ((log_mel + 4.5) / 5.0).unsqueeze(1)

    def n_frames(self, n_samples: int) -> int:
        """Return how many frames `n_samples` samples give."""
        return 1 + (max(n_samples, self.config.n_fft // 2 + 2) - 1) // self.config.hop_length
