"""Dynamic ReLU, variant B (Sec. III-E, eqs. 3 and 6), and the static activations with the same signature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dymn.models.layers.context import Context
from dymn.models.layers.operation import Operation

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "identity": nn.Identity}


class StaticActivation(nn.Module):
    """One of `ACTIVATIONS`, blind to the context."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[name]()

    @property
    def context_free(self) -> nn.Module:
        """The activation, which compiled code may compute instead (see `dymn.native.norm`)."""
        return self.activation

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Apply the activation to [B, C, F, T]."""
        return self.activation(x)  # type: ignore[no-any-return]


class DynamicReLU(nn.Module):
    """The maximum of M linear maps of each channel, whose slopes and intercepts come from the context.

    Slopes lie in (0, 2) for the first map and (-1, 1) for the others, intercepts in (-0.5, 0.5). Without a context
    signal the first two maps are x and 0, the plain ReLU.
    """

    SLOPE_RANGE = 1.0
    INTERCEPT_RANGE = 0.5

    def __init__(self, channels: int, *, context_size: int, n_maps: int) -> None:
        super().__init__()
        self.n_maps = n_maps
        self.coefficients = nn.Linear(context_size, 2 * n_maps * channels)

    def maps(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts, each [B, C, M]."""
        theta = 2 * torch.sigmoid(self.coefficients(context.vector)) - 1
        theta = theta.view(theta.shape[0], -1, 2 * self.n_maps)  # [B, C, 2 M]
        slopes, intercepts = theta[..., : self.n_maps], theta[..., self.n_maps :]
        first = torch.zeros_like(slopes)
        first[..., 0] = 1.0
        return slopes * self.SLOPE_RANGE + first, intercepts * self.INTERCEPT_RANGE

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply eq. 3 to [B, C, F, T]."""
        slopes, intercepts = self.maps(context)
        return maximum_of_maps(x, slopes.to(x.dtype), intercepts.to(x.dtype))


@Operation
def maximum_of_maps(x: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    """Return the maximum over m of slope_m x + intercept_m, for x [B, C, F, T] and coefficients [B, C, M]."""
    a, b = (values[..., None, None].unbind(2) for values in (slopes, intercepts))  # M of [B, C, 1, 1]
    out = torch.addcmul(b[0], x, a[0])
    for slope, intercept in zip(a[1:], b[1:], strict=True):
        out = torch.maximum(out, torch.addcmul(intercept, x, slope))
    return out
