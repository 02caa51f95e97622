"""DyMN in textbook form, the baseline of the speed benchmarks: a literal implementation of its equations.

A dynamic convolution is one grouped convolution with the clips of the batch as groups, also for pointwise kernels.
Batch norm is a separate layer. Dy-ReLU stacks its maps along a fifth dimension and takes the maximum over it. Each
coefficient has its own linear layer. The mel filters are computed at each call. Weights are those of a
`dymn.models.mobilenet.MobileNet`, see `textbook_of`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.audio.mel import PREEMPHASIS
from dymn.config import FrontEndConfig
from dymn.errors import ConfigError
from dymn.models.frontend import mel_basis
from dymn.models.layers import DynamicConv2d, DynamicReLU
from dymn.models.layers.attention import CoordinateAttention
from dymn.models.layers.context import Context, ContextGenerator
from dymn.models.mobilenet import MobileNet, Output


class TextbookConv(nn.Module):
    """Dynamic convolution: mix the kernels, fold the batch into the channels, convolve in groups."""

    def __init__(self, source: DynamicConv2d) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Convolve [B, C_in, F, T]."""
        source = self.source
        n_clips, c_in, n_bands, n_frames = x.shape
        n_kernels, c_out, group_size, k, _ = source.weight.shape
        attention = torch.softmax(source.coefficients(context.vector) / source.temperature, dim=1)
        kernel = (attention @ source.weight.view(n_kernels, -1)).view(n_clips * c_out, group_size, k, k)
        merged = x.reshape(1, n_clips * c_in, n_bands, n_frames)
        out = functional.conv2d(merged, kernel, stride=source.stride, padding=k // 2, groups=n_clips * source.groups)
        return out.view(n_clips, c_out, out.shape[2], out.shape[3])


class TextbookReLU(nn.Module):
    """Dynamic ReLU: all maps along a fifth dimension, then the maximum over it."""

    def __init__(self, source: DynamicReLU) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply eq. 3 to [B, C, F, T]."""
        slopes, intercepts = (values[:, :, None, None, :] for values in self.source.maps(context))  # [B, C, 1, 1, M]
        return (x.unsqueeze(-1) * slopes + intercepts).max(dim=-1).values


class TextbookBlock(nn.Module):
    """An inverted residual block of the above; what it shares with the block it stands for, it takes from there."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source
        for position in ("expand", "depthwise", "project"):
            stage = getattr(source, position)
            if hasattr(stage, "conv"):
                conv = TextbookConv(stage.conv) if isinstance(stage.conv, DynamicConv2d) else stage.conv
                activation = (
                    TextbookReLU(stage.activation) if isinstance(stage.activation, DynamicReLU) else stage.activation
                )
                setattr(self, position, nn.ModuleList([conv, stage.norm, activation]))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F', T']."""
        source = self.source
        context = source.context(x)
        out = self._stage("expand", x, context) if hasattr(self, "expand") else x
        out = source.attention(self._stage("depthwise", out, context), context)
        out = self._stage("project", out, context)
        return x + out if source.has_residual else out

    def _stage(self, position: str, x: Tensor, context: Context) -> Tensor:
        conv, norm, activation = getattr(self, position)
        return activation(norm(conv(x, context)), context)


class Textbook(nn.Module):
    """The network: log-mel spectrograms [B, 1, F, T] to logits and embedding."""

    def __init__(self, source: MobileNet) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Sequential(*source.stem), nn.Sequential(*source.last), source.head
        self.blocks = nn.Sequential(*(TextbookBlock(block) for block in source.blocks))

    def forward(self, log_mel: Tensor) -> Output:
        """Return logits and embedding of [B, 1, F, T]."""
        features = self.last(self.blocks(self.stem(log_mel)))
        embedding = features.mean(dim=(2, 3))
        return Output(self.head(features, embedding), embedding)


def textbook_of(model: MobileNet) -> Textbook:
    """Return the textbook form of a DyMN, which shares its parameters.

    Raises:
        ConfigError: if the network has parts other than those of DyMN as published.
    """
    for block in model.blocks:
        if not isinstance(block.attention, CoordinateAttention) or type(block.context) is not ContextGenerator:
            raise ConfigError(
                "The textbook form is that of DyMN as published: Coordinate Attention and a shared context in every "
                "block."
            )
    return Textbook(model)


class TextbookLogMel(nn.Module):
    """The front end with a mel bank made at each call and a spectrum of real numbers in pairs."""

    def __init__(self, config: FrontEndConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrontEndConfig()
        self.register_buffer("window", torch.hann_window(self.config.win_length, periodic=False), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return log-mel spectrograms [B, 1, F, T] of waveforms [B, N]."""
        c = self.config
        emphasis = torch.tensor([[[-PREEMPHASIS, 1.0]]], device=waveform.device)
        emphasised = functional.conv1d(waveform.unsqueeze(1), emphasis).squeeze(1)
        spectrum = torch.stft(
            emphasised, c.n_fft, c.hop_length, c.win_length, self.window, center=True, return_complex=True
        )
        power = (torch.view_as_real(spectrum) ** 2).sum(dim=-1)
        basis = mel_basis(c, c.f_min, c.f_max).to(waveform.device)
        return ((torch.log(basis @ power + c.log_offset) + 4.5) / 5.0).unsqueeze(1)
