"""Dy-ReLU and Coordinate Attention, compiled and not: values and gradients against autograd in float64.

Whole networks too.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn import create_model
from dymn.models.layers.attention import weighted
from dymn.models.layers.depthwise import depthwise
from dymn.models.layers.dyrelu import maximum_of_maps
from dymn.models.layers.operation import Operation
from dymn.native import ops
from test_benchmarks import load as load_benchmark

quick = settings(deadline=None, max_examples=40)
SIZES = (st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 50), st.integers(1, 3))


def naive_maximum(x, slopes, intercepts):
    return (x.unsqueeze(-1) * slopes[:, :, None, None] + intercepts[:, :, None, None]).amax(dim=-1)


def naive_weights(x, frequency, time):
    return x * frequency * time


def values_and_gradients(function, kind, tensors):
    leaves = [tensor.detach().to(kind, copy=True).requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(kind))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(form, naive, tensors, n_threads=1):
    """Compiled, within 2e-6 of float64; without compiled code, sums of a map's gradients also round in float32."""
    exact = values_and_gradients(naive, torch.float64, tensors)
    bounds = [2e-6 * max(1.0, float(truth.abs().max())) for truth in exact]
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = values_and_gradients(form, torch.float32, tensors)
    finally:
        torch.set_num_threads(before)
    if ops.library() is None:
        bounds = [bound + tensors[0][0, 0].numel() * 2.0**-24 for bound in bounds]
    for one, truth, bound in zip(found, exact, bounds, strict=True):
        assert float((one - truth).abs().max()) <= bound


@pytest.fixture
def no_compiled_code(monkeypatch):
    monkeypatch.setattr(ops, "library", lambda: None)


@quick
@given(*SIZES)
def test_dynamic_relu(n_clips, n_channels, n_bands, n_frames, n_threads):
    generator = torch.Generator().manual_seed(n_bands)
    x = torch.randn(n_clips, n_channels, n_bands, n_frames, generator=generator)
    coefficients = torch.randn(2, n_clips, n_channels, 2, generator=generator)
    assert_same(maximum_of_maps, naive_maximum, (x, *coefficients), n_threads)


@quick
@given(*SIZES)
def test_coordinate_weights(n_clips, n_channels, n_bands, n_frames, n_threads):
    generator = torch.Generator().manual_seed(n_bands)
    x = torch.randn(n_clips, n_channels, n_bands, n_frames, generator=generator)
    weights = (
        torch.rand(n_clips, n_channels, n_bands, 1, generator=generator),
        torch.rand(n_clips, n_channels, 1, n_frames, generator=generator),
    )
    assert_same(weighted, naive_weights, (x, *weights), n_threads)


@pytest.mark.parametrize("form", ["relu", "weights"])
@pytest.mark.parametrize("size", [(1, 1, 18, 38), (2, 3, 1, 1), (3, 4, 20, 50)])
def test_without_compiled_code(form, size, no_compiled_code):
    generator = torch.Generator().manual_seed(0)
    x, coefficients = torch.randn(size, generator=generator), torch.randn(2, *size[:2], 2, generator=generator)
    if form == "relu":
        assert_same(maximum_of_maps, naive_maximum, (x, *coefficients))
    else:
        assert_same(weighted, naive_weights, (x, x[..., :1].sigmoid(), x[:, :, :1].sigmoid()))


def test_shapes_that_broadcast_are_left_to_pytorch():
    x, slopes, frequency = torch.randn(2, 3, 5, 7), torch.randn(1, 3, 2), torch.rand(2, 1, 5, 1)
    assert torch.equal(weighted(x, frequency, torch.ones(1)), x * frequency)
    assert torch.allclose(maximum_of_maps(x, slopes, -slopes), naive_maximum(x, slopes, -slopes), atol=1e-6)


@pytest.mark.parametrize("name", ["dymn10", "mn10"])
def test_compilers_and_transforms_of_pytorch_see_its_own_operations(name):
    model = create_model(name, 5, width=0.1, generator=torch.Generator().manual_seed(0)).eval()
    log_mel = torch.randn(2, 1, 32, 40)
    with torch.no_grad():
        whole = torch.compile(model, backend="eager", fullgraph=True)(log_mel)
        assert torch.allclose(whole.logits, model(log_mel).logits, atol=1e-5)
    x, kernel = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 3, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(depthwise(x, kernel, 1).sum(), kernel)
    assert torch.allclose(torch.func.grad(lambda k: depthwise(x, k, 1).sum())(kernel.detach()), expected, atol=1e-4)


