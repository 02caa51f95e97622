"""Feature maps and embeddings of waveforms: what is averaged is what the network computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn import Embedder, FeatureExtractor, LogMel, create_model
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import AudioError, ConfigError
from dymn.models.features import features_of
from dymn.native.log_mel import array_log_mel
from dymn.runtime.layers import parse_layers

RATE = 32_000


@pytest.fixture(scope="module")
def network():
    return create_model("dymn04", width=0.1, num_classes=3, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def noise():
    return 0.1 * torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))


def test_the_extractor_gives_the_networks_own_maps(network, noise):
    log_mel = LogMel()(noise)
    with torch.inference_mode():
        maps = network.feature_maps(log_mel)[1:]
        found = FeatureExtractor(network, range(16))(log_mel)
        some = FeatureExtractor(network, [-1, 3])(log_mel)
    assert all(torch.equal(a, b) for a, b in zip(maps, found, strict=True))
    assert torch.equal(some[0], maps[15]) and torch.equal(some[1], maps[3])


@pytest.mark.parametrize("frames", [1, 2, 31, 100])
def test_features_are_described_as_they_are(network, frames):
    extractor = FeatureExtractor(network)
    assert [feature.stride for feature in extractor.features] == [2, 4, 8, 16, 32]
    assert [feature.name for feature in extractor.features] == ["block0", "block2", "block5", "block11", "block14"]
    with torch.inference_mode():
        maps = extractor(torch.zeros(1, 1, 128, frames))
    for feature, found in zip(extractor.features, maps, strict=True):
        assert found.shape == (1, feature.channels, -(-128 // feature.stride), -(-frames // feature.stride))


def test_strides_of_a_variant_are_its_own():
    network = create_model("mn01", num_classes=2, strides=(2, 2, 2, 1))
    assert [feature.stride for feature in features_of(network)] == [2, 4, 4, 8, 8, 8, *[16] * 10]
    assert [feature.name for feature in FeatureExtractor(network).features] == ["block0", "block2", "block5", "block14"]


def test_what_is_not_needed_is_not_there_and_the_rest_is_shared(network):
    extractor = FeatureExtractor(network, [2])
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in extractor.parameters()} < own
    assert len(extractor.layers) == 3


@pytest.mark.parametrize("indices", [[], [16], [-17], [0, 99]])
def test_maps_that_there_are_not(network, indices):
    with pytest.raises(ConfigError, match="out_indices"):
        FeatureExtractor(network, indices)
    with pytest.raises(ConfigError, match="log_mel"):
        FeatureExtractor(network)(torch.zeros(128, 100))


def test_an_embedding_is_the_averages_of_what_was_named(network, noise):
    log_mel = LogMel()(noise)
    with torch.inference_mode():
        maps = network.feature_maps(log_mel)[1:]
        expected = torch.cat(
            [network(log_mel).embedding, maps[9].mean(dim=(2, 3)), log_mel.mean(dim=(1, 3)), maps[2].mean(dim=(2, 3))],
            1,
        )
    embedder = Embedder(network, ["last", "block9, MELS", "block2"])
    found = embedder.vectors(noise.numpy())
    np.testing.assert_array_equal(found, expected.numpy())
    assert found.shape == (2, embedder.size) and len(embedder.names) == len(set(embedder.names)) == embedder.size
    assert embedder.names[0] == "last_0" and embedder.names[-1].startswith("block2_")
    assert embedder.layers == ("last", "block9", "mels", "block2")


def test_mels_alone_need_no_network(network, noise):
    embedder = Embedder(network, "mels")
    assert embedder.vectors(noise).shape == (2, 128)


def test_the_front_end_is_that_of_the_card(network):
    other = create_model("mn01", num_classes=2)
    other.card = ModelCard(
        labels=("a", "b"), front_end=FrontEndConfig(sample_rate=16_000, f_max=7000.0, f_max_range=1, n_mels=64)
    )
    embedder = Embedder(other, "mels,last")
    assert (embedder.sample_rate, embedder.size) == (16_000, 64 + other.config.c_last)
    with pytest.raises(AudioError, match="waveform"):
        embedder.vectors(np.zeros(100, np.float32))


def test_layers_in_words():
    assert parse_layers("blocks") == tuple(f"block{i}" for i in range(15))
    assert parse_layers("blocks10-12,last") == ("block10", "block11", "block12", "last")
    assert parse_layers(["mels", "block0"]) == ("mels", "block0")


@pytest.mark.parametrize(
    "layers", ["", "first", "block15", "blocks3-15", "blocks5-3", "block-1", "last,last", "blocks,block3", [], "block٣"]
)
def test_layers_that_there_are_not(layers):
    with pytest.raises(ConfigError, match="layer"):
        parse_layers(layers)


@settings(max_examples=8, deadline=None)
@given(chosen=st.permutations(["mels", "last", *(f"block{i}" for i in range(15))]), n=st.integers(1, 4))
def test_the_order_of_layers_is_the_order_of_values(network, noise, chosen, n):
    whole = Embedder(network, chosen[:n]).vectors(noise[:, :600])
    parts = [Embedder(network, name).vectors(noise[:, :600]) for name in chosen[:n]]
    np.testing.assert_allclose(whole, np.concatenate(parts, axis=1), atol=1e-5)  # the last layer alone is compiled code


@pytest.mark.parametrize("layers", ["last", "mels,block4"])
def test_windows_that_overlap_share_spectrograms(network, monkeypatch, layers):
    clip = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    computed = []

    def count(front_end, frames, n_threads=1):
        computed.append(len(frames))
        return columns(front_end, frames, n_threads)

    kind = type(array_log_mel(network.card.front_end))
    columns = kind.columns
    monkeypatch.setattr(kind, "columns", count)
    embedder = Embedder(network, layers)
    found = embedder.embed(clip, RATE, window=1.0, hop=0.25)
    shared, computed[:] = sum(computed), []
    expected = np.concatenate(
        [embedder.vectors(clip[None, start : start + RATE]) for start in range(0, 3 * RATE + 1, RATE // 4)]
    )
    assert np.abs(found.windows - expected).max() < 1e-4 * np.abs(expected).max()
    assert shared < sum(computed) / 2
