"""Each attention mechanism against the definition in the work that introduced it, computed place by place."""

import math

import numpy as np
import pytest
import torch

from dymn.models.layers import ATTENTIONS, ContextGenerator
from dymn.models.layers.attention import hidden_channels

NAMES = sorted(ATTENTIONS)  # before anything else adds to them
CHANNELS, BANDS, FRAMES, H = 16, 5, 6, 8


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def built(name, stride=1):
    torch.manual_seed(3)
    module = ATTENTIONS[name](CHANNELS, H, stride).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module


def weights(module):
    return {key: value.numpy() for key, value in module.state_dict().items()}


def norm(values, w, prefix, eps=1e-3):
    """Batch norm in evaluation mode over the last axis."""
    scale = w[f"{prefix}.weight"] / np.sqrt(w[f"{prefix}.running_var"] + eps)
    return (values - w[f"{prefix}.running_mean"]) * scale + w[f"{prefix}.bias"]


def hardswish(x):
    return x * np.clip(x + 3, 0, 6) / 6


def conv7(planes, kernel):
    """Correlate two planes with a 7x7 kernel each, padded with zeros, and add."""
    height, width = planes.shape[1:]
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for p in range(2):
                for a in range(7):
                    for b in range(7):
                        y, x = i + a - 3, j + b - 3
                        if 0 <= y < height and 0 <= x < width:
                            out[i, j] += kernel[0, p, a, b] * planes[p, y, x]
    return out


def pooled_gate(x, w, prefix, with_norm):
    out = conv7(np.stack([x.max(0), x.mean(0)]), w[f"{prefix}.conv.weight"])
    return sigmoid(norm(out[..., None], w, f"{prefix}.norm")[..., 0] if with_norm else out)


def se(x, w, context):
    hidden = np.maximum(w["squeeze.weight"] @ x.mean((1, 2)) + w["squeeze.bias"], 0)
    return x * sigmoid(w["excite.weight"] @ hidden + w["excite.bias"])[:, None, None]


def srm(x, w, context):
    out = np.empty_like(x)
    for c in range(len(x)):
        mean = x[c].sum() / x[c].size
        deviation = math.sqrt(((x[c] - mean) ** 2).sum() / x[c].size + 1e-5)
        z = w["style"][c, 0] * mean + w["style"][c, 1] * deviation
        z = (z - w["norm.running_mean"][c]) / math.sqrt(w["norm.running_var"][c] + 1e-3) * w["norm.weight"][c] + w[
            "norm.bias"
        ][c]
        out[c] = x[c] / (1 + math.exp(-z))
    return out


def grn(x, w, context):
    norms = [math.sqrt((plane**2).sum()) for plane in x]
    mean = sum(norms) / len(norms)
    return np.stack(
        [w["scale"] * plane * n / (mean + 1e-6) + w["shift"] + plane for plane, n in zip(x, norms, strict=True)]
    )


def ta(x, w, context):
    total = x * pooled_gate(x, w, "gates.0", True)  # pooled over channels: weights of (frequency, time)
    # over frequency: (channel, time)
    total = total + x * pooled_gate(x.transpose(1, 0, 2), w, "gates.1", True)[:, None, :]
    # over time: (frequency, channel)
    return (total + x * pooled_gate(x.transpose(2, 1, 0), w, "gates.2", True).T[:, :, None]) / 3


def cbam(x, w, context):
    def perceptron(v):
        return w["excite.weight"] @ np.maximum(w["squeeze.weight"] @ v, 0)

    x = x * sigmoid(perceptron(x.mean((1, 2))) + perceptron(x.max((1, 2))))[:, None, None]
    return x * pooled_gate(x, w, "gate", False)


def gc(x, w, context):
    places = x.reshape(len(x), -1)
    keys = w["key.weight"][0, :, 0, 0] @ places
    shares = np.exp(keys - keys.max())
    shares /= shares.sum()
    hidden = w["squeeze.weight"] @ (places @ shares) + w["squeeze.bias"]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * w["norm.weight"] + w["norm.bias"]
    return x + (w["excite.weight"] @ np.maximum(hidden, 0) + w["excite.bias"])[:, None, None]


