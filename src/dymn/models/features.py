"""Feature maps of a network, for other kinds of heads (like timm's `features_only`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dymn.config import check
from dymn.models.mobilenet import MobileNet, check_log_mel

STEM_STRIDE = 2


class Feature(NamedTuple):
    """A feature map: the name of its layer, its channels, and its stride in frames and mel bands."""

    name: str
    channels: int
    stride: int


def features_of(model: MobileNet) -> tuple[Feature, ...]:
    """Return the feature maps of a network: "block0" and so on, and "last", the output of the last convolution."""
    features = []
    stride = STEM_STRIDE
    for i, block in enumerate(model.config.blocks):
        stride *= block.stride
        features.append(Feature(f"block{i}", block.c_out, stride))
    return (*features, Feature("last", model.config.c_last, stride))


class FeatureExtractor(nn.Module):
    """The convolutions of a network up to the last one that is needed; weights are shared, not copied.

    Attributes:
        features: name, channels and stride of each map, in the order in which `forward` returns them.

    Example:
        >>> extractor = FeatureExtractor(create_model("dymn10"))  # doctest: +SKIP
        >>> [feature.channels for feature in extractor.features]  # doctest: +SKIP
        [16, 24, 40, 112, 160]
    """

    def __init__(self, model: MobileNet, out_indices: Sequence[int] | None = None) -> None:
        """Choose the maps.

        Args:
            model: any network; what is trained through the extractor is trained in it.
            out_indices: which maps, in this order: 0 to 14 are the blocks, 15 is the last convolution; negative ones
                count from the end. None is the last block of every stride, five maps for the networks of Table I.

        Raises:
            ConfigError: if there is no such map.
        """
        super().__init__()
        known = features_of(model)
        wanted = _last_of_each_stride(known) if out_indices is None else list(out_indices)
        check(bool(wanted), "out_indices is empty; name at least one feature map.")
        allowed = range(-len(known), len(known))
        check(
            all(i in allowed for i in wanted),
            f"out_indices is {wanted}; each must be from {allowed[0]} to {allowed[-1]}.",
        )
        self.out_indices = [i % len(known) for i in wanted]
        self.features = tuple(known[i] for i in self.out_indices)
        layers = [*model.blocks, model.last][: max(self.out_indices) + 1]
        self.stem = model.stem
        self.layers = nn.ModuleList(layers)

    def forward(self, log_mel: Tensor) -> list[Tensor]:
        """Return feature maps [B, channels, ceil(F / stride), ceil(T / stride)] of spectrograms [B, in_chans, F, T].

        Raises:
            ConfigError: if the input is not of four dimensions with the network's number of channels.
        """
        check_log_mel(log_mel, self.stem.conv.in_channels)
        maps: dict[int, Tensor] = {}
        x = self.stem(log_mel)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.out_indices:
                maps[i] = x
        return [maps[i] for i in self.out_indices]


def _last_of_each_stride(features: Sequence[Feature]) -> list[int]:
    blocks = features[:-1]
    return [i for i, feature in enumerate(blocks) if i + 1 == len(blocks) or blocks[i + 1].stride != feature.stride]
