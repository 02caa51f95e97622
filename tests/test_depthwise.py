"""The depthwise convolution and its gradients against PyTorch in float64, compiled and not, at every size."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dymn.models.layers import StaticConv2d
from dymn.models.layers.depthwise import depthwise
from dymn.native import libraries, ops

quick = settings(deadline=None, max_examples=60)


def reference(x, kernel, stride):
    maps = x.shape[0] * x.shape[1]
    k = kernel.shape[-1]
    out = functional.conv2d(
        x.reshape(1, maps, *x.shape[2:]), kernel.reshape(maps, 1, k, k), stride=stride, padding=k // 2, groups=maps
    )
    return out.view(*x.shape[:2], *out.shape[2:])


def gradients(form, x, kernel, stride, gradient):
    leaves = [tensor.clone().requires_grad_() for tensor in (x, kernel)]
    out = form(*leaves, stride)
    out.backward(gradient.to(out.dtype))
    return out.detach(), leaves[0].grad, leaves[1].grad


def check(shape, k, stride, seed, n_threads=1):
    generator = torch.Generator().manual_seed(seed)
    x, kernel = torch.randn(shape, generator=generator), torch.randn(*shape[:2], k, k, generator=generator)
    gradient = torch.randn(reference(x, kernel, stride).shape, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        got = gradients(depthwise, x, kernel, stride, gradient)
    finally:
        torch.set_num_threads(before)
    for one, exact in zip(got, gradients(reference, x.double(), kernel.double(), stride, gradient), strict=True):
        assert float((one - exact).abs().max()) <= 2e-6 * max(1.0, float(exact.abs().max()))


@quick
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([3, 5]),
    st.sampled_from([1, 2]),
    st.integers(1, 4),
)
def test_values_and_gradients(n_clips, n_channels, n_bands, n_frames, k, stride, n_threads):
    check((n_clips, n_channels, n_bands, n_frames), k, stride, n_bands, n_threads)


def test_values_and_gradients_without_compiled_code(monkeypatch):
    monkeypatch.setattr(ops, "library", lambda: None)
    check((2, 3, 9, 17), 5, 2, 0)
    check((2, 3, 9, 17), 3, 1, 0)


def test_a_gradient_that_nobody_wants_is_not_made():
    x, kernel = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 3, 3, requires_grad=True)
    depthwise(x, kernel, 1).sum().backward()
    assert kernel.grad is not None and x.grad is None


def test_other_precisions_sizes_and_layouts():
    x, kernel = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 3, 3)
    assert torch.allclose(depthwise(x.double(), kernel.double(), 2), reference(x.double(), kernel.double(), 2))
    assert torch.allclose(depthwise(x, torch.ones(2, 4, 7, 7), 1), reference(x, torch.ones(2, 4, 7, 7), 1), atol=1e-4)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.allclose(depthwise(channels_last, kernel, 1), reference(x, kernel, 1), atol=1e-5)
    turned = x.transpose(2, 3)
    assert torch.allclose(depthwise(turned, kernel, 1), reference(turned.contiguous(), kernel, 1), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_static_convolution_is_the_one_of_pytorch(stride):
    conv, x = StaticConv2d(6, 6, 5, stride, groups=6), torch.randn(3, 6, 11, 14, requires_grad=True)
    out = conv(x)
    expected = functional.conv2d(x, conv.weight, stride=stride, padding=2, groups=6)
    assert torch.allclose(out, expected, atol=1e-5)
    weights = torch.randn_like(out)
    for one, other in zip(
        *(torch.autograd.grad((y * weights).sum(), (x, conv.weight)) for y in (out, expected)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-4)


def test_shapes_that_do_not_fit_are_refused_as_pytorch_refuses_them():
    """Compiled code that took them would read and write behind the ends of its tensors."""
    x, conv = torch.randn(2, 4, 9, 8), StaticConv2d(4, 4, 3, 2, groups=4)
    for wrong in (x[:, :3], torch.cat([x, x], dim=1), x[..., :0], x[:, :, :0]):
        with pytest.raises(RuntimeError):
            conv(wrong)
        with pytest.raises(RuntimeError):
            depthwise(wrong, torch.randn(2, 4, 3, 3), 2)
    with pytest.raises(RuntimeError):
        depthwise(x, torch.randn(1, 4, 3, 3), 1)
    assert depthwise(x[:0], torch.randn(0, 4, 3, 3), 2).shape == (0, 4, 5, 4)
    assert torch.allclose(conv(x[0]), conv(x)[0], atol=1e-6)
    groups = StaticConv2d(4, 4, 3, groups=2)  # neither depthwise nor pointwise
    assert torch.equal(groups(x), functional.conv2d(x, groups.weight, padding=1, groups=2))


def test_defaults_of_pytorch_do_not_reach_the_compiled_code():
    x, kernel = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 3, 3)
    expected = depthwise(x, kernel, 2)
    try:
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
        got = depthwise(x, kernel, 2)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(got, expected)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_is_compiled_where_there_is_a_compiler():
    """The fall-back is silent; this test is not."""
    code = "from dymn.native import libraries; raise SystemExit(not libraries())"
    environment = {name: value for name, value in os.environ.items() if name != "DYMN_NATIVE"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    assert libraries() or os.environ.get("DYMN_NATIVE") == "0"
