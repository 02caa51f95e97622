"""The head of a frame-wise network in NumPy: sequence model, scores of frames and of clips.

The numbers are those of `dymn.models.heads.FrameHead` and `dymn.models.layers.sequence` (EfficientSED, arXiv
2503.11373, Sec. III) to round-off, from the same weights. Linear layers are compiled code; all else is small.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import numpy as np

from dymn.config import ModelConfig, SequenceConfig
from dymn.native.linear import CompiledLinear
from dymn.runtime.fold import HEAD, Folded
from dymn.runtime.scores import probabilities
from dymn.system.arrays import Array, Floats

SequenceModel = Callable[[Floats, int], Floats]
"""Frames [B, T, C] and a number of threads to frames [B, T, D]."""
TINY = 1e-12
TAIL_SCALE = 0.25
TAIL = (0.098673021, 0.113714607, 0.018747664, 0.2933368, -0.280188772, 0.348998126, -0.093281455)
"""The normal distribution below -a is exp(-a^2 / 2) times this polynomial of t = 1 / (1 + a / 4), from the power 1 on:
a least-squares fit with an error of 2.5e-9 in GELU."""


class ArrayFrameHead:
    """From the last feature map of a frame-wise network to logits."""

    def __init__(self, folded: Folded, library: ctypes.CDLL) -> None:
        """Take the head's arrays of a folded network, whose linear layers `library` computes."""
        config = folded.config
        assert config.sequence is not None
        arrays = {
            name.removeprefix(HEAD): values.astype(np.float32, copy=False)
            for name, values in folded.arrays.items()
            if name.startswith(HEAD)
        }
        parts = ArrayParts(library, arrays)
        self.length, self.scores_frames = config.sequence.length, config.sequence.scores == "frames"
        self._sequence = SEQUENCE_MODELS[config.sequence.kind](config, parts.below("sequence."))
        self._frame, self._clip = parts.layer("frame"), parts.layer("clip")

    def scores(self, maps: Floats, n_threads: int) -> tuple[Floats, Floats]:
        """Return the output of the trained head for a feature map [B, C, T].

        Returns:
            logits of frames [B, length, classes] and of clips [B, classes].
        """
        vectors = self._vectors(maps, n_threads)
        if self.scores_frames:
            frames = self._frame(vectors, n_threads)
            return frames, frames.max(axis=1)
        return self._clip(vectors, n_threads), self._clip(vectors.mean(axis=1))

    def output(self, maps: Floats, n_threads: int) -> tuple[Floats, Floats]:
        """Return logits of frames and of clips as `scores` does, but each of its own head."""
        vectors = self._vectors(maps, n_threads)
        return self._frame(vectors, n_threads), self._clip(vectors.mean(axis=1))

    def _vectors(self, maps: Floats, n_threads: int) -> Floats:
        """Return a sequence [B, length, D] of a feature map [B, C, T]."""
        return self._sequence(resampled(maps, self.length).swapaxes(1, 2), n_threads)


class ArrayParts:
    """Arrays by name, and what is made of them."""

    def __init__(self, library: ctypes.CDLL, arrays: dict[str, Floats]) -> None:
        self.library, self.arrays = library, arrays

    def below(self, prefix: str) -> ArrayParts:
        """Return those whose name begins so, without that."""
        return ArrayParts(
            self.library,
            {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)},
        )

    def layer(self, name: str, weight: str = ".weight", bias: str = ".bias") -> CompiledLinear:
        """Return a linear layer, without bias where there is none."""
        return CompiledLinear(self.library, self.arrays[f"{name}{weight}"], self.arrays.get(f"{name}{bias}"))


