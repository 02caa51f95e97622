"""Networks of several input channels: how published weights are adapted, checkpoints, and what needs one channel."""

import pytest
import torch

from dymn import FeatureExtractor, Tagger, create_model, load_model
from dymn.config import ModelCard
from dymn.errors import ConfigError
from dymn.export import build
from dymn.profiling import count
from dymn.runtime.fused import fuse
from dymn.runtime.opening import open_backend


@pytest.fixture
def log_mel():
    return torch.randn(2, 1, 128, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_chans", [2, 3, 5])
def test_equal_channels_give_the_published_output(log_mel, in_chans):
    mono, several = load_model("dymn04_open"), load_model("dymn04_open", in_chans=in_chans)
    assert several.stem.conv.weight.shape[1] == in_chans == several.config.in_chans and not several.training
    torch.testing.assert_close(
        several(log_mel.expand(-1, in_chans, -1, -1)).logits, mono(log_mel).logits, rtol=1e-4, atol=1e-4
    )
    assert several.card.labels == mono.card.labels and several.card.metrics == {} == several.card.provenance
    only = torch.zeros(2, in_chans, 128, 60)
    only[:, -1:] = in_chans * log_mel  # each channel counts alike
    torch.testing.assert_close(several.stem.conv(only), mono.stem.conv(log_mel), rtol=1e-4, atol=1e-4)
    back = several.reset_input(1)
    torch.testing.assert_close(back(log_mel).logits, mono(log_mel).logits, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_keeps_them(tmp_path):
    network = create_model("mn01", 3, in_chans=2, generator=torch.Generator().manual_seed(0)).eval()
    network.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    x = torch.randn(1, 2, 64, 40, generator=torch.Generator().manual_seed(1))
    assert loaded.config.in_chans == 2 and torch.equal(loaded(x).logits, network(x).logits)
    assert [tuple(feature.shape[:2]) for feature in FeatureExtractor(loaded, [0])(x)] == [(1, 8)]
    assert count(network).parameters == sum(parameter.numel() for parameter in network.parameters())
    with pytest.raises(ConfigError, match=r"in_chans is 2 and cannot be changed to 3.*must be 1"):
        loaded.reset_input(3)
    assert load_model(tmp_path, in_chans=1).config.in_chans == 1


def test_what_needs_one_channel_says_so(log_mel, tmp_path):
    network = create_model("mn01", 2, in_chans=2)
    network.card = ModelCard(labels=("a", "b"))
    for use in (lambda: Tagger(network, "cpu"), lambda: build(network), lambda: fuse(network.eval())):
        with pytest.raises(ConfigError, match=r"one input channel, but in_chans is 2.*reset_input\(1\)"):
            use()
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="one input channel"):
        open_backend(tmp_path, device="cpu")
    with pytest.raises(ConfigError, match=r"\[2, 1, 128, 60\]; it must be \[B, 2, n_mels, frames\]"):
        network(log_mel)
    with pytest.raises(ConfigError, match="in_chans is 0"):
        create_model("mn01", 2, in_chans=0)


def test_they_learn(log_mel):
    network = create_model("mn01", 2).reset_input(2).train()
    network(torch.cat([log_mel, -log_mel], dim=1)).logits.sum().backward()
    assert network.stem.conv.weight.grad is not None and network.stem.conv.weight.grad.shape[1] == 2
