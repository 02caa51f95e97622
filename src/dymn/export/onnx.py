"""A model as an ONNX file: built, compared with PyTorch on clips, and only then written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dymn import __version__
from dymn.config import check, to_dict
from dymn.errors import DymnError, MissingExtraError
from dymn.fast import fuse
from dymn.files import atomic_write
from dymn.frontend import LogMel
from dymn.model import MobileNet

INPUTS = ("waveform", "log-mel")
PRECISIONS = {"fp32": 1e-4, "fp16": 2e-2}
"""How far a probability may be from PyTorch's."""

METADATA = "dymn"
FORMAT = 1


class ExportError(DymnError):
    """A model cannot be exported, or its file does not agree with it."""


@dataclass(frozen=True)
class Parity:
    """How a file agrees with PyTorch on clips.

    Attributes:
        clips: how many clips were compared.
        probability: the largest difference of a probability.
        logit: the largest difference of a logit.
        tolerance: what a probability may differ by.
    """

    clips: int
    probability: float
    logit: float
    tolerance: float


@dataclass(frozen=True)
class Exported:
    """A file that was written, how large it is in bytes, and how it agrees with PyTorch."""

    path: Path
    size: int
    parity: Parity


def build(
    model: MobileNet,
    *,
    input: str = "waveform",
    precision: str = "fp32",
    dynamic_time: bool = False,
    dynamic_batch: bool = False,
    seconds: float = 10.0,
) -> bytes:
    """Return a model as ONNX (opset 17).

    Its input is `waveform` [B, N] or `log_mel` [B, 1, n_mels, frames]; its outputs are `probabilities` [B, C], `logits` [B, C] and
    `embedding` [B, D]. Labels, front end, licence and temperature are JSON in its metadata, under "dymn".

    Args:
        model: the network, its card with it.
        input: what goes in, one of `INPUTS`.
        precision: "fp16" stores the network's weights in half precision; it computes in float32 all the same.
        dynamic_time: whether clips may be of any length; they are of `seconds` otherwise.
        dynamic_batch: whether the number of clips is free; it is 1 otherwise, which is faster for one clip.
        seconds: how long a clip is.

    Raises:
        ConfigError: if a setting is not allowed, or the network has a part that cannot be exported.
        MissingExtraError: if onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Exporting to ONNX", "onnx") from error
    from dymn.export import graph
    from dymn.export.nodes import OPSET, Nodes

    check(input in INPUTS, f"input is {input!r}; allowed: {', '.join(INPUTS)}.")
    check(precision in PRECISIONS, f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}.")
    card = model.card
    n_samples = round(seconds * card.front_end.sample_rate)
    least = card.front_end.n_fft // 2 + 2
    check(n_samples >= least, f"seconds is {seconds}; it must be at least {least / card.front_end.sample_rate:.3f}.")
    nodes = Nodes(half=precision == "fp16")
    batch: Any = "batch" if dynamic_batch else 1
    if input == "waveform":
        inputs = {"waveform": [batch, "samples" if dynamic_time else n_samples]}
        log_mel = graph.front_end(nodes, "waveform", card.front_end)
    else:
        frames = LogMel(card.front_end).n_frames(n_samples)
        inputs = {"log_mel": [batch, 1, card.front_end.n_mels, "frames" if dynamic_time else frames]}
        log_mel = "log_mel"
    with torch.no_grad():
        logits, embedding = graph.network(nodes, log_mel, fuse(model.float()), card.front_end.n_mels, dynamic_batch)
    probabilities = nodes.op("Softmax", logits, axis=1) if card.exclusive else nodes.op("Sigmoid", logits)
    described = {
        "format": FORMAT,
        "dymn": __version__,
        "input": input,
        "sample_rate": card.front_end.sample_rate,
        "seconds": None if dynamic_time else seconds,
        "precision": precision,
        "opset": OPSET,
        "temperature": model.config.temperature,
        "card": to_dict(card),
    }
    outputs = {
        "probabilities": (probabilities, [batch, len(card.labels)]),
        "logits": (logits, [batch, len(card.labels)]),
        "embedding": (embedding, [batch, model.config.c_last]),
    }
    name = card.name or "a network of dymn"
    built = nodes.model(
        inputs, outputs, {METADATA: json.dumps(described)}, f"{name}: {input} to the probabilities of {len(card.labels)} sounds."
    )
    return bytes(built.SerializeToString())


def export_onnx(
    model: MobileNet,
    path: str | Path,
    clips: Sequence[npt.NDArray[np.float32]] = (),
    tolerance: float | None = None,
    **settings: Any,
) -> Exported:
    """Write a model as an ONNX file, unless ONNX Runtime gives other numbers with it than PyTorch does with the model.

    Args:
        model: the network, its card with it.
        path: the file to write.
        clips: waveforms [N] at the model's sample rate to compare on; a few made sounds are compared on in any case.
        tolerance: what a probability may differ by; that of `PRECISIONS` if None.
        settings: those of `build`.

    Raises:
        ExportError: if the numbers differ by more than the tolerance; nothing is written.
        ConfigError: as `build` does, or if the package onnxruntime is missing.
        OSError: if the file cannot be written.
    """
    content = build(model, **settings)
    allowed = PRECISIONS[settings.get("precision", "fp32")] if tolerance is None else tolerance
    parity = compare(content, model, clips, allowed)
    if not parity.probability <= allowed:
        raise ExportError(
            f"{path} was not written: a probability differs from PyTorch's by {parity.probability:.2g} on {parity.clips} clips; "
            f"{allowed:.2g} is allowed. Please report this, with the model's name."
        )
    with atomic_write(path) as file:
        file.write(content)
    return Exported(Path(path), len(content), parity)


def compare(content: bytes, model: MobileNet, clips: Sequence[npt.NDArray[np.float32]], tolerance: float) -> Parity:
    """Compare a file's numbers with those of PyTorch on clips [N] and on made sounds, each cut or repeated to the file's length.

    Raises:
        ConfigError: if the package onnxruntime is missing.
    """
    from dymn.onnx_backend import OnnxBackend
    from dymn.windows import fill

    backend = OnnxBackend(content)
    rate = backend.sample_rate
    n_samples = round(rate * (backend.seconds or 10.0))
    lengths = [n_samples] if backend.seconds else [n_samples, n_samples // 3]
    front_end = LogMel(model.card.front_end)
    model.eval()
    worst = [0.0, 0.0]
    waveforms = [np.asarray(clip, np.float32) for clip in clips] + made_sounds(n_samples, rate)
    for i, waveform in enumerate(waveforms):
        length = lengths[i % len(lengths)]
        clip = fill(waveform[:length], length, "repeat")[None]
        got = backend.run(clip if backend.input == "waveform" else front_end(torch.from_numpy(clip)).numpy())
        with torch.no_grad():
            logits = model(front_end(torch.from_numpy(clip))).logits
            expected = (model.probabilities(logits).numpy(), logits.numpy())
        worst = [max(w, float(abs(g - e).max())) for w, g, e in zip(worst, got[:2], expected, strict=True)]
    return Parity(len(waveforms), worst[0], worst[1], tolerance)


def made_sounds(n_samples: int, rate: int) -> list[npt.NDArray[np.float32]]:
    """Return a rising tone, noise in bursts, and near silence."""
    seconds = np.arange(n_samples) / rate
    random = np.random.default_rng(0)
    rising = 0.5 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    bursts = 0.2 * random.standard_normal(n_samples) * (np.sin(2 * np.pi * 1.5 * seconds) > 0.6)
    quiet = 1e-4 * random.standard_normal(n_samples)
    return [sound.astype(np.float32) for sound in (rising, bursts, quiet)]
