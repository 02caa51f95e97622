"""Batch norm in training with the activation that follows it, compiled: values, gradients and statistics of PyTorch."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dymn import create_model
from dymn.models.layers.context import BatchNorm2d
from dymn.models.layers.dyrelu import StaticActivation
from dymn.models.layers.norm import normalised
from dymn.native import ops
from dymn.training.distributed import GlobalBatchNorm2d

ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "hardswish": nn.Hardswish}
compiled = pytest.mark.skipif(ops.library() is None, reason="is about compiled code")


def norm_of(n_channels):
    generator = torch.Generator().manual_seed(n_channels)
    norm = BatchNorm2d(n_channels)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(n_channels, generator=generator))
        norm.bias.copy_(torch.randn(n_channels, generator=generator))
    return norm


def results(operation, x, norm, activation, gradient):
    """Return the output, the gradients of map, weight and bias, and the running statistics."""
    norm, leaf = copy.deepcopy(norm), x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = operation(leaf, norm, activation)
    out.backward(gradient)
    return [out.detach(), leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def compute(n_threads, *arguments):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        return results(*arguments)
    finally:
        torch.set_num_threads(before)


@compiled
@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 20), st.integers(1, 50)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    loudness=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_values_gradients_and_statistics_are_pytorch_s(shape, activation, loudness):
    """Those of float64, as exactly as PyTorch's own in float32 or within 1e-6 (values) and 1e-5 (gradients)."""
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])
    generator = torch.Generator().manual_seed(shape[3])
    x = loudness * (torch.randn(shape, generator=generator) + 0.5)
    norm, module = norm_of(shape[1]), ACTIVATIONS[activation]()
    assert normalised.form(x, norm, module) is not None
    y = copy.deepcopy(norm).double()(x.double())
    near_kink = torch.stack([(y - place).abs() < 1e-4 for place in (-3, 0, 3)]).any(dim=0)  # rounding decides there
    gradient = torch.randn(shape, generator=generator).masked_fill(near_kink, 0)
    scale = float((norm.weight.detach() / (x.var(dim=(0, 2, 3), correction=0) + norm.eps).sqrt()).abs().max())
    found = compute(1, normalised, x, norm, module, gradient)
    usual = results(normalised.equation, x, norm, module, gradient)
    exact = results(normalised.equation, x.double(), copy.deepcopy(norm).double(), module, gradient.double())
    for i, (one, other, truth) in enumerate(zip(found, usual, exact, strict=True)):
        bound = (1e-5 if i in (1, 2, 3) else 1e-6) * float(truth.abs().max()) + 2 * float((other - truth).abs().max())
        if i == 1:  # the gradient of the map is a difference of values that may be larger
            bound += 1e-6 * scale * float(gradient.abs().max())
        assert float((one - truth).abs().max()) <= bound + 1e-9
    assert all(torch.equal(a, b) for a, b in zip(found, compute(2, normalised, x, norm, module, gradient), strict=True))


@compiled
def test_a_mean_far_from_zero_costs_no_variance():
    x = 1000.0 + torch.randn(8, 1, 64, 100, generator=torch.Generator().manual_seed(0))
    norm = norm_of(1)
    norm.momentum = 1.0
    normalised(x, norm, nn.Identity())
    assert norm.running_var.item() == pytest.approx(x.double().var().item(), rel=1e-6)
    assert norm.running_mean.item() == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_what_is_not_finite_stays_seen(activation):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for value in (float("nan"), float("inf")):
        x[1, 1, 2, 3] = value
        norm = norm_of(3)
        out = normalised(x, norm, ACTIVATIONS[activation]())
        assert out[:, 1].isnan().all() and out[:, ::2].isfinite().all()
        assert norm.running_var[1].isnan()


def test_one_value_for_each_channel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        normalised(torch.zeros(1, 3, 1, 1), norm_of(3), nn.ReLU())


