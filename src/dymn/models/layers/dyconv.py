"""Dynamic convolution (Sec. III-D, eqs. 1, 2 and 5), and its static counterpart with the same signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dymn.models.layers.context import Context
from dymn.models.layers.depthwise import depthwise

if TYPE_CHECKING:
    from typing_extensions import Self


class StaticConv2d(nn.Conv2d):
    """A plain convolution that ignores the context."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(c_in, c_out, kernel_size, stride, padding, dilation, groups, bias=False)
        # other forms support one stride and no dilation
        self.has_form = groups == c_out and isinstance(stride, int) and dilation == 1

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:  # noqa: D102
        if self.has_form and (form := depthwise.form(x, self.weight[:, 0], self.stride[0])):
            return form(x, self.weight[:, 0].expand(len(x), -1, -1, -1), self.stride[0])
        return super().forward(x)


class DynamicConv2d(nn.Module):
    """A convolution whose kernel is a mixture of K kernels, weighted for each clip by its context.

    The weights of the mixture are softmax((W h + b) / temperature); the convolution has no bias. It is either pointwise
    (kernel size 1, one group) or depthwise (as many groups as channels), the two kinds that a block consists of.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        context_size: int,
        n_kernels: int,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups
        self.temperature = 1.0
        self.weight = nn.Parameter(torch.empty(n_kernels, c_out, c_in // groups, kernel_size, kernel_size))
        self.coefficients = nn.Linear(context_size, n_kernels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion to the kernels [K * C_out, ...], as `to(memory_format=...)` takes no five dimensions."""

        def converted(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten(0, 1)).view(tensor.shape) if tensor.ndim == 5 else fn(tensor)

        return super()._apply(converted, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def kernel_attention(self, context: Context) -> Tensor:
        """Return the mixture weights [B, K] of eq. 2."""
        return torch.softmax(self.coefficients(context.vector) / self.temperature, dim=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Convolve [B, C_in, F, T] with one kernel for each clip; return [B, C_out, F', T']."""
        attention = self.kernel_attention(context)
        n_clips, _, n_bands, n_frames = x.shape
        # [B, C_out, C_in / groups, k, k]
        kernel = (attention @ self.weight.flatten(1)).view(n_clips, *self.weight.shape[1:])
        if self.groups == 1:
            product = torch.bmm(kernel.flatten(2), x.flatten(2))  # [B, C_out, F * T]: one matrix product a clip
            return product.view(n_clips, -1, n_bands, n_frames)
        return depthwise(x, kernel.squeeze(2), self.stride)
