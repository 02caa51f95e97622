"""Every variant computes the same with feature maps and kernels in the memory format channels_last."""

import copy

import pytest
import torch
from torch import nn

from dymn import create_model
from dymn.architectures import CONTEXTS, HEADS
from dymn.models.layers import ATTENTIONS
from dymn.native import libraries

ATTENTION_NAMES = ("ca", "ca_frequency", "ca_time", "ca_original", "ta", "srm", "se", "grn", "cbam", "gc")
VARIANTS = {
    **{name: {"attention": name} for name in ATTENTION_NAMES},
    **{name: {"context": name} for name in CONTEXTS},
    **{name: {"head": name} for name in HEADS if name != "frames"},
    "no attention": {"attention": None},
    "all relus": {"dynamic_relus": ("expand", "depthwise", "project")},
    "static convolutions": {"dynamic_convs": ()},
    "three maps": {"n_maps": 3},
    "static": {"dynamic_blocks": "none", "attention": "se", "attention_blocks": "se"},
}


def outputs(network, x):
    """Return logits in evaluation, then logits and gradients of a training step without dropout."""
    evaluated = network.eval()(x).logits.detach()
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits = network(x).logits
    logits.square().mean().backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return evaluated, logits.detach(), torch.cat(gradients)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_memory_format_changes_nothing(variant, monkeypatch):
    if libraries():
        monkeypatch.setattr("dymn.native.ops.is_compiled", lambda *tensors: False)
    network = create_model(
        "dymn04", 7, width=0.1, generator=torch.Generator().manual_seed(0), **VARIANTS[variant]
    ).double()
    x = torch.randn(3, 1, 64, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert last.last.conv.weight.shape == network.last.conv.weight.shape
    assert {name: tensor.shape for name, tensor in last.state_dict().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }
    expected, found = outputs(network, x), outputs(last, x.to(memory_format=torch.channels_last))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)


def test_the_table_has_every_attention():
    assert set(ATTENTION_NAMES) <= set(ATTENTIONS)


@pytest.mark.skipif(not libraries(), reason="there is no compiled code here")
def test_nor_with_compiled_layers():
    network = create_model("dymn04", 7, width=0.1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 1, 64, 50, generator=torch.Generator().manual_seed(1))
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    for one, other in zip(outputs(network, x), outputs(last, x.to(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
