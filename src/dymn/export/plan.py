"""The settings of an export: format, input, precision, and the comparison with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dymn import __version__
from dymn.audio.windows import fill
from dymn.config import ModelCard, SequenceConfig, check, check_choice, to_dict
from dymn.models.ensemble import MeanOfLogits
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet

FORMATS = ("onnx", "torch", "executorch", "litert")
LITE = ("executorch", "litert")
"""Formats of networks without a front end, for one clip of fixed length."""
INPUTS = ("waveform", "log-mel")
METADATA = "dymn"
VERSION = 1

Exportable = MobileNet | MeanOfLogits
"""What becomes a file: a network, or several whose logits are averaged."""


def networks(model: Exportable) -> list[MobileNet]:
    """Return the networks of an ensemble, or the one that a network is."""
    return list(model.networks) if isinstance(model, MeanOfLogits) else [model]  # type: ignore[arg-type]


def sequence_of(model: Exportable) -> SequenceConfig | None:
    """Return the sequence model of a frame-wise network; None for other networks, and for ensembles."""
    return model.config.sequence if isinstance(model, MobileNet) else None


@dataclass(frozen=True)
class Bound:
    """How a file may differ from PyTorch.

    Attributes:
        measure: the attribute of `Parity` that the tolerance is for: "largest" or "mean".
        tolerance: the most that it may be.
        agreement: the least share of clips whose best class is to be the same.
    """

    measure: str
    tolerance: float
    agreement: float


PRECISIONS = {
    "fp32": Bound("largest", 1e-4, 0.0),
    "fp16": Bound("largest", 2e-2, 0.0),
    "int8": Bound("mean", 0.03, 0.8),
}


@dataclass(frozen=True)
class Plan:
    """What a file takes and gives.

    Attributes:
        format: one of `FORMATS`.
        input: what goes in, one of `INPUTS`.
        precision: "fp16" and "int8" store the network's weights in 16 and 8 bits; they compute in float32 all the same,
            but for the convolutions that calibration puts into integers.
        dynamic_time: whether clips may be of any length; they are of `seconds` otherwise.
        dynamic_batch: whether the number of clips is free; it is 1 otherwise, which is faster for one clip.
        seconds: how long a clip is.
    """

    format: str = "onnx"
    input: str = "waveform"
    precision: str = "fp32"
    dynamic_time: bool = False
    dynamic_batch: bool = False
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, allowed in {"format": FORMATS, "input": INPUTS, "precision": PRECISIONS}.items():
            check_choice(name, getattr(self, name), allowed)
        check(
            self.format == "onnx" or self.precision == "fp32",
            f"precision is {self.precision!r}; the format {self.format} has only fp32.",
        )
        check(
            self.format not in LITE or (self.input == "log-mel" and not self.dynamic_time and not self.dynamic_batch),
            f"The format {self.format} takes one clip of fixed length, as a log-mel spectrogram. Give --input "
            "log-mel, and neither --dynamic-time nor --dynamic-batch.",
        )

    def n_samples(self, card: ModelCard) -> int:
        """Return the samples of a clip, or raise a `ConfigError` if they are too few for the front end."""
        rate, least = card.front_end.sample_rate, card.front_end.n_fft // 2 + 2
        n_samples = round(self.seconds * rate)
        check(n_samples >= least, f"seconds is {self.seconds}; it must be at least {least / rate:.3f}.")
        return n_samples

    def clip(
        self, waveform: npt.NDArray[np.float32], card: ModelCard, n_samples: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Return samples [1, N] of a recording [N], cut or repeated to the length of a clip, or to `n_samples`."""
        length = n_samples or self.n_samples(card)
        return fill(np.asarray(waveform[:length], np.float32), length, "repeat")[None]

    def feed(self, clip: npt.NDArray[np.float32], card: ModelCard) -> npt.NDArray[np.float32]:
        """Return what the file takes for samples [B, N]: themselves, or log-mel spectrograms."""
        if self.input == "waveform":
            return clip
        log_mel: npt.NDArray[np.float32] = LogMel(card.front_end)(torch.from_numpy(clip)).numpy()
        return log_mel

    def describe(self, model: Exportable) -> dict[str, Any]:
        """Return the metadata that are written into the file, as plain JSON types."""
        return {
            "format": VERSION,
            "dymn": __version__,
            "input": self.input,
            "sample_rate": model.card.front_end.sample_rate,
            "seconds": None if self.dynamic_time else self.seconds,
            "precision": self.precision,
            "temperature": model.config.temperature if isinstance(model, MobileNet) else None,
            "card": to_dict(model.card),
            "frame_samples": self.frame_samples(model.card, sequence) if (sequence := sequence_of(model)) else None,
        }

    def frame_samples(self, card: ModelCard, sequence: SequenceConfig) -> int:
        """Return the number of samples between two frames of a frame-wise network, for clips of this length.

        Raises:
            ConfigError: if frames would not start at whole samples.
        """
        samples, frames = self.n_samples(card), sequence.length
        check(
            samples % frames == 0,
            f"seconds is {self.seconds}; it must be a multiple of the length of {frames} frames. Use 10.",
        )
        return samples // frames
