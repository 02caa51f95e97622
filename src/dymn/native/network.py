"""A network in compiled code (`network.c`), from packed arrays and numbers, without PyTorch.

`dymn.runtime.compiled.pack` makes them of the folded form of a network.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from dymn.config import BlockConfig, ModelConfig, check
from dymn.native import libraries, within_bounds
from dymn.native.linear import ACTIVATIONS, CompiledLinear, whole_lines, with_slack
from dymn.system.arrays import Floats

PANEL = 8
MOST_KERNELS = 64
SEQUENCES = ("none", "tf", "gru", "hybrid")
"""The sequence models that follow frame-wise networks, which `dymn.runtime.framewise` computes."""
MOST_PLACES = 2**29  # of a spectrogram: twelve hours of 128 bands; the compiled code counts them in 32 bits
_POINTERS = ("context", "coefficient", "expand", "depthwise", "project", "frequency", "time", "squeeze", "excite")
_SIZES = ("c_in", "c_exp", "c_out", "kernel_size", "stride", "time_stride", "activation", "context_size")
_COUNTS = ("n_expand", "n_depthwise", "n_project")
_FLAGS = ("dynamic_relu", "coordinate_attention", "squeeze_size", "has_residual")


class _Block(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in (*_SIZES, *_COUNTS, *_FLAGS)] + [
        (f"{name}_{kind}", ctypes.c_void_p) for name in _POINTERS for kind in ("weight", "bias")
    ]


class _Network(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("n_blocks", "c_stem", "c_last", "reserved")),
        *((f"{name}_{kind}", ctypes.c_void_p) for name in ("stem", "last") for kind in ("weight", "bias")),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class PackedNetwork(NamedTuple):
    """A network as the compiled code takes it: norms folded into kernels, kernels in panels of eight channels."""

    config: ModelConfig
    arrays: Mapping[str, Floats]  # as `sizes` names them, any shape


def is_known(config: ModelConfig) -> bool:
    """Return whether the compiled code has all parts of a network: it has those of all published ones."""
    return (
        config.head in ("mlp", "fully_convolutional", "frames")
        and (config.sequence is None or config.sequence.kind in SEQUENCES)
        and config.c_last % PANEL == 0
        and config.in_chans == 1
        and all(_is_known(block) for block in config.blocks)
    )


def _is_known(block: BlockConfig) -> bool:
    has_context = block.is_dynamic or block.attention == "ca"
    return (
        block.c_exp % PANEL == block.c_out % PANEL == 0
        and block.attention in (None, "ca", "se")
        and (
            not has_context
            or (block.context == "shared" and block.context_size > 0 and block.context_size % PANEL == 0)
        )
        and (block.n_maps == 2 or not block.dynamic_relus)
        and set(block.dynamic_relus) <= {"depthwise"}
        and block.n_kernels <= MOST_KERNELS
        and block.span in (3, 5)
        and {*block.strides} <= {1, 2}
        and block.activation in ACTIVATIONS
    )


def numbers(block: BlockConfig, squeeze_size: int) -> dict[str, int]:
    """Return the numbers that describe a block to the compiled code."""

    def n_kernels(position: str) -> int:
        return block.n_kernels if position in block.dynamic_convs else 1

    has_context = block.is_dynamic or block.attention == "ca"
    return {
        "c_in": block.c_in,
        "c_exp": block.c_exp,
        "c_out": block.c_out,
        "kernel_size": block.span,
        "stride": block.strides[0],
        "time_stride": block.strides[1],
        "activation": ACTIVATIONS[block.activation],
        "context_size": block.context_size if has_context else 0,
        "n_expand": n_kernels("expand") if block.c_exp != block.c_in else 0,
        "n_depthwise": n_kernels("depthwise"),
        "n_project": n_kernels("project"),
        "dynamic_relu": int("depthwise" in block.dynamic_relus),
        "coordinate_attention": int(block.attention == "ca"),
        "squeeze_size": squeeze_size if block.attention == "se" else 0,
        "has_residual": int(block.has_residual),
    }


def head_layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the linear layers from embedding to logits, how many inputs and outputs each has.

    A fully convolutional head is one: the mean of linear scores over all places is the score of the mean. The head of a
    frame-wise network is none: see `dymn.runtime.framewise`.
    """
    if config.head == "frames":
        return {}
    if config.head == "mlp":
        return {"hidden": (config.c_last, config.c_hidden), "classifier": (config.c_hidden, config.num_classes)}
    return {"classifier": (config.c_last, config.num_classes)}


