"""Heads on the frames of the last feature map, and sequence models, as ONNX operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from dymn.export.nodes import Nodes
from dymn.export.traced import constant, linear
from dymn.models.heads import AttentionPoolingHead
from dymn.models.layers.sequence import TINY, FeedForward, GatedAttention, Heads, HybridMix, Recurrent, RMSNorm, Stack
from dymn.models.mobilenet import FrameHead
from dymn.runtime.framewise import resampled

ZRN = (1, 0, 2)  # PyTorch's gates of a GRU are reset, update, new; ONNX has update, reset, new
END = 2**62


def frame_scores(nodes: Nodes, features: str, head: FrameHead, n_frames: int) -> tuple[str, str]:
    """Add the head of a frame-wise network to a feature map [B, C, 1, n_frames].

    Returns:
        the names of logits of frames [B, length, classes] and of clips [B, classes], both of the trained head.
    """
    x = nodes.op("Squeeze", features, [2])
    if n_frames != head.length:
        x = nodes.op("MatMul", x, nodes.constant(resampled(np.eye(n_frames), head.length), exact=True))
    x = nodes.op("Transpose", x, perm=[0, 2, 1])
    x = SEQUENCE_MODELS[type(head.sequence)](nodes, x, head.sequence, head.length)
    if head.scores_frames:
        frames = linear(nodes, head.frame, x)
        return frames, str(nodes.op("ReduceMax", frames, axes=[1], keepdims=0))
    return linear(nodes, head.clip, x), linear(nodes, head.clip, nodes.op("ReduceMean", x, axes=[1], keepdims=0))


def pooled_scores(nodes: Nodes, features: str, head: AttentionPoolingHead) -> str:
    """Add attention pooling of a feature map [B, C, F, T]; return the name of logits [B, classes]."""
    x = nodes.op("Transpose", nodes.op("ReduceMean", features, axes=[2], keepdims=0), perm=[0, 2, 1])
    n_classes = head.classifier.out_features // (2 * head.n_heads)
    read = nodes.reshape(linear(nodes, head.classifier, x), 0, -1, 2 * head.n_heads, n_classes)
    attention, scores = nodes.op("Split", read, axis=2, n_outputs=2)  # [B, T, n_heads, classes]
    bounds = (nodes.constant(np.array(value), exact=True) for value in (head.EPSILON, 1 - head.EPSILON))
    share = nodes.op("Clip", nodes.op("Sigmoid", attention), *bounds)
    axis = nodes.constant(np.array([1]))
    weighted = nodes.op("ReduceSum", nodes.op("Mul", share, scores), axis, keepdims=0)
    pooled = nodes.op("Div", weighted, nodes.op("ReduceSum", share, axis, keepdims=0))
    return str(nodes.op("ReduceSum", nodes.op("Mul", pooled, constant(nodes, head.weights[:, None])), axis, keepdims=0))


def _stack(nodes: Nodes, x: str, model: Stack, length: int) -> str:
    if isinstance(model.input, nn.Linear):
        x = linear(nodes, model.input, x)
    for mix, module in zip(model.mixes, model.feeds, strict=True):
        feed = cast(FeedForward, module)
        x = nodes.op("Add", x, MIXES[type(mix)](nodes, x, mix, length))
        hidden = linear(nodes, feed.expand, _norm(nodes, x, feed.norm))
        x = nodes.op("Add", x, linear(nodes, feed.contract, _gelu(nodes, hidden)))
    return _norm(nodes, x, model.norm)


def _gated(nodes: Nodes, x: str, mix: GatedAttention, length: int) -> str:
    normed = _norm(nodes, x, mix.norm)
    query, key, value = _queries(nodes, normed, mix)
    frequencies = mix.frequencies.double().cpu().numpy()
    angles = np.repeat(np.arange(length)[:, None] * frequencies, 2, axis=1)  # [T, d]
    swap = np.kron(np.eye(len(frequencies)), [[0, 1], [-1, 0]])  # (a, b) becomes (-b, a)
    cosine, sine, swapping = (nodes.constant(values, exact=True) for values in (np.cos(angles), np.sin(angles), swap))

    def turned(part: str) -> str:
        swapped = nodes.op("Mul", nodes.op("MatMul", part, swapping), sine)
        return str(nodes.op("Add", nodes.op("Mul", part, cosine), swapped))

    mixed = _attention(nodes, turned(query), turned(key), value, mix.head_size)
    gates = nodes.op("Transpose", nodes.op("Sigmoid", linear(nodes, mix.gates, normed)), perm=[0, 2, 1])
    return _joined(nodes, nodes.op("Mul", mixed, nodes.op("Unsqueeze", gates, [3])), mix)


def _hybrid(nodes: Nodes, x: str, mix: HybridMix, length: int) -> str:
    normed = _norm(nodes, x, mix.norm)
    query, key, value = _queries(nodes, normed, mix)
    attention = _norm(nodes, _attention(nodes, query, key, value, mix.head_size), mix.attention_norm)
    ahead = _minimal_gru(nodes, linear(nodes, mix.ahead, normed), length)
    back = _minimal_gru(nodes, linear(nodes, mix.back, _flipped(nodes, normed)), length)
    both = linear(nodes, mix.recurrent, nodes.op("Concat", ahead, _flipped(nodes, back), axis=2))
    recurrent = _norm(nodes, _split(nodes, both, mix), mix.recurrent_norm)
    return _joined(nodes, nodes.op("Mul", nodes.op("Add", attention, recurrent), [0.5]), mix)


def _recurrent(nodes: Nodes, x: str, model: Recurrent, length: int) -> str:
    gru, size = model.gru, model.gru.hidden_size
    x = nodes.op("Transpose", x, perm=[1, 0, 2])  # [T, B, C]

    def gates(name: str, layer: int) -> npt.NDArray[Any]:  # [2, 3 size, ...]
        ways: list[Tensor] = [getattr(gru, f"{name}_l{layer}{way}") for way in ("", "_reverse")]
        parts = [np.split(way.detach().cpu().numpy(), 3) for way in ways]
        return np.stack([np.concatenate([part[gate] for gate in ZRN]) for part in parts])

    for layer in range(gru.num_layers):
        weights = [gates(f"weight_{kind}", layer) for kind in ("ih", "hh")]
        biases = np.concatenate([gates(f"bias_{kind}", layer) for kind in ("ih", "hh")], axis=1)
        y = nodes.op(
            "GRU", x, *weights, biases, direction="bidirectional", hidden_size=size,
            linear_before_reset=1,
        )  # fmt: skip
        # [T, 2, B, size] to [T, B, 2 size]
        x = nodes.reshape(nodes.op("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, 2 * size)
    return str(nodes.op("Transpose", x, perm=[1, 0, 2]))


def _minimal_gru(nodes: Nodes, x: str, length: int) -> str:
    """Add the states of a minimal GRU, for all frames in log2 T steps.

    After the step s, each state holds what the last 2 s frames contribute, and `kept` is what is left of one before.
    """
    candidate, gate = nodes.op("Split", x, axis=2, n_outputs=2)
    share = nodes.op("Sigmoid", gate)
    half, zero, one = (nodes.constant(np.array(value)) for value in (0.5, 0.0, 1.0))
    above = nodes.op("GreaterOrEqual", candidate, zero)
    values = nodes.op("Where", above, nodes.op("Add", candidate, half), nodes.op("Sigmoid", candidate))
    state, kept = nodes.op("Mul", share, values), nodes.op("Sub", one, share)
    for step in (2**i for i in range(math.ceil(math.log2(length)))):
        earlier, kept_earlier = (_later(nodes, part, step, length) for part in (state, kept))
        state = nodes.op("Add", state, nodes.op("Mul", kept, earlier))
        kept = nodes.op("Mul", kept, kept_earlier)
    return str(state)


def _later(nodes: Nodes, x: str, step: int, length: int) -> str:
    """Move [B, T, C] by `step` frames, zeros before it."""
    return str(nodes.op("Slice", nodes.op("Pad", x, [0, step, 0, 0, 0, 0]), [0], [length], [1]))


def _flipped(nodes: Nodes, x: str) -> str:
    return str(nodes.op("Slice", x, [-1], [-END], [1], [-1]))


def _queries(nodes: Nodes, normed: str, mix: Heads) -> list[str]:
    """Add queries, keys and values, each [B, heads, T, d]."""
    return [_split(nodes, part, mix) for part in nodes.op("Split", linear(nodes, mix.qkv, normed), axis=2, n_outputs=3)]


def _split(nodes: Nodes, x: str, mix: Heads) -> str:
    return str(nodes.op("Transpose", nodes.reshape(x, 0, 0, mix.n_heads, mix.head_size), perm=[0, 2, 1, 3]))


def _joined(nodes: Nodes, x: str, mix: Heads) -> str:
    joined = nodes.reshape(nodes.op("Transpose", x, perm=[0, 2, 1, 3]), 0, 0, mix.n_heads * mix.head_size)
    return linear(nodes, mix.out, joined)


def _attention(nodes: Nodes, query: str, key: str, value: str, size: int) -> str:
    products = nodes.op("MatMul", query, nodes.op("Transpose", key, perm=[0, 1, 3, 2]))
    scaled = nodes.op("Mul", products, nodes.constant(np.array(1 / math.sqrt(size)), exact=True))
    return str(nodes.op("MatMul", nodes.op("Softmax", scaled, axis=-1), value))


def _norm(nodes: Nodes, x: str, norm: RMSNorm) -> str:
    length = nodes.op("ReduceL2", x, axes=[-1], keepdims=1)
    unit = nodes.op("Div", x, nodes.op("Max", length, nodes.constant(np.array(TINY), exact=True)))
    return str(nodes.op("Mul", unit, constant(nodes, norm.gamma * math.sqrt(len(norm.gamma)))))


def _gelu(nodes: Nodes, x: str) -> str:
    half, one, root = (nodes.constant(np.array(value), exact=True) for value in (0.5, 1.0, math.sqrt(0.5)))
    share = nodes.op("Add", nodes.op("Erf", nodes.op("Mul", x, root)), one)
    return str(nodes.op("Mul", nodes.op("Mul", x, half), share))


SEQUENCE_MODELS: dict[type[nn.Module], Callable[..., str]] = {
    nn.Identity: lambda nodes, x, model, length: x,
    Stack: _stack,
    Recurrent: _recurrent,
}
MIXES: dict[type[nn.Module], Callable[..., str]] = {GatedAttention: _gated, HybridMix: _hybrid}
