"""Attention between the depthwise and the project convolution (Sec. III-F, VI-C): a dict from name to class.

Every class is built with (c_exp, context_size, stride) and called with the feature map and the context of the block.
`needs_context` states whether it reads that context; the others summarise the feature map themselves. Sizes that the
work that introduced a mechanism leaves open are those that match the counts of Table VIII.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.architectures import ATTENTION_REDUCTION, ATTENTIONS
from dymn.config import BlockConfig, round_channels
from dymn.models.layers.context import BatchNorm2d, Context, ContextGenerator
from dymn.models.layers.operation import Operation


def build_attention(block: BlockConfig) -> nn.Module:
    """Return the attention of a block that has one."""
    own = {"reduction": block.se_reduction} if block.attention == "se" else {}
    kind = ATTENTIONS[block.attention or ""]
    return kind(block.c_exp, block.context_size, block.stride, **own)  # type: ignore[no-any-return]


def hidden_channels(channels: int, reduction: int = ATTENTION_REDUCTION) -> int:
    """Return the size of a mechanism's hidden layer for a feature map of `channels`."""
    return round_channels(channels // reduction)


def strided(sequence: Tensor, stride: int, axis: int) -> Tensor:
    """Pool [B, H, F, 1] (axis 0) or [B, H, 1, T] (axis 1) to its length after a depthwise convolution of `stride`."""
    if stride == 1:
        return sequence
    window, step, padding = ((3, 1), (stride, 1), (1, 0)) if axis == 0 else ((1, 3), (1, stride), (0, 1))
    return functional.avg_pool2d(sequence, window, step, padding)


class CoordinateAttention(nn.Module):
    """Channel-frequency and channel-time weights from the two sequences of the context (eq. 7, Fig. 3; [15])."""

    needs_context = True

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.frequency = nn.Conv2d(context_size, channels, kernel_size=1)
        self.time = nn.Conv2d(context_size, channels, kernel_size=1)

    def maps(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return the weights [B, C, F, 1] and [B, C, 1, T] at the resolution after the depthwise convolution."""
        frequency, time = strided(context.frequency, self.stride, axis=0), strided(context.time, self.stride, axis=1)
        return torch.sigmoid(self.frequency(frequency)), torch.sigmoid(self.time(time))

    def coordinates(self, x: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the weights by their axis: "frequency" [B, C, F, 1] and "time" [B, C, 1, T]."""
        frequency, time = self.maps(context)
        return {"frequency": frequency, "time": time}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Weigh [B, C, F, T] along both axes."""
        return weighted(x, *self.maps(context))


@Operation
def weighted(x: Tensor, frequency: Tensor, time: Tensor) -> Tensor:
    """Multiply [B, C, F, T] by weights [B, C, F, 1] and [B, C, 1, T]."""
    return x * frequency * time


class ChannelFrequencyAttention(nn.Module):
    """Coordinate Attention without its channel-time weights (Sec. VI-C.2, Table IX)."""

    needs_context = True

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.frequency = nn.Conv2d(context_size, channels, kernel_size=1)

    def coordinates(self, x: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the weights, "frequency" [B, C, F, 1]."""
        return {"frequency": torch.sigmoid(self.frequency(strided(context.frequency, self.stride, axis=0)))}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Weigh the channels of [B, C, F, T] in each band."""
        return x * self.coordinates(x, context)["frequency"]


class ChannelTimeAttention(nn.Module):
    """Coordinate Attention without its channel-frequency weights (Sec. VI-C.2, Table IX)."""

    needs_context = True

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.time = nn.Conv2d(context_size, channels, kernel_size=1)

    def coordinates(self, x: Tensor, context: Context) -> dict[str, Tensor]:
        """Return the weights, "time" [B, C, 1, T]."""
        return {"time": torch.sigmoid(self.time(strided(context.time, self.stride, axis=1)))}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Weigh the channels of [B, C, F, T] in each frame."""
        return x * self.coordinates(x, context)["time"]


class OriginalCoordinateAttention(CoordinateAttention):
    """Coordinate Attention as introduced, with the two sequences taken from the feature map that it weighs ([15])."""

    needs_context = False

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__(channels, hidden_channels(channels), stride=1)
        self.context = ContextGenerator(channels, hidden_channels(channels), bias=True)

    def coordinates(self, x: Tensor, context: Context | None = None) -> dict[str, Tensor]:
        """Return the weights by their axis; the context of the block is not used."""
        return super().coordinates(x, self.context(x))

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Weigh [B, C, F, T] along both axes; the context of the block is not used."""
        return super().forward(x, self.context(x))


class SqueezeExcitation(nn.Module):
    """Channel weights from the mean of the feature map (eq. 4; [17]), as in MobileNetV3 but with a sigmoid."""

    needs_context = False

    def __init__(self, channels: int, context_size: int, stride: int, reduction: int = ATTENTION_REDUCTION) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights [B, C] for a feature map [B, C, F, T]."""
        return torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean(dim=(2, 3))))))

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Weigh the channels of [B, C, F, T]."""
        return x * self.weights(x)[..., None, None]


class StyleRecalibration(nn.Module):
    """SRM: channel weights from the mean and the standard deviation of each channel, each channel by itself ([20])."""

    needs_context = False
    EPSILON = 1e-5

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.style = nn.Parameter(torch.zeros(channels, 2))  # the channel-wise fully connected layer
        self.norm = BatchNorm2d(channels)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Weigh the channels of [B, C, F, T]."""
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        style = torch.stack([mean, torch.sqrt(variance + self.EPSILON)], dim=2)  # [B, C, 2]
        return x * torch.sigmoid(self.norm((style * self.style).sum(dim=2)[..., None, None]))