def sizes(config: ModelConfig, c_stem: int, squeeze_sizes: Mapping[int, int]) -> dict[str, int]:
    """Return how many numbers each array of a network has; a block's are called `blocks.I.PART.weight` and `.bias`."""
    found = {"stem": (9 * c_stem, c_stem), "last": (config.blocks[-1].c_out * config.c_last, config.c_last)}
    for name, (n_in, n_out) in head_layers(config).items():
        found[name] = (n_in * n_out, n_out)
    for i, block in enumerate(config.blocks):
        b = numbers(block, squeeze_sizes.get(i, 0))
        mixed = sum(b[f"n_{position}"] for position in block.POSITIONS if b[f"n_{position}"] > 1)
        coefficients = mixed + 4 * b["c_exp"] * b["dynamic_relu"]
        attention, squeezed = b["coordinate_attention"] * b["c_exp"], b["squeeze_size"] * b["c_exp"]
        parts = {
            "context": (b["c_in"] * b["context_size"], b["context_size"]),
            "coefficient": (b["context_size"] * whole_lines(coefficients), coefficients),
            "expand": (b["n_expand"] * b["c_in"] * b["c_exp"], b["c_exp"]),
            "depthwise": (b["n_depthwise"] * b["c_exp"] * b["kernel_size"] ** 2, b["c_exp"]),
            "project": (b["n_project"] * b["c_exp"] * b["c_out"], b["c_out"]),
            "frequency": (attention * b["context_size"], attention),
            "time": (attention * b["context_size"], attention),
            "squeeze": (squeezed, b["squeeze_size"]),
            "excite": (squeezed, b["c_exp"]),
        }
        found |= {f"blocks.{i}.{part}": both for part, both in parts.items() if both[0]}
    return {
        f"{name}.{kind}": size
        for name, both in found.items()
        for kind, size in zip(("weight", "bias"), both, strict=True)
    }


