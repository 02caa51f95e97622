"""Sequence models on the frames of a frame-wise MobileNet (EfficientSED, arXiv 2503.11373, Sec. III).

Each maps [B, T, C] to [B, T, D]. `dymn.architectures.SEQUENCES` contains their names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.architectures import SEQUENCES
from dymn.config import ModelConfig, SequenceConfig

LONGEST_PERIOD = 10_000  # of the rotary positions
TINY = 1e-12


class RMSNorm(nn.Module):
    """Vectors of length sqrt(size), each value with a scale of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of [..., size]."""
        return functional.normalize(x, dim=-1, eps=TINY) * math.sqrt(len(self.gamma)) * self.gamma


class FeedForward(nn.Module):
    """Norm, a wider layer with GELU, and back."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.size)
        self.expand = nn.Linear(config.size, config.expansion * config.size)
        self.contract = nn.Linear(config.expansion * config.size, config.size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, size] to [B, T, size]."""
        return self.contract(functional.gelu(self.expand(self.norm(x))))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Norm, and queries, keys and values of several heads; what attention mixes have in common."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.n_heads, self.head_size = config.n_heads, config.size // config.n_heads
        self.norm = RMSNorm(config.size)
        self.qkv = nn.Linear(config.size, 3 * config.size, bias=False)
        self.out = nn.Linear(config.size, config.size, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """Cut [B, T, n_heads * d] into heads [B, n_heads, T, d]."""
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)

    def joined(self, x: Tensor) -> Tensor:
        """Join heads [B, n_heads, T, d] and mix them: [B, T, size]."""
        return self.out(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class GatedAttention(Heads):
    """Attention with rotary positions; a gate of each head decides how much of it counts."""

    frequencies: Tensor

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self.gates = nn.Linear(config.size, config.n_heads)
        exponents = torch.arange(0, self.head_size, 2) / self.head_size
        self.register_buffer("frequencies", LONGEST_PERIOD**-exponents)  # [d / 2]

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, size] to [B, T, size]."""
        normed = self.norm(x)
        query, key, value = (self.split(part) for part in self.qkv(normed).chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(self.turned(query), self.turned(key), value)
        return self.joined(mixed * self.gates(normed).sigmoid().transpose(1, 2).unsqueeze(3))

    def turned(self, x: Tensor) -> Tensor:
        """Turn neighbouring values of [B, n_heads, T, d] by an angle that grows with time."""
        places = torch.arange(x.shape[2], device=x.device, dtype=self.frequencies.dtype)
        angles = places[:, None] * self.frequencies  # [T, d / 2]
        first, second = x[..., 0::2], x[..., 1::2]
        cosine, sine = angles.cos(), angles.sin()
        return torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=4).flatten(3)


class HybridMix(Heads):
    """The mean of attention without positions and of a minimal GRU in both directions, head by head."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self.ahead = nn.Linear(config.size, 2 * config.size, bias=False)
        self.back = nn.Linear(config.size, 2 * config.size, bias=False)
        self.recurrent = nn.Linear(2 * config.size, config.size, bias=False)
        self.attention_norm, self.recurrent_norm = RMSNorm(self.head_size), RMSNorm(self.head_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, size] to [B, T, size]."""
        normed = self.norm(x)
        query, key, value = (self.split(part) for part in self.qkv(normed).chunk(3, dim=2))
        attention = functional.scaled_dot_product_attention(query, key, value)
        both = [minimal_gru(self.ahead(normed)), minimal_gru(self.back(normed).flip(1)).flip(1)]
        recurrent = self.split(self.recurrent(torch.cat(both, dim=2)))
        return self.joined(0.5 * (self.attention_norm(attention) + self.recurrent_norm(recurrent)))


def minimal_gru(x: Tensor) -> Tensor:
    """Return the states [B, T, n] of a minimal GRU whose candidates and gates [B, T, 2 n] do not depend on the past.

    h_t = (1 - z_t) h_(t-1) + z_t c_t, for all t at once: with the logarithms k_t of the products of (1 - z), it is
    h_t = exp(k_t) times the sum of exp(log(z_s c_s) - k_s) up to t.
    """
    candidate, gate = x.chunk(2, dim=2)
    kept = -functional.softplus(gate).cumsum(dim=1)
    positive = (functional.relu(candidate) + 0.5).log()
    added = torch.where(candidate >= 0, positive, -functional.softplus(-candidate)) - functional.softplus(-gate)
    return (kept + (added - kept).logcumsumexp(dim=1)).exp()


class Stack(nn.Module):
    """A linear layer to `size` values, layers of mix and feed-forward with skip connections, and a norm."""

    def __init__(self, c_in: int, config: SequenceConfig) -> None:
        super().__init__()
        self.input = nn.Linear(c_in, config.size) if config.has_input(c_in) else nn.Identity()
        mix = {"tf": GatedAttention, "hybrid": HybridMix}[config.kind]
        self.mixes = nn.ModuleList(mix(config) for _ in range(config.n_layers))
        self.feeds = nn.ModuleList(FeedForward(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, C] to [B, T, size]."""
        x = self.input(x)
        for mix, feed in zip(self.mixes, self.feeds, strict=True):
            x = x + mix(x)
            x = x + feed(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A GRU in both directions on the frames as they are."""

    def __init__(self, c_in: int, config: SequenceConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(c_in, config.size, config.n_layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, C] to [B, T, 2 size]: forward, then backward."""
        return self.gru(x)[0]  # type: ignore[no-any-return]


def sequence_model(config: ModelConfig) -> nn.Module:
    """Build the sequence model of a frame-wise network."""
    assert config.sequence is not None
    return SEQUENCES[config.sequence.kind](config.c_last, config.sequence)  # type: ignore[no-any-return]


def resampled(x: Tensor, length: int) -> Tensor:
    """Return a sequence [B, C, T] of any length as one of `length` frames: averaged, or interpolated."""
    if x.shape[2] == length:
        return x
    if x.shape[2] > length:
        return functional.adaptive_avg_pool1d(x, length)
    return functional.interpolate(x, length, mode="linear", align_corners=False)


SEQUENCES.update(none=lambda c_in, config: nn.Identity(), tf=Stack, gru=Recurrent, hybrid=Stack)
