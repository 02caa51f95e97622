"""The inverted residual block, static or dynamic (Secs. III-A and III-B, Fig. 1)."""

from __future__ import annotations

from torch import Tensor, nn

from dymn.architectures import OWN_REDUCTIONS, check_block
from dymn.config import BlockConfig
from dymn.models.layers import CONTEXTS, Context, DynamicConv2d, DynamicReLU, StaticActivation, StaticConv2d
from dymn.models.layers.attention import build_attention, weighted
from dymn.models.layers.context import BatchNorm2d
from dymn.models.layers.depthwise import depthwise
from dymn.models.layers.dyrelu import maximum_of_maps
from dymn.models.layers.norm import normalised
from dymn.native import gradients, norm

depthwise.install(gradients.fits_depthwise, gradients.depthwise)
maximum_of_maps.install(gradients.fits_maximum, gradients.maximum)
weighted.install(gradients.fits_weighted, gradients.weighted)
normalised.install(norm.fits_normalised, norm.normalised)


class Stage(nn.Module):
    """Convolution, batch norm and activation at one of the three positions of a block, each dynamic or static."""

    def __init__(
        self,
        block: BlockConfig,
        position: str,
        geometry: tuple[int, int, int, int | tuple[int, int], int],
        activation: str,
    ) -> None:
        super().__init__()
        c_in, c_out = geometry[:2]  # of (c_in, c_out, kernel_size, stride, groups)
        feed = CONTEXTS[block.context].feed

        def dynamic_conv(size: int) -> nn.Module:
            return DynamicConv2d(*geometry, context_size=size, n_kernels=block.n_kernels)  # type: ignore[arg-type]

        def dynamic_relu(size: int) -> nn.Module:
            return DynamicReLU(c_out, context_size=size, n_maps=block.n_maps)

        self.conv: nn.Module = StaticConv2d(*geometry, dilation=block.dilation if position == "depthwise" else 1)
        if position in block.dynamic_convs:
            self.conv = feed(dynamic_conv, c_in, block.context_size, OWN_REDUCTIONS["conv"])
        self.norm = BatchNorm2d(c_out)
        self.activation: nn.Module = StaticActivation(activation)
        if position in block.dynamic_relus:
            self.activation = feed(dynamic_relu, c_out, block.context_size, OWN_REDUCTIONS["relu"])

    def forward(self, x: Tensor, context: Context | None) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F', T']."""
        return normalised(self.conv(x, context), self.norm, self.activation, context)


class Skip(nn.Module):
    """Used if a block has no expansion or no attention."""

    def forward(self, x: Tensor, context: Context | None) -> Tensor:
        """Return x."""
        return x


class NoContext(nn.Module):
    """Used if no part of a block needs a context."""

    def forward(self, x: Tensor) -> None:
        """Return None."""


class InvertedResidual(nn.Module):
    """Expand, filter each channel, weigh, project; add the input where shapes agree."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        c = config
        check_block(c)
        attention = build_attention(c) if c.attention else Skip()
        generator = CONTEXTS[c.context]
        stride = c.strides[0] if c.time_stride is None else c.strides
        needs_context = (c.is_dynamic and generator.feeds_parts) or getattr(attention, "needs_context", False)
        self.context = generator(c.c_in, c.context_size) if needs_context else NoContext()
        self.expand = Stage(c, "expand", (c.c_in, c.c_exp, 1, 1, 1), c.activation) if c.c_exp != c.c_in else Skip()
        self.depthwise = Stage(c, "depthwise", (c.c_exp, c.c_exp, c.kernel_size, stride, c.c_exp), c.activation)
        self.attention = attention
        self.project = Stage(c, "project", (c.c_exp, c.c_out, 1, 1, 1), "identity")
        self.has_residual = c.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F', T']."""
        context = self.context(x)
        out: Tensor = self.expand(x, context)
        out = self.depthwise(out, context)
        out = self.attention(out, context)
        out = self.project(out, context)
        return x + out if self.has_residual else out
