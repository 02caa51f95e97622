"""Waveform to log-mel spectrogram (Sec. IV-A.1), as the published weights expect it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.config import FrontEndConfig
from dymn.errors import AudioError, ConfigError

PREEMPHASIS = 0.97
LOG_OFFSET = 1e-5
CHUNK_FRAMES = 256
"""How many frames a CPU takes at once: their samples, spectra and powers, 1 MB each, stay in its second cache."""
BAND_ROWS = 16


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


class Band(NamedTuple):
    """Neighbouring mel filters, cut down to the stretch of the spectrum where they are not zero.

    A spectrum is a row of real and imaginary parts in turn, so each value of the filters stands there twice.
    """

    filters: Tensor  # [rows, end - start]
    start: int
    end: int


def bands(basis: Tensor, rows: int = BAND_ROWS) -> list[Band]:
    """Cut a mel basis [n_mels, bins] into bands of `rows` filters; most of the basis is zeros, which are not multiplied then."""
    cut = []
    for part in torch.split(basis.repeat_interleave(2, dim=1), rows):
        used = part.any(dim=0).nonzero().flatten().tolist() or [0]
        start, end = used[0], used[-1] + 1
        cut.append(Band(part[:, start:end].contiguous(), start, end))
    return cut


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
        self._bands = bands(self.basis)  # for the CPU, where they stay

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
            frames = self.frames(waveform.float())
            if not waveform.is_cpu or torch.compiler.is_compiling():
                return self._whole(frames, self.basis if basis is None else basis)
            cut = self._bands if basis is None else bands(basis)
            return torch.stack([self._in_chunks(clip, cut) for clip in frames]).unsqueeze(1)

    def frames(self, waveform: Tensor) -> Tensor:
        """Return the pre-emphasised samples of each frame, [B, N] to [B, frames, n_fft], as a view that repeats what frames share.

        The middle of frame t is sample t * hop_length; what lies beyond the ends is their reflection.
        """
        c = self.config
        missing = c.n_fft // 2 + 2 - waveform.shape[1]
        if missing > 0:
            waveform = functional.pad(waveform, (0, missing))
        emphasised = torch.sub(waveform[:, 1:], waveform[:, :-1], alpha=PREEMPHASIS)
        return functional.pad(emphasised, (c.n_fft // 2, c.n_fft // 2), mode="reflect").unfold(1, c.n_fft, c.hop_length)

    def columns(self, frames: Tensor) -> Tensor:
        """Return the log-mel spectrogram [n_mels, n] of samples [n, n_fft] that `frames` gave, each frame by itself; on the CPU only."""
        return self._in_chunks(frames, self._bands)

    def _in_chunks(self, frames: Tensor, cut: Sequence[Band]) -> Tensor:
        """Return [n_mels, n] of frames [n, n_fft], in pieces that stay in the cache."""
        window = self._padded_window()
        parts = []
        for chunk in torch.split(frames, CHUNK_FRAMES):
            parts_of_spectrum = torch.view_as_real(torch.fft.rfft(chunk * window)).flatten(1)  # [n, 2 bins]
            power = parts_of_spectrum * parts_of_spectrum
            mel = torch.cat([band.filters @ power[:, band.start : band.end].T for band in cut])
            parts.append(_scaled_log(mel))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _whole(self, frames: Tensor, basis: Tensor) -> Tensor:
        """Return [B, 1, n_mels, frames] of [B, frames, n_fft] in few large steps, as a GPU likes it."""
        spectrum = torch.fft.rfft(frames * self._padded_window())
        power = spectrum.real.square() + spectrum.imag.square()  # [B, frames, bins]
        return _scaled_log(basis @ power.transpose(1, 2)).unsqueeze(1)

    def _padded_window(self) -> Tensor:
        """Return the window [n_fft] with zeros on both sides."""
        missing = self.config.n_fft - self.config.win_length
        return functional.pad(self.window, (missing // 2, missing - missing // 2))

    def n_frames(self, n_samples: int) -> int:
        """Return how many frames `n_samples` samples give."""
        return 1 + (max(n_samples, self.config.n_fft // 2 + 2) - 1) // self.config.hop_length


def _scaled_log(mel: Tensor) -> Tensor:
    """Return the logarithm of mel powers, shifted and scaled as the published weights expect it; `mel` itself is used up."""
    return mel.add_(LOG_OFFSET).log_().add_(4.5).div_(5.0)