def gradients(model, log_mel):
    model.zero_grad()
    model.train()(log_mel).embedding.square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_exported_operations_take_any_number_of_clips():
    class Operations(torch.nn.Module):
        def forward(self, x, kernel, coefficients, frequency, time):
            return weighted(maximum_of_maps(depthwise(x, kernel, 1), coefficients, coefficients), frequency, time)

    shapes = ((8, 6, 7), (8, 3, 3), (8, 2), (8, 6, 1), (8, 1, 7))
    given = tuple(torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
    some, free = tuple(values[:2] for values in given), tuple({0: torch.export.Dim.DYNAMIC} for _ in shapes)
    program = torch.export.export(Operations(), some, dynamic_shapes=free, strict=False).module()
    torch.testing.assert_close(program(*given), Operations()(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dymn10", "mn10"])
def test_a_whole_network_has_the_gradients_of_float64(name, monkeypatch):
    model = create_model(name, 5, width=0.1, generator=torch.Generator().manual_seed(0))
    log_mel = torch.randn(3, 1, 64, 70, generator=torch.Generator().manual_seed(1))
    with_compiled = gradients(model, log_mel)
    exact = gradients(model.double(), log_mel.double())
    model.float()
    monkeypatch.setattr(ops, "library", lambda: None)
    without = gradients(model, log_mel)
    scale = max(float(gradient.abs().max()) for gradient in exact)
    for one, other, truth in zip(with_compiled, without, exact, strict=True):
        rounding = float((other - truth).abs().max()) + 1e-6 * scale
        assert float((one - truth).abs().max()) < 5 * rounding


def test_whoever_counts_operations_sees_them():
    """A dispatch mode, such as the counter of multiply-adds, must meet PyTorch's own operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model = create_model("dymn10", 5, width=0.1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 64, 64))
    assert counter.get_flop_counts()["Global"][torch.ops.aten.convolution] > 0
    assert not ops.is_compiled(torch.zeros(1, dtype=torch.float64))


def second_derivative(model, log_mel, vector):
    """The product of the Hessian of a loss with a vector, for the input of a network."""
    x = log_mel.clone().requires_grad_()
    loss = model(x).logits.square().sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad((first * vector).sum(), x)[0]


@pytest.mark.parametrize("name", ["dymn04", "mn04"])
def test_second_derivatives_are_right(name):
    lively = load_benchmark("lively")
    model = lively.lively(
        create_model(name, 5, width=0.1, generator=torch.Generator().manual_seed(0)), lively.clips(4, 32, 40)
    ).eval()
    vector = torch.randn(2, 1, 32, 40, generator=torch.Generator().manual_seed(1))
    log_mel = lively.clips(2, 32, 40) + 0.1 * vector.flip(0)
    exact = second_derivative(model.double(), log_mel.double(), vector.double())
    found = second_derivative(model.float(), log_mel, vector)
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()


def test_functional_gradients():
    model = create_model("dymn04", 5, width=0.1, generator=torch.Generator().manual_seed(0)).eval()
    log_mel = torch.randn(2, 1, 32, 40, generator=torch.Generator().manual_seed(1))
    found = torch.func.grad(lambda x: model(x).logits.square().sum())(log_mel)
    x = log_mel.clone().requires_grad_()
    model(x).logits.square().sum().backward()
    assert torch.allclose(found, x.grad, rtol=1e-4, atol=1e-6 * float(x.grad.abs().max()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_in_any_layout(layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 9, 11, generator=generator).to(memory_format=layout)
    kernel, slopes = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(2, 4, 2, generator=generator)
    weights = torch.rand(2, 4, 9, 1, generator=generator), torch.rand(2, 4, 1, 11, generator=generator)
    for operation, arguments in ((depthwise, (kernel, 2)), (maximum_of_maps, (slopes, -slopes)), (weighted, weights)):
        assert torch.allclose(operation(x, *arguments), operation.equation(x.contiguous(), *arguments), atol=1e-5)


def test_an_installed_form_is_used_where_it_fits():
    double = Operation(lambda x: 2 * x)
    double.install(lambda x: len(x) > 1, lambda x: torch.zeros_like(x))
    assert double(torch.ones(1)).tolist() == [2] and double(torch.ones(2)).tolist() == [0, 0]
