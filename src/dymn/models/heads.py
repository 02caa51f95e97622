"""From the last feature map to logits (Table I), of clips and of frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dymn.architectures import HEADS
from dymn.config import ModelConfig, check
from dymn.models.layers.sequence import resampled, sequence_model


class Output(NamedTuple):
    """The output of a network for a batch of clips."""

    logits: Tensor  # [B, C]
    embedding: Tensor  # [B, D], the averaged output of the last convolution


class FramewiseOutput(Output):
    """The output of a frame-wise network: `Output` for clips, and `frame_logits` [B, T, C] for their frames."""

    frame_logits: Tensor

    def __new__(cls, logits: Tensor, embedding: Tensor, frame_logits: Tensor) -> FramewiseOutput:  # noqa: D102
        self = super().__new__(cls, logits, embedding)
        self.frame_logits = frame_logits
        return self

    def __getnewargs__(self) -> tuple[Tensor, ...]:
        """Return what copies and pickles are built from."""
        return (*self, self.frame_logits)


class Head(nn.Module):
    """From the last feature map to the output of a network."""

    frames: Callable[[Tensor], Tensor]

    @property
    def last_bias(self) -> Tensor:
        """The bias of the last layer, whose last axis is classes [..., C]."""
        return self.classifier.bias  # type: ignore[return-value,union-attr]

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, whose first axis is classes [C, ...]; of several heads [n_heads, C, D]."""
        return self.classifier.weight  # type: ignore[return-value,union-attr]

    @torch.no_grad()
    def scale(self, slope: float, offset: float) -> None:
        """Change the last layer so that all logits become `slope` * logits + `offset`."""
        self.last_weight.mul_(slope)
        self.last_bias.mul_(slope).add_(offset)

    def filled(self, state: Mapping[str, Tensor]) -> Head:
        """Take the tensors of another head of this kind, and return the head."""
        self.load_state_dict(state, strict=True, assign=True)
        return self

    def output(self, features: Tensor) -> Output:
        """Return logits and embedding of the last feature map [B, D, F, T]."""
        embedding = features.mean(dim=(2, 3))
        return Output(self(features, embedding), embedding)

    def scores(self, features: Tensor, embedding: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the frames of a feature map that may be smoothed, and of the clip."""
        return self.frames(smooth), self(features, embedding)


class MLPHead(Head):
    """Two linear layers on the averaged feature map (Table I)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.c_last, config.c_hidden)
        self.activation = nn.Hardswish()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.c_hidden, config.num_classes)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return logits [B, classes] from the embedding [B, D]."""
        return self.classifier(self.dropout(self.activation(self.hidden(embedding))))  # type: ignore[no-any-return]

    def frames(self, features: Tensor) -> Tensor:
        """Return logits [B, T, classes]: of each frame of the feature map [B, D, F, T] as if it were the whole clip."""
        return self.forward(features, features.mean(dim=2).transpose(1, 2))


class FullyConvolutionalHead(Head):
    """Class scores at each place of the last feature map, then their mean, as in some published MobileNets."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(config.c_last, config.num_classes, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(config.num_classes)

    @property
    def last_bias(self) -> Tensor:
        """The bias of the norm [C]."""
        return self.norm.bias

    @property
    def last_weight(self) -> Tensor:
        """The weight of the norm [C]."""
        return self.norm.weight

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return logits [B, classes] from the last feature map [B, D, F, T]."""
        return self.norm(self.classifier(features)).mean(dim=(2, 3))  # type: ignore[no-any-return]

    def frames(self, features: Tensor) -> Tensor:
        """Return logits [B, T, classes], whose mean over T is that of the clip."""
        return self.norm(self.classifier(features)).mean(dim=2).transpose(1, 2)  # type: ignore[no-any-return]


class AttentionPoolingHead(Head):
    """Class scores of each frame, averaged with weights of their own, by several heads (PSLA, Sec. II-C).

    Y. Gong, Y.-A. Chung, J. Glass, "PSLA: Improving Audio Tagging with Pretraining, Sampling, Labeling, and
    Aggregation", IEEE/ACM TASLP 2021.
    """

    EPSILON = 1e-7

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.pooling_heads
        self.classifier = nn.Linear(config.c_last, 2 * self.n_heads * config.num_classes)  # attention, then scores
        self.weights = nn.Parameter(torch.full((self.n_heads,), 1 / self.n_heads))

    @property
    def last_bias(self) -> Tensor:
        """The bias of the class scores of each head [n_heads, C]."""
        return self.classifier.bias.view(2, self.n_heads, -1)[1]

    @property
    def last_weight(self) -> Tensor:
        """The weight of the class scores of each head [n_heads, C, D]."""
        return self.classifier.weight.view(2, self.n_heads, -1, self.classifier.in_features)[1]

    def scale(self, slope: float, offset: float) -> None:
        """Change the class scores so that all logits become `slope` * logits + `offset`."""
        super().scale(slope, offset / float(self.weights.sum()))

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return logits [B, classes] from the last feature map [B, D, F, T]."""
        attention, scores = self._read(features)
        share = torch.sigmoid(attention).clamp(self.EPSILON, 1 - self.EPSILON)
        pooled = (share * scores).sum(dim=1) / share.sum(dim=1)  # [B, n_heads, C]
        return (pooled * self.weights[:, None]).sum(dim=1)

    def frames(self, features: Tensor) -> Tensor:
        """Return logits [B, T, classes]: of each frame of the feature map as if it were the whole clip."""
        return (self._read(features)[1] * self.weights[:, None]).sum(dim=2)

    def _read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention and scores [B, T, n_heads, C] of the frames of a feature map [B, D, F, T]."""
        read = self.classifier(features.mean(dim=2).transpose(1, 2))
        return read.unflatten(2, (2, self.n_heads, -1)).unbind(dim=2)  # type: ignore[no-any-return]


class FrameHead(Head):
    """Of frame-wise networks: a model of the sequence of frames, a linear layer on each, and one on their mean.

    `output` has the logits of both layers, and `last_bias` is that of the layer for clips. All other methods use the
    trained layer: of a network whose frames are, a clip has the highest logits of its frames; one whose clips are
    scores each frame as if it were the mean.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.sequence is not None
        self.length = config.sequence.length
        self.sequence = sequence_model(config)
        self.frame = nn.Linear(config.c_frame, config.sequence.n_frame_classes)
        self.clip = nn.Linear(config.c_frame, config.sequence.n_clip_classes)
        self.scores_frames = config.sequence.scores == "frames"

    @property
    def last_bias(self) -> Tensor:
        """The bias of the layer that gives clips their logits [C]."""
        return self.clip.bias

    @property
    def last_weight(self) -> Tensor:
        """The weight of this layer [C, D]."""
        return self.clip.weight

    def vectors(self, features: Tensor) -> Tensor:
        """Return a sequence [B, length, D] of a map [B, C, 1, T]; a `ConfigError` if it has several bands."""
        check(
            features.shape[2] == 1,
            f"The last feature map has {features.shape[2]} bands; it must have one. Use spectrograms with at most "
            "128 bands.",
        )
        return self.sequence(resampled(features[:, :, 0], self.length).transpose(1, 2))  # type: ignore[no-any-return]

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return logits [B, classes] of clips from the last feature map [B, C, 1, T]."""
        return self.scores(features, embedding, features)[1]

    def frames(self, features: Tensor) -> Tensor:
        """Return logits [B, length, classes] of frames."""
        return self.scores(features, features, features)[0]

    def scores(self, features: Tensor, embedding: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, length, classes] of frames and [B, classes] of clips."""
        vectors = self.vectors(smooth)
        if self.scores_frames:
            frames = self.frame(vectors)
            return frames, frames.amax(dim=1)
        return self.clip(vectors), self.clip(vectors.mean(dim=1))

    def output(self, features: Tensor) -> FramewiseOutput:
        """Return logits of clips and frames, and the embedding, of the last feature map [B, C, 1, T]."""
        vectors = self.vectors(features)
        return FramewiseOutput(self.clip(vectors.mean(dim=1)), features.mean(dim=(2, 3)), self.frame(vectors))


HEADS.update(
    mlp=MLPHead, fully_convolutional=FullyConvolutionalHead, attention_pooling=AttentionPoolingHead, frames=FrameHead
)


def smoothed(features: Tensor, width: int) -> Tensor:
    """Average a feature map [B, D, F, T] over `width` (odd) frames."""
    if width <= 1:
        return features
    return avg_pool2d(features, (1, width), stride=1, padding=(0, width // 2), count_include_pad=False)
