"""Dy-ReLU: the fast gradient against autograd's own, in float64."""

import pytest
import torch

from dymn.models.layers import Context, DynamicReLU
from dymn.models.layers.dyrelu import maximum_of_maps


@pytest.mark.parametrize("n_maps", [1, 2, 3])
def test_gradient_is_that_of_the_definition(n_maps):
    generator = torch.Generator().manual_seed(n_maps)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    slopes, intercepts = (
        torch.randn(2, 3, n_maps, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(maximum_of_maps, (x, slopes, intercepts))
    naive = (x.unsqueeze(-1) * slopes[:, :, None, None] + intercepts[:, :, None, None]).amax(dim=-1)
    assert torch.allclose(maximum_of_maps(x, slopes, intercepts), naive)
    with torch.no_grad():
        assert torch.allclose(maximum_of_maps(x, slopes, intercepts), naive)


def test_starts_as_a_plain_relu():
    layer = DynamicReLU(3, context_size=4, n_maps=2)
    torch.nn.init.zeros_(layer.coefficients.weight)
    torch.nn.init.zeros_(layer.coefficients.bias)
    x = torch.randn(2, 3, 4, 5)
    vector = torch.randn(2, 4)
    point = vector[..., None, None]
    assert torch.equal(layer(x, Context(vector, point, point)), x.relu())