class GlobalResponseNorm(nn.Module):
    """GRN: each channel times its share of the L2 norms, scaled and shifted, added to the input ([50]).

    Scale and shift are one number each ("only two learnable parameters", Sec. II-B), which meets the 3.36 M of Table
    VIII; one of each for a channel would come to 3.37 M.
    """

    needs_context = False
    EPSILON = 1e-6

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Let the channels of [B, C, F, T] compete."""
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)  # [B, C, 1, 1]
        share = norm / (norm.mean(dim=1, keepdim=True) + self.EPSILON)
        out: Tensor = self.scale * (x * share) + self.shift + x
        return out


class TripletAttention(nn.Module):
    """TA: weights per pair of axes, from the maximum and mean along the third; the results are averaged ([23])."""

    needs_context = False
    AXES = (1, 2, 3)  # the axis that is pooled away: channels, frequency, time

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(PooledGate(norm=True) for _ in self.AXES)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Weigh [B, C, F, T] from three sides."""
        gated = []
        for axis, gate in zip(self.AXES, self.gates, strict=True):
            side = x.transpose(1, axis)  # the pooled axis stands where channels do
            gated.append((side * gate(side)).transpose(1, axis))
        return torch.stack(gated).mean(dim=0)


class BlockAttention(nn.Module):
    """CBAM: channel weights from mean and maximum through one shared perceptron, then weights for each place ([21])."""

    needs_context = False

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden_channels(channels), bias=False)
        self.excite = nn.Linear(hidden_channels(channels), channels, bias=False)
        self.gate = PooledGate(norm=False)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Weigh the channels of [B, C, F, T], then its places."""
        pooled = torch.stack([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))])  # [2, B, C]
        weights = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))).sum(dim=0))  # [B, C]
        x = x * weights[..., None, None]
        out: Tensor = x * self.gate(x)
        return out


class PooledGate(nn.Module):
    """Weights [B, 1, D, E] of a map [B, P, D, E] from its maximum and mean over P: a 7x7 convolution and a sigmoid."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = BatchNorm2d(1) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights."""
        return torch.sigmoid(self.norm(self.conv(torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1))))


class GlobalContext(nn.Module):
    """GC: a weighted mean over all places, through a bottleneck with layer norm, added to every place ([24])."""

    needs_context = False

    def __init__(self, channels: int, context_size: int, stride: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, 1, kernel_size=1, bias=False)
        self.squeeze = nn.Linear(channels, hidden_channels(channels))
        self.norm = nn.LayerNorm(hidden_channels(channels))
        self.excite = nn.Linear(hidden_channels(channels), channels)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Add one vector to each place of [B, C, F, T]."""
        shares = torch.softmax(self.key(x).flatten(2), dim=2)  # [B, 1, F * T]
        mean = torch.bmm(x.flatten(2), shares.transpose(1, 2)).flatten(1)  # [B, C]
        vector: Tensor = self.excite(functional.relu(self.norm(self.squeeze(mean))))
        return x + vector[..., None, None]


ATTENTIONS.update(
    ca=CoordinateAttention,
    ca_frequency=ChannelFrequencyAttention,
    ca_time=ChannelTimeAttention,
    ca_original=OriginalCoordinateAttention,
    ta=TripletAttention,
    srm=StyleRecalibration,
    se=SqueezeExcitation,
    grn=GlobalResponseNorm,
    cbam=BlockAttention,
    gc=GlobalContext,
)
