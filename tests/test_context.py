"""The Context Generation Module and its variants of Table XII, against plain formulas."""

import pytest
import torch

from dymn.models.layers import CONTEXTS, Context, DynamicConv2d, DynamicReLU
from dymn.models.layers.context import OwnContext

C_IN, H, BANDS, FRAMES = 6, 8, 5, 7


@pytest.fixture
def x():
    return torch.randn(2, C_IN, BANDS, FRAMES, generator=torch.Generator().manual_seed(0))


def embedded(sequence, conv, norm):
    """Embed a sequence [B, C, n] by hand: linear layer, batch norm in evaluation mode, hard swish."""
    out = torch.einsum("hc,bcn->bhn", conv.weight[:, :, 0, 0], sequence)
    out = (out - norm.running_mean[:, None]) / torch.sqrt(norm.running_var + 1e-3)[:, None]
    out = out * norm.weight[:, None] + norm.bias[:, None]
    return out * (out + 3).clamp(0, 6) / 6


def test_shared_context_is_the_mean_over_all_bands_and_frames(x):
    module = CONTEXTS["shared"](C_IN, H).eval()
    context = module(x)
    frequency, time = (embedded(x.mean(axis), module.conv, module.norm) for axis in (3, 2))
    assert torch.allclose(context.frequency[..., 0], frequency, atol=1e-6)
    assert torch.allclose(context.time[:, :, 0], time, atol=1e-6)
    assert torch.allclose(context.vector, (frequency.sum(2) + time.sum(2)) / (BANDS + FRAMES), atol=1e-6)


def test_separate_context_has_weights_for_each_sequence(x):
    module = CONTEXTS["separate"](C_IN, H).eval()
    context = module(x)
    frequency, time = (
        embedded(x.mean(3), module.conv, module.norm),
        embedded(x.mean(2), module.time_conv, module.time_norm),
    )
    assert torch.allclose(context.frequency[..., 0], frequency, atol=1e-6)
    assert torch.allclose(context.time[:, :, 0], time, atol=1e-6)
    assert torch.allclose(context.vector, torch.cat([frequency, time], 2).mean(2), atol=1e-6)


def test_concatenated_context_keeps_both_means(x):
    module = CONTEXTS["concatenated"](C_IN, H).eval()
    context = module(x)
    frequency, time = (embedded(x.mean(axis), module.conv, module.norm) for axis in (3, 2))
    assert torch.allclose(context.vector, torch.cat([frequency.mean(2), time.mean(2)], 1), atol=1e-6)


def test_own_context_comes_from_the_part_s_own_input(x):
    part = DynamicConv2d(C_IN, 4, 1, context_size=3, n_kernels=2)
    torch.nn.init.normal_(part.weight)
    module = OwnContext(part, C_IN, 3)
    vector = (x.mean((2, 3)) @ module.squeeze.weight.T + module.squeeze.bias).clamp(min=0)
    expected = part(x, Context(vector, vector, vector))
    assert torch.allclose(module(x, None), expected)


@pytest.mark.parametrize(("name", "length"), [("shared", H), ("separate", H), ("concatenated", 2 * H), ("own", 16)])
def test_feed_builds_a_part_for_the_vector_it_gets(name, length):
    lengths = []

    def part(size):
        lengths.append(size)
        return DynamicReLU(64, context_size=size, n_maps=2)

    module = CONTEXTS[name].feed(part, 64, H, 4)
    assert lengths == [length]
    assert isinstance(module, OwnContext) == (name == "own")