def linear(sequence, w, prefix):
    """Apply a 1x1 convolution to a sequence [H, n]."""
    return w[f"{prefix}.weight"][:, :, 0, 0] @ sequence + w[f"{prefix}.bias"][:, None]


def ca(x, w, context):
    frequency, time = context
    return x * sigmoid(linear(frequency, w, "frequency"))[:, :, None] * sigmoid(linear(time, w, "time"))[:, None, :]


def ca_frequency(x, w, context):
    return x * sigmoid(linear(context[0], w, "frequency"))[:, :, None]


def ca_time(x, w, context):
    return x * sigmoid(linear(context[1], w, "time"))[:, None, :]


def ca_original(x, w, context):
    both = np.concatenate([x.mean(2), x.mean(1)], axis=1)  # [C, F + T]
    embedded = hardswish(norm(linear(both, w, "context.conv").T, w, "context.norm").T)
    return ca(x, w, (embedded[:, :BANDS], embedded[:, BANDS:]))


DEFINITIONS = {
    "ca": ca,
    "ca_frequency": ca_frequency,
    "ca_time": ca_time,
    "ca_original": ca_original,
    "ta": ta,
    "srm": srm,
    "se": se,
    "grn": grn,
    "cbam": cbam,
    "gc": gc,
}


def test_every_mechanism_has_a_definition_here():
    assert set(DEFINITIONS) == set(NAMES)


def test_follows_its_definition(name):
    module = built(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, CHANNELS, BANDS, FRAMES, generator=generator, dtype=torch.float64)
    context = (
        ContextGenerator(4, H)
        .double()
        .eval()(torch.randn(2, 4, BANDS, FRAMES, generator=generator, dtype=torch.float64))
    )
    with torch.no_grad():
        out = module(x, context).numpy()
        sequences = zip(context.frequency[..., 0].numpy(), context.time[:, :, 0].numpy(), strict=True)
    for clip, result, sequence in zip(x.numpy(), out, sequences, strict=True):
        assert np.allclose(result, DEFINITIONS[name](clip, weights(module), sequence), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (4, 6)])
def test_fits_any_size_behind_a_strided_convolution(name, stride, size):
    module = built(name, stride)
    context = ContextGenerator(4, H).double().eval()(torch.randn(3, 4, *size, dtype=torch.float64))
    x = torch.randn(3, CHANNELS, *(-(-n // stride) for n in size), dtype=torch.float64)
    assert module(x, context).shape == x.shape


@pytest.mark.parametrize(("key", "axis"), [("ca_frequency", 0), ("ca_time", 1)])
def test_pools_a_strided_sequence_with_its_zero_padding_counted(key, axis):
    """Kernel 3, stride 2, padding 1, as Fig. 3 says; the padding counts in the mean."""
    module = built(key, stride=2)
    context = ContextGenerator(4, H).double().eval()(torch.randn(1, 4, 5, 6, dtype=torch.float64))
    sequence = (context.frequency[0, ..., 0] if axis == 0 else context.time[0, :, 0]).detach().numpy()
    padded = np.pad(sequence, ((0, 0), (1, 1)))
    n = -(-sequence.shape[1] // 2)
    pooled = np.stack([padded[:, 2 * i : 2 * i + 3].sum(1) / 3 for i in range(n)], axis=1)
    x = torch.randn(1, CHANNELS, 3, 3, dtype=torch.float64)
    expected = DEFINITIONS[key](x[0].numpy(), weights(module), (pooled, pooled))
    assert np.allclose(module(x, context)[0].detach().numpy(), expected)


def test_hidden_layers_are_a_quarter_rounded_to_eight():
    assert [hidden_channels(c) for c in (16, 72, 184, 480, 960)] == [8, 24, 48, 120, 240]


def test_fresh_grn_changes_nothing_and_fresh_srm_halves():
    x = torch.randn(2, CHANNELS, 3, 4)
    assert torch.equal(ATTENTIONS["grn"](CHANNELS, H, 1)(x), x)
    assert torch.allclose(ATTENTIONS["srm"](CHANNELS, H, 1).eval()(x), x / 2)