def resampled(x: Array, length: int) -> Array:
    """Return a sequence [..., T] of any length as one of `length` frames: averaged, or interpolated."""
    n = x.shape[-1]
    if n == length:
        return x
    if n > length:
        spans = [slice(i * n // length, -(-(i + 1) * n // length)) for i in range(length)]
        return np.stack([x[..., span].mean(axis=-1) for span in spans], axis=-1)
    places = np.maximum((np.arange(length) + 0.5) * n / length - 0.5, 0)
    low = places.astype(int)
    share = (places - low).astype(x.dtype)
    averaged: Array = x[..., low] * (1 - share) + x[..., np.minimum(low + 1, n - 1)] * share
    return averaged


class ArrayRMSNorm:
    """Vectors of length sqrt(size), each value with a scale of its own."""

    def __init__(self, parts: ArrayParts) -> None:
        gamma = parts.arrays["gamma"]
        self._scale = gamma * np.float32(math.sqrt(len(gamma)))

    def __call__(self, x: Floats) -> Floats:
        """Normalise the last axis of [..., size]."""
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return np.asarray(x / np.maximum(length, np.float32(TINY)) * self._scale, np.float32)


class ArrayFeedForward:
    """Norm, a wider layer with GELU, and back."""

    def __init__(self, parts: ArrayParts) -> None:
        self._norm = ArrayRMSNorm(parts.below("norm."))
        self._expand, self._contract = parts.layer("expand"), parts.layer("contract")

    def __call__(self, x: Floats, n_threads: int) -> Floats:
        """Map [B, T, size] to [B, T, size]."""
        return self._contract(gelu(self._expand(self._norm(x), n_threads)), n_threads)


class ArrayHeads:
    """Norm, and queries, keys and values of several heads; what attention mixes have in common."""

    def __init__(self, config: SequenceConfig, parts: ArrayParts) -> None:
        self.n_heads = config.n_heads
        self.norm = ArrayRMSNorm(parts.below("norm."))
        self.qkv, self.out = parts.layer("qkv"), parts.layer("out")

    def queries(self, normed: Floats, n_threads: int) -> list[Floats]:
        """Return queries, keys and values, each [B, n_heads, T, d]."""
        return [self.split(part) for part in np.split(self.qkv(normed, n_threads), 3, axis=2)]

    def split(self, x: Floats) -> Floats:
        """Cut [B, T, n_heads * d] into heads [B, n_heads, T, d]."""
        return x.reshape(*x.shape[:2], self.n_heads, -1).swapaxes(1, 2)

    def joined(self, x: Floats, n_threads: int) -> Floats:
        """Join heads [B, n_heads, T, d] and mix them: [B, T, size]."""
        merged = x.swapaxes(1, 2)
        return self.out(merged.reshape(*merged.shape[:2], -1), n_threads)


class ArrayGatedAttention(ArrayHeads):
    """Attention with rotary positions; a gate of each head decides how much of it counts."""

    def __init__(self, config: SequenceConfig, parts: ArrayParts) -> None:
        super().__init__(config, parts)
        self._gates = parts.layer("gates")
        angles = np.arange(config.length, dtype=np.float32)[:, None] * parts.arrays["frequencies"]  # [T, d / 2]
        self._cosine, self._sine = np.cos(angles), np.sin(angles)

    def __call__(self, x: Floats, n_threads: int) -> Floats:
        """Map [B, T, size] to [B, T, size]."""
        normed = self.norm(x)
        query, key, value = self.queries(normed, n_threads)
        gates = sigmoid(self._gates(normed)).swapaxes(1, 2)[..., None]  # [B, n_heads, T, 1]
        return self.joined(attention(self._turned(query), self._turned(key), value) * gates, n_threads)

    def _turned(self, x: Floats) -> Floats:
        """Turn neighbouring values of [B, n_heads, T, d] by an angle that grows with time."""
        first, second = x[..., 0::2], x[..., 1::2]
        turned = np.empty(x.shape, np.float32)
        turned[..., 0::2] = first * self._cosine - second * self._sine
        turned[..., 1::2] = second * self._cosine + first * self._sine
        return turned


class ArrayHybridMix(ArrayHeads):
    """The mean of attention without positions and of a minimal GRU in both directions, head by head."""

    def __init__(self, config: SequenceConfig, parts: ArrayParts) -> None:
        super().__init__(config, parts)
        self._ahead, self._back, self._recurrent = map(parts.layer, ("ahead", "back", "recurrent"))
        self._norms = [ArrayRMSNorm(parts.below(f"{name}_norm.")) for name in ("attention", "recurrent")]

    def __call__(self, x: Floats, n_threads: int) -> Floats:
        """Map [B, T, size] to [B, T, size]."""
        normed = self.norm(x)
        attended = attention(*self.queries(normed, n_threads))
        ahead = minimal_gru(self._ahead(normed, n_threads))
        back = minimal_gru(self._back(normed, n_threads)[:, ::-1])[:, ::-1]
        recurrent = self.split(self._recurrent(np.concatenate([ahead, back], axis=2), n_threads))
        both = [norm(part) for norm, part in zip(self._norms, (attended, recurrent), strict=True)]
        return self.joined(np.float32(0.5) * (both[0] + both[1]), n_threads)


class ArrayStack:
    """A linear layer to `size` values, layers of mix and feed-forward with skip connections, and a norm."""

    def __init__(self, config: ModelConfig, parts: ArrayParts) -> None:
        assert config.sequence is not None
        sequence = config.sequence
        self._input = parts.layer("input") if sequence.has_input(config.c_last) else None
        layers = range(sequence.n_layers)
        self._mixes = [MIXES[sequence.kind](sequence, parts.below(f"mixes.{i}.")) for i in layers]
        self._feeds = [ArrayFeedForward(parts.below(f"feeds.{i}.")) for i in layers]
        self._norm = ArrayRMSNorm(parts.below("norm."))

    def __call__(self, x: Floats, n_threads: int) -> Floats:
        """Map [B, T, C] to [B, T, size]."""
        x = x if self._input is None else self._input(x, n_threads)
        for mix, feed in zip(self._mixes, self._feeds, strict=True):
            x = x + mix(x, n_threads)
            x = x + feed(x, n_threads)
        return self._norm(x)


class ArrayRecurrent:
    """A GRU in both directions on the frames as they are."""

    def __init__(self, config: ModelConfig, parts: ArrayParts) -> None:
        assert config.sequence is not None
        self._layers = [
            (Direction(parts, f"l{i}"), Direction(parts, f"l{i}_reverse")) for i in range(config.sequence.n_layers)
        ]

    def __call__(self, x: Floats, n_threads: int) -> Floats:
        """Map [B, T, C] to [B, T, 2 size]: forward, then backward."""
        for ahead, back in self._layers:
            x = np.concatenate([ahead(x, n_threads), back(x[:, ::-1], n_threads)[:, ::-1]], axis=2)
        return x


class Direction:
    """A layer of a GRU in one direction; its gates are reset, update and new, as in PyTorch."""

    def __init__(self, parts: ArrayParts, name: str) -> None:
        self._input, self._state = (
            parts.layer("gru.", f"weight_{of}_{name}", f"bias_{of}_{name}") for of in ("ih", "hh")
        )

    def __call__(self, x: Floats, n_threads: int) -> Floats:
        """Map [B, T, C] to the states [B, T, size] after each frame."""
        size = self._state.n_in
        given = self._input(x, n_threads)  # [B, T, 3 size]
        states = np.empty((*x.shape[:2], size), np.float32)
        state = np.zeros((len(x), size), np.float32)
        for t in range(x.shape[1]):
            kept = self._state(state)
            gates = sigmoid(given[:, t, : 2 * size] + kept[:, : 2 * size])
            new = np.tanh(given[:, t, 2 * size :] + gates[:, :size] * kept[:, 2 * size :])
            state = new + gates[:, size:] * (state - new)
            states[:, t] = state
        return states


def minimal_gru(x: Floats) -> Floats:
    """Return the states [B, T, n] of a minimal GRU whose candidates and gates [B, T, 2 n] do not depend on the past."""
    candidate, gate = np.split(x, 2, axis=2)
    share = sigmoid(gate)
    kept = 1 - share
    states: Floats = share * np.where(candidate >= 0, candidate + np.float32(0.5), sigmoid(candidate))
    for t in range(1, x.shape[1]):
        states[:, t] += kept[:, t] * states[:, t - 1]
    return states


def attention(query: Floats, key: Floats, value: Floats) -> Floats:
    """Return values [B, n_heads, T, d], averaged by how well their keys fit the queries."""
    scaled: Floats = query / np.float32(math.sqrt(query.shape[-1]))
    return probabilities(scaled @ key.swapaxes(2, 3), exclusive=True) @ value


def gelu(x: Floats) -> Floats:
    """Return x times the normal distribution below x, with few arrays, for new ones cost more than the arithmetic."""
    size = np.abs(x)
    t = size * np.float32(TAIL_SCALE)
    t += 1
    np.reciprocal(t, out=t)
    share = t * np.float32(TAIL[-1])
    for factor in reversed(TAIL[:-1]):
        share += np.float32(factor)
        share *= t
    share *= size
    size *= size
    size *= np.float32(-0.5)
    share *= np.exp(size, out=size)
    return np.asarray(np.maximum(x, 0) - share, np.float32)


def sigmoid(x: Floats) -> Floats:
    """Return the logistic function."""
    return probabilities(x, exclusive=False)


MIXES: dict[str, Callable[[SequenceConfig, ArrayParts], SequenceModel]] = {
    "tf": ArrayGatedAttention,
    "hybrid": ArrayHybridMix,
}
SEQUENCE_MODELS: dict[str, Callable[[ModelConfig, ArrayParts], SequenceModel]] = {
    "none": lambda config, parts: lambda x, n_threads: x,
    "tf": ArrayStack,
    "gru": ArrayRecurrent,
    "hybrid": ArrayStack,
}