class CompiledNetwork:
    """A network in compiled code: log-mel spectrograms to embeddings and logits, without gradients.

    It keeps a copy of the weights, and the memory of its last call. It may be called from several threads at once.
    """

    def __init__(self, packed: PackedNetwork, build: str | None = None) -> None:
        """Take a network.

        Args:
            packed: the network; its arrays are checked, for the compiled code trusts their sizes.
            build: a key of `dymn.native.libraries`; None is the fastest.

        Raises:
            ConfigError: if there is no such build, it does not support the network, or an array is missing or has
                another size.
        """
        builds = libraries()
        name = build or next(iter(builds), "")
        check(
            name in builds,
            f"There is no compiled code {name!r} for this CPU; available: {', '.join(builds) or 'none'}.",
        )
        check(
            is_known(packed.config),
            "This network has parts that the compiled code does not support. Use dymn.runtime.accelerate.",
        )
        self.config = config = packed.config
        self._band_stride = 2 * math.prod(block.strides[0] for block in config.blocks)
        self.library = builds[name]
        self._memory: list[Floats] = []
        given = {key: values.size for key, values in packed.arrays.items()}
        c_stem = given.get("stem.bias", 0)
        squeeze_sizes = {i: given.get(f"blocks.{i}.squeeze.bias", 0) for i in range(len(config.blocks))}
        check(
            c_stem == config.blocks[0].c_in,
            f"The stem has {c_stem} channels, but the first block expects {config.blocks[0].c_in}.",
        )
        check(
            given == sizes(config, c_stem, squeeze_sizes),
            "The arrays do not fit the network that the config describes.",
        )
        layers = head_layers(config)
        self._kept = {
            key: with_slack(values) for key, values in packed.arrays.items() if key.split(".")[0] not in layers
        }
        self._layers = {
            name: CompiledLinear(
                self.library, packed.arrays[f"{name}.weight"].reshape(shape[::-1]), packed.arrays[f"{name}.bias"]
            )
            for name, shape in layers.items()
        }
        self._blocks = (_Block * len(config.blocks))(
            *(
                _Block(**numbers(block, squeeze_sizes[i]), **self._addresses(f"blocks.{i}.", _POINTERS))
                for i, block in enumerate(config.blocks)
            )
        )
        self._network = _Network(
            n_blocks=len(config.blocks),
            c_stem=c_stem,
            c_last=config.c_last,
            **self._addresses("", ("stem", "last")),
            blocks=ctypes.cast(self._blocks, ctypes.POINTER(_Block)),
        )

    @property
    def time_stride(self) -> int:
        """The number of frames of the spectrogram between two of the last feature map."""
        return self.config.time_stride

    def embed(self, log_mel: Floats, n_threads: int) -> Floats:
        """Return the embedding [B, D] of log-mel spectrograms [B, 1, n_mels, frames].

        Raises:
            ConfigError: if the input has another shape, or is too long for one pass.
        """
        return self._run(log_mel, n_threads, None)

    def embed_frames(self, log_mel: Floats, n_threads: int) -> tuple[Floats, Floats]:
        """Return the embedding [B, D] and the last feature map averaged over its bands [B, D, T'].

        Raises:
            ConfigError: if the input has another shape, or is too long for one pass.
        """
        n_frames = -(-log_mel.shape[-1] // self.time_stride)
        frames = np.empty((len(log_mel), self.config.c_last, n_frames), np.float32)
        return self._run(log_mel, n_threads, frames), frames

    def embed_blocks(
        self, log_mel: Floats, n_threads: int, wanted: Collection[int] | None = None
    ) -> tuple[Floats, dict[int, Floats]]:
        """Return the embedding [B, D], and outputs of blocks [B, C, F', T'] by their numbers.

        Args:
            log_mel: spectrograms [B, 1, n_mels, frames].
            n_threads: number of threads.
            wanted: numbers of blocks, counted from 1; None means all.

        Raises:
            ConfigError: if the input has another shape, or is too long for one pass.
        """
        self._check(log_mel)
        maps = {}
        n_bands, n_frames = (-(-size // 2) for size in log_mel.shape[2:])  # behind the stem
        for number, block in enumerate(self.config.blocks, 1):
            n_bands, n_frames = -(-n_bands // block.strides[0]), -(-n_frames // block.strides[1])
            if wanted is None or number in wanted:
                maps[number] = np.empty((len(log_mel), block.c_out, n_bands, n_frames), np.float32)
        return self._run(log_mel, n_threads, None, maps), maps

    def _check(self, log_mel: Floats) -> None:
        if log_mel.ndim != 4 or log_mel.shape[1] != 1 or 0 in log_mel.shape[2:]:
            check(
                False,
                f"log_mel has shape {list(log_mel.shape)}; it must be [B, 1, n_mels, frames] with at least one mel "
                "band and one frame.",
            )
        n_bands, n_frames = log_mel.shape[2:]
        check(
            self.config.head != "frames" or n_bands <= self._band_stride,
            f"log_mel has {n_bands} bands; a frame-wise network takes at most {self._band_stride}.",
        )
        check(
            n_bands * n_frames < MOST_PLACES,
            f"A spectrogram of {n_frames} frames is too long for one pass. Split it into windows.",
        )

    def _run(
        self, log_mel: Floats, n_threads: int, frames: Floats | None, maps: Mapping[int, Floats] | None = None
    ) -> Floats:
        self._check(log_mel)
        n_clips, _, n_bands, n_frames = log_mel.shape
        x = np.ascontiguousarray(log_mel, np.float32)
        out = np.empty((n_clips, self.config.c_last), np.float32)
        counts = (n_clips, n_bands, n_frames, within_bounds(n_threads))
        needed = self.library.dymn_workspace(ctypes.byref(self._network), *counts)
        try:
            memory = self._memory.pop()  # of an earlier call; calls at the same time have memory of their own
        except IndexError:
            memory = np.zeros(0, np.float32)
        if memory.size < needed:
            memory = np.zeros(needed, np.float32)
        given, room, found = (ctypes.c_void_p(array.ctypes.data) for array in (x, memory, out))
        by_frame = ctypes.c_void_p(None if frames is None else frames.ctypes.data)
        by_block = (ctypes.c_void_p * len(self._blocks))()
        for number, values in (maps or {}).items():
            by_block[number - 1] = values.ctypes.data
        self.library.dymn_run(ctypes.byref(self._network), given, *counts, room, found, by_frame, by_block)
        self._memory.append(memory)
        return out

    def logits(self, embedding: Floats) -> Floats:
        """Return the logits [B, C] of embeddings [B, D]."""
        *hidden, last = self._layers.values()
        for layer in hidden:
            embedding = layer(embedding, activation="hardswish")
        return last(embedding)

    def _addresses(self, prefix: str, parts: tuple[str, ...]) -> dict[str, int]:
        names = {f"{part}_{kind}": f"{prefix}{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        return {field: self._kept[name].ctypes.data for field, name in names.items() if name in self._kept}
