"""The log-mel front end (Sec. IV-A.1) that the published weights expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.audio import mel
from dymn.audio.mel import (
    LOG_SCALE,
    LOG_SHIFT,
    PREEMPHASIS,
    constants,
    filter_ranges,
    is_compilable,
    log_offset,
    lowest,
)
from dymn.config import FrontEndConfig, from_dict, to_dict
from dymn.errors import AudioError, ConfigError
from dymn.native.log_mel import Spectrogram
from dymn.native.ops import call, is_compiled

if TYPE_CHECKING:
    from typing_extensions import Self


ZERO = LOG_SHIFT * LOG_SCALE  # what a logarithm of 0 is in a log-mel spectrogram


def mel_basis(config: FrontEndConfig, f_min: float, f_max: float) -> Tensor:
    """Return triangular mel filters [n_mels, n_fft / 2 + 1]; see `dymn.audio.mel.mel_basis`."""
    return torch.from_numpy(mel.mel_basis(config, f_min, f_max))


class LogMel(nn.Module):
    """Converts waveforms [B, N] at `config.sample_rate` to log-mel spectrograms [B, 1, n_mels, frames].

    N samples give 1 + (N - 1) // hop_length frames. Spectrograms are always computed and returned in float32: inside
    autocast, for 16-bit waveforms, and after `half()` or `bfloat16()`, which do not change the window and the filters.
    """

    window: Tensor
    basis: Tensor

    def __init__(self, config: FrontEndConfig | None = None, **settings: Any) -> None:
        """Prepare the transform.

        Args:
            config: the front end of the published models if None.
            settings: fields of `FrontEndConfig` that replace those of `config`.

        Raises:
            ConfigError: if a setting is unknown or not allowed.

        Example:
            >>> LogMel(n_mels=64, hop_length=160)(torch.zeros(1, 32_000)).shape
            torch.Size([1, 1, 64, 200])
        """
        super().__init__()
        self.config = from_dict(FrontEndConfig, {**to_dict(config or FrontEndConfig()), **settings})
        window, twiddles, basis, ranges = map(torch.from_numpy, constants(self.config))
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        # For the compiled code, and so on the CPU, where they stay.
        self._twiddles = twiddles if is_compilable(self.config) else None
        self._ranges = ranges
        self._offset, self._lowest = log_offset(self.config), lowest(self.config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take a device from a conversion, but no type."""

        def converted(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(converted, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def jittered_basis(self, generator: torch.Generator) -> Tensor:
        """Draw f_min and f_max as in training, and return their mel basis [n_mels, n_fft / 2 + 1].

        Raises:
            ConfigError: if the drawn f_max is not above the drawn f_min, which wide ranges allow.
        """
        c = self.config
        up, down = (int(torch.randint(n, (), generator=generator)) for n in (c.f_min_range, c.f_max_range))
        f_max = min(c.f_max + c.f_max_range // 2 - down, c.sample_rate / 2)
        if c.f_min + up >= f_max:
            raise ConfigError(
                f"The jitter of f_min and f_max drew {c.f_min + up} and {f_max} Hz. Set smaller f_min_range and "
                "f_max_range."
            )
        return mel_basis(c, c.f_min + up, f_max).to(self.basis.device)

    def forward(self, waveform: Tensor, basis: Tensor | None = None) -> Tensor:
        """Return [B, 1, n_mels, frames], computed with the mel basis `basis` if it is given.

        A waveform that is too short for the transform's reflection at the edges is extended with zeros first.

        Raises:
            AudioError: if the waveform is not [B, N] with N of at least 1.
        """
        if waveform.ndim != 2 or waveform.shape[1] < 1:
            raise AudioError(
                f"The waveform has shape {list(waveform.shape)}; it must be [B, N] with at least one sample."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            return self._log_mel(self.frames(waveform.float()), basis)

    def frames(self, waveform: Tensor) -> Tensor:
        """Return the pre-emphasised samples of each frame, [B, N] to [B, frames, n_fft].

        The result is a view in which overlapping frames share samples. Frame t is centred on sample t * hop_length; the
        signal is reflected at both ends.
        """
        c = self.config
        missing = c.n_fft // 2 + 2 - waveform.shape[1]
        if missing > 0:
            waveform = functional.pad(waveform, (0, missing))
        emphasised = torch.sub(waveform[:, 1:], waveform[:, :-1], alpha=PREEMPHASIS)
        return functional.pad(emphasised, (c.n_fft // 2, c.n_fft // 2), mode="reflect").unfold(1, c.n_fft, c.hop_length)

    def columns(self, frames: Tensor) -> Tensor:
        """Return the log-mel spectrogram [n_mels, n] of frames [n, n_fft] as returned by `frames`."""
        return self._log_mel(frames.unsqueeze(0), None)[0, 0]

    def _log_mel(self, frames: Tensor, basis: Tensor | None) -> Tensor:
        """Return [B, 1, n_mels, frames] of [B, frames, n_fft]."""
        filters = self.basis if basis is None else basis
        needs_gradient = torch.is_grad_enabled() and frames.requires_grad
        if self._twiddles is not None and not needs_gradient and is_compiled(frames, self.window, filters):
            ranges = self._ranges if basis is None else torch.from_numpy(filter_ranges(basis.numpy()))
            return self._floored(self._compiled(frames, self._twiddles, filters.contiguous(), ranges))
        spectrum = torch.fft.rfft(frames * self.window)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, frames, bins]
        bands: Tensor = filters @ power.transpose(1, 2)
        return self._floored(bands.add_(self._offset).log_().add_(LOG_SHIFT).mul_(LOG_SCALE).unsqueeze(1))

    def _floored(self, values: Tensor) -> Tensor:
        return values if self._lowest is None else values.clamp_(min=self._lowest)

    def _compiled(self, frames: Tensor, twiddles: Tensor, basis: Tensor, ranges: Tensor) -> Tensor:
        frames = frames if frames.stride(2) == 1 else frames.contiguous()
        n_clips, n_frames, n_fft = frames.shape
        out = frames.new_empty(n_clips, 1, len(basis), n_frames)
        values: dict[str, Tensor | float | None] = {
            "frames": frames,
            "window": self.window,
            "twiddles": twiddles,
            "basis": basis,
            "ranges": ranges,
            "out": out,
            "clips": n_clips,
            "clip_stride": frames.stride(0),
            "n_frames": n_frames,
            "frame_stride": frames.stride(1),
            "n_fft": n_fft,
            "n_mels": len(basis),
            "offset": self._offset,
            "shift": LOG_SHIFT,
            "scale": LOG_SCALE,
        }
        call("dymn_log_mel", Spectrogram, values, memory="dymn_log_mel_memory")
        return out

    def n_frames(self, n_samples: int) -> int:
        """Return the number of frames of `n_samples` samples."""
        return 1 + (max(n_samples, self.config.n_fft // 2 + 2) - 1) // self.config.hop_length
