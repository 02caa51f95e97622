"""Embeddings from any layers of a network, computed by PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dymn.inference.embedding import LAST, MELS, BaseEmbedder, Floats, parse_layers
from dymn.models.features import FeatureExtractor, features_of
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.runtime.backend import BATCH_SIZE, CPU_BATCH_SIZE
from dymn.system.devices import computing


class Embedder(nn.Module, BaseEmbedder):
    """Waveforms to embeddings: the front end, the network as far as it is needed, averages, concatenation."""

    def __init__(self, model: MobileNet, layers: str | Sequence[str] = LAST, precision: str = "float32") -> None:
        """Choose the layers.

        Args:
            model: a network; it is shared, not copied, and set to evaluation mode.
            layers: names of layers as in `dymn.inference.embedding`, in a list or with commas between.
            precision: how exactly `vectors` computes the network, one of `dymn.system.devices.PRECISIONS`.

        Raises:
            ConfigError: if there is no such layer, or one is named twice.
        """
        super().__init__()
        self.precision = precision
        known = {feature.name: (i, feature.channels) for i, feature in enumerate(features_of(model))}
        self.layers = parse_layers(layers, len(model.config.blocks))
        self.log_mel = LogMel(model.card.front_end).to(next(model.parameters()).device)
        mapped = [name for name in self.layers if name != MELS]
        self.extractor = FeatureExtractor(model, [known[name][0] for name in mapped]) if mapped else None
        sizes = [model.card.front_end.n_mels if name == MELS else known[name][1] for name in self.layers]
        self.names = tuple(f"{name}_{i}" for name, size in zip(self.layers, sizes, strict=True) for i in range(size))
        self.size = len(self.names)
        self.sample_rate = model.card.front_end.sample_rate
        self.eval()

    @property
    def batch_size(self) -> int:
        """How many windows to compute at once, if nobody says otherwise."""
        return CPU_BATCH_SIZE if self.log_mel.basis.device.type == "cpu" else BATCH_SIZE

    def forward(self, waveform: Tensor) -> Tensor:
        """Return embeddings [B, D] of waveforms [B, N] at `sample_rate`.

        Raises:
            AudioError: if the waveform is not [B, N] with N of at least 1.
        """
        log_mel = self.log_mel(waveform)
        maps = iter(self.extractor(log_mel) if self.extractor is not None else ())
        parts = [log_mel.mean(dim=(1, 3)) if name == MELS else next(maps).mean(dim=(2, 3)) for name in self.layers]
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def vectors(self, waveforms: Floats | Tensor) -> Floats:
        """Return embeddings [B, D] of waveforms [B, N] at `sample_rate`.

        Raises:
            ResourceError: if the batch does not fit the device's memory.
        """
        device = self.log_mel.basis.device
        with computing(device, len(waveforms), self.precision):
            return self(torch.as_tensor(waveforms, device=device)).float().cpu().numpy()  # type: ignore[no-any-return]