def changed(norm, **values):
    for name, value in values.items():
        setattr(norm, name, value)
    return norm


def hooked(norm):
    norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    return norm


@pytest.mark.parametrize(
    ("change", "cast"),
    [
        (nn.Module.eval, nn.Identity()),
        (partial(changed, momentum=None), nn.Identity()),
        (hooked, nn.Identity()),
        (nn.Module.double, torch.Tensor.double),
        (nn.Module.bfloat16, torch.Tensor.bfloat16),
        (nn.Module.train, partial(torch.Tensor.to, memory_format=torch.channels_last)),
        (lambda norm: nn.BatchNorm2d(3, track_running_stats=False), nn.Identity()),
        (lambda norm: nn.BatchNorm2d(3, affine=False), nn.Identity()),
        (lambda norm: GlobalBatchNorm2d(3), nn.Identity()),
        (lambda norm: nn.SyncBatchNorm(3), nn.Identity()),
    ],
)
def test_anything_else_is_left_to_pytorch(change, cast):
    x, norm = cast(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))), change(norm_of(3))
    assert normalised.form(x, norm, nn.ReLU()) is None
    if not isinstance(norm, (GlobalBatchNorm2d, nn.SyncBatchNorm)):  # which need other processes, or a GPU
        assert torch.equal(normalised(x, copy.deepcopy(norm), nn.ReLU()), nn.ReLU()(norm(x)))


def test_autocast_is_left_to_pytorch():
    with torch.autocast("cpu", torch.bfloat16):
        assert normalised.form(torch.zeros(2, 3, 4, 5), norm_of(3), nn.ReLU()) is None


class Doubled(nn.Module):
    """An activation of a user, which contains a known one and does more."""

    activation = nn.ReLU()

    def forward(self, x):
        return 2 * self.activation(x)


@compiled
@pytest.mark.parametrize("own", [nn.ELU(), Doubled()])
def test_activations_without_compiled_code_are_called(own):
    x, norm = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)), norm_of(3)
    torch.testing.assert_close(normalised(x, copy.deepcopy(norm), own), own(norm(x)))


@compiled
@pytest.mark.parametrize("static", [nn.ELU(), StaticActivation("relu")])
def test_other_activations_and_hooks_are_called(static):
    """An activation without compiled code, or one that someone watches, gets the normalised map."""
    seen = []
    static.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x, norm = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)), norm_of(3)
    expected = static(copy.deepcopy(norm)(x))
    torch.testing.assert_close(normalised(x, norm, static), expected)
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_second_derivatives(activation):
    """Those of the compiled form are the equation's, and the equation passes PyTorch's check of gradients."""
    generator = torch.Generator().manual_seed(0)
    x, module, norm = torch.randn(2, 2, 2, 3, generator=generator), ACTIVATIONS[activation](), norm_of(2)
    precise = copy.deepcopy(norm).double()
    assert torch.autograd.gradcheck(lambda x: normalised(x, precise, module), (x.double().requires_grad_(),))

    def second(operation, x, norm):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(operation(x, norm, module).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = second(normalised.equation, x.double(), precise)
    torch.testing.assert_close(second(normalised, x, norm).double(), expected, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("name", ["dymn04", "mn04"])
def test_a_network_learns_as_without(name, monkeypatch):
    """The losses of ten steps agree to rounding."""
    log_mel = torch.randn(6, 1, 48, 60, generator=torch.Generator().manual_seed(1))
    target = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))

    def losses():
        model = create_model(name, 5, width=0.1, generator=torch.Generator().manual_seed(0)).train()
        model.head.eval()  # no dropout
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        found = []
        for _ in range(10):
            loss = nn.functional.binary_cross_entropy_with_logits(model(log_mel).logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    with_compiled = losses()
    monkeypatch.setattr(normalised, "_forms", [])
    assert with_compiled == pytest.approx(losses(), rel=1e-5)
    assert with_compiled[-1] < with_compiled[0]
