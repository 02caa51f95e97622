"""Averages of any feature maps in PyTorch; imported only for layers other than the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dymn.models.features import FeatureExtractor, features_of
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.runtime.layers import LAST, MELS, parse_layers
from dymn.system.arrays import Floats
from dymn.system.devices import compute_alone_after_fork, computing


class LayerAverages(nn.Module):
    """Waveforms to embeddings: front end, the network as far as it is needed, averages, concatenation.

    `layers`, `names`, `size` and `sample_rate` are those of `dymn.Embedder`.
    """

    def __init__(self, model: MobileNet, layers: str | Sequence[str] = LAST, precision: str = "float32") -> None:
        """Choose the layers.

        Args:
            model: a network in evaluation mode; its weights are shared, not copied.
            layers, precision: as for `dymn.Embedder`; `precision` is that of `run`.

        Raises:
            ConfigError: if there is no such layer, or one is named twice.
        """
        super().__init__()
        compute_alone_after_fork()
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

    def forward(self, waveform: Tensor) -> Tensor:
        """Return embeddings [B, D] of waveforms [B, N] at `sample_rate`, or raise an `AudioError` for other shapes."""
        return self.averages(self.log_mel(waveform))

    def averages(self, log_mel: Tensor) -> Tensor:
        """Return embeddings [B, D] of log-mel spectrograms [B, 1, F, T]."""
        maps = iter(self.extractor(log_mel) if self.extractor is not None else ())
        parts = [log_mel.mean(dim=(1, 3)) if name == MELS else next(maps).mean(dim=(2, 3)) for name in self.layers]
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def run(self, features: Floats) -> Floats:
        """Return embeddings [B, D] of `Backend.features`: spectrograms [B, 1, F, T] or samples [B, N].

        Raises:
            ResourceError: if the batch does not fit the device's memory.
        """
        device = self.log_mel.basis.device
        with computing(device, len(features), self.precision):
            given = torch.as_tensor(features, device=device)
            log_mel = given if given.ndim == 4 else self.log_mel(given)
            return self.averages(log_mel).float().cpu().numpy()
