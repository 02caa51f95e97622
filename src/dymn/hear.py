"""The common API of the HEAR benchmark (Holistic Evaluation of Audio Representations): `hear-validator dymn.hear`.

By default, embeddings contain the layers that the networks' authors chose for the benchmark: averages of the mel bands
and of four blocks in the middle and at the end (F. Schmid, K. Koutini, G. Widmer: Low-complexity audio embedding
extractors, EUSIPCO 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dymn.audio.samples import MAX_PEAK
from dymn.audio.windows import cut
from dymn.config import check, check_choice
from dymn.errors import AudioError
from dymn.runtime.layer_averages import LayerAverages

LAYERS = ("mels", "block4", "block10", "block12", "block14")
HOP_MS = 50
WINDOW_MS = 160
SCENE_SECONDS = 10
SCENE_HOP_SECONDS = 2.5  # in the authors' wrapper
BATCH_SIZE = 64
DEFAULT = "dymn04_open"

Windows = Literal["consecutive", "authors"]
"""Windows of scenes of more than ten seconds, and padding at the edges of a clip.

"consecutive": consecutive windows of ten seconds, averaged by their length, and zeros at the edges for timestamps.
"authors", like the wrapper with which the networks were evaluated: windows of ten seconds centred on every 2.5 s, and
reflection at the edges for scenes and timestamps.
"""


class HearModel(nn.Module):
    """A network with the attributes that the benchmark expects.

    Attributes:
        sample_rate: sample rate of the audio, in Hz.
        scene_embedding_size: number of values of the embedding of a whole clip.
        timestamp_embedding_size: number of values of the embedding of a timestamp.
        windows: one of `Windows`.
    """

    def __init__(self, embedder: LayerAverages, windows: Windows = "consecutive") -> None:
        """Choose the windows.

        Raises:
            ConfigError: if there are no such windows.
        """
        super().__init__()
        check_choice("windows", windows, get_args(Windows))
        self.windows = windows
        self.embedder = embedder
        self.sample_rate = embedder.sample_rate
        self.scene_embedding_size = embedder.size
        self.timestamp_embedding_size = embedder.size

    def forward(self, audio: Tensor) -> Tensor:
        """Return embeddings [B, D] of waveforms [B, N]."""
        return self.embedder(audio)  # type: ignore[no-any-return]


def load_model(
    model_file_path: str = "", layers: str | Sequence[str] = LAYERS, windows: Windows = "consecutive"
) -> HearModel:
    """Return a network, on the CPU, in evaluation mode.

    Args:
        model_file_path: a file or folder with a model, or a model's name; the default is `dymn04_open`.
        layers: the layers of the embeddings, see `dymn.runtime.layers`.
        windows: windows of long scenes and padding at the edges, see `Windows`.

    Raises:
        WeightsError: if the model cannot be found or read.
        ConfigError: if there is no such layer, or `windows` is not allowed.
    """
    from dymn.weights import load_model as load

    return HearModel(LayerAverages(load(model_file_path or DEFAULT), layers), windows).eval()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return embeddings [n_sounds, D] of whole clips [n_sounds, n_samples] with full scale 1.

    Embeddings are on the model's device, without gradients. Clips of more than ten seconds are divided into windows of
    that length according to the model's `windows`, and the embeddings of the windows are averaged.

    Raises:
        ConfigError: if the audio does not have two dimensions, or is empty.
        AudioError: if a sample is not finite.
    """
    audio = _checked(audio, model)
    n_samples, length = audio.shape[1], SCENE_SECONDS * model.sample_rate
    if model.windows == "authors" and n_samples > length:
        hop = round(SCENE_HOP_SECONDS * model.sample_rate)
        audio = _reflected(audio, length // 2, length // 2)
        places = [(start, length) for start in range(0, n_samples + 1, hop)]
    else:
        places = [(start, len(piece)) for start, piece in cut([np.empty(n_samples, np.float32)], length, length)]
    covered = sum(samples for _, samples in places)
    total = torch.zeros(len(audio), model.scene_embedding_size, device=audio.device)
    for start, samples in places:
        for first in range(0, len(audio), BATCH_SIZE):
            rows = slice(first, first + BATCH_SIZE)
            total[rows] += model(audio[rows, start : start + samples]) * (samples / covered)
    return total


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return embeddings every 50 ms of clips [n_sounds, n_samples], and their times.

    Both are on the model's device, without gradients. Each embedding describes the 160 ms around its time. According to
    the model's `windows`, clips are extended with zeros or by reflection at both ends.

    Returns:
        embeddings [n_sounds, n_timestamps, D], and times in ms [n_sounds, n_timestamps], the first 0, the last at or
        before the end.

    Raises:
        ConfigError: if the audio does not have two dimensions, or is empty.
        AudioError: if a sample is not finite.
    """
    audio = _checked(audio, model)
    rate, n_samples = model.sample_rate, audio.shape[1]
    window = round(WINDOW_MS * rate / 1000)
    times = torch.arange(0, n_samples * 1000 // rate + 1, HOP_MS)
    centres = [round(int(time) * rate / 1000) for time in times]  # each from its time, so that no rounding adds up
    pad = _reflected if model.windows == "authors" else _framed
    padded = pad(audio, window // 2, window - window // 2)
    cuts = [padded[sound, start : start + window] for sound in range(len(audio)) for start in centres]
    parts = [model(torch.stack(cuts[first : first + BATCH_SIZE])) for first in range(0, len(cuts), BATCH_SIZE)]
    embeddings = torch.cat(parts).reshape(len(audio), len(times), -1)  # [n_sounds * n_timestamps, D]: sound by sound
    return embeddings, times.float().expand(len(audio), -1).to(audio.device)


def _framed(audio: Tensor, before: int, after: int) -> Tensor:
    """Return clips [n, N] with zeros around them."""
    return nn.functional.pad(audio, (before, after))


def _reflected(audio: Tensor, before: int, after: int) -> Tensor:
    """Return clips [n, N] reflected at both ends, again and again where they are shorter than what is wanted."""
    return audio[:, np.pad(np.arange(audio.shape[1]), (before, after), mode="reflect")]


def _checked(audio: Tensor, model: HearModel) -> Tensor:
    """Return the audio on the model's device in float32."""
    right = audio.ndim == 2 and audio.shape[0] >= 1 and audio.shape[1] >= 1
    check(right, f"audio has shape {list(audio.shape)}; it must be [n_sounds, n_samples] with at least one of each.")
    samples = audio.to(model.embedder.log_mel.basis.device, torch.float32)
    if not bool((samples.abs() <= MAX_PEAK).all()):  # false for NaN too
        raise AudioError(
            "The audio contains values that are NaN, infinite or far beyond full scale, which is 1. Replace them, "
            "for example with torch.nan_to_num, or scale the samples."
        )
    return samples
