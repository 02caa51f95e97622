"""The fused form: the network's own numbers for every variant, with weights that make outputs depend on the clip."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn import create_model
from dymn.architectures import BLOCK_SETS, MODELS
from dymn.config import BlockConfig, ModelConfig
from dymn.errors import ConfigError
from dymn.models.layers import ATTENTIONS, CONTEXTS
from dymn.models.mobilenet import MobileNet
from dymn.runtime import fused
from dymn.runtime.accelerate import accelerate
from dymn.runtime.fused import fuse
from test_benchmarks import load as load_benchmark
from test_efficientat import FIXTURES, load

TOLERANCE = 1e-5


LIVELY = load_benchmark("lively")
clips = LIVELY.clips


def small(log_mel, name="dymn10", seed=0, **overrides):
    """Return a small network whose outputs are sane for these clips and differ between them."""
    model = create_model(name, 9, generator=torch.Generator().manual_seed(seed), **{"width": 0.1, **overrides})
    return LIVELY.lively(model, log_mel, seed)


CLIPS = clips(4, 64, 50)


def assert_same(model, log_mel):
    """In float64: these networks multiply differences, round-off too, and a wrong sign must not hide in that."""
    with torch.no_grad():
        model = model.double()
        expected, got = model(log_mel.double()), fuse(model)(log_mel.double())
    for one, other in zip(expected, got, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert (one - other).abs().max() < 1e-9 * max(1.0, float(one.abs().max()))
    return expected.logits


@pytest.mark.parametrize("form", [fuse, accelerate])
@pytest.mark.parametrize("name", FIXTURES)
def test_gives_the_published_numbers(shared, name, form):
    expected = np.load(shared / "fixtures" / name / "io.npz")
    output = form(load(shared, name))(torch.from_numpy(expected["log_mel"]))
    assert abs(output.logits.numpy() - expected["logits"]).max() < TOLERANCE
    assert abs(output.embedding.numpy() - expected["embedding"]).max() < TOLERANCE


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("fmn")])
def test_every_architecture(name):
    logits = assert_same(small(CLIPS, name), CLIPS)
    assert logits.std(dim=0).mean() > 0.1  # the outputs depend on the clip, or equality says little


@pytest.mark.parametrize("head", ["mlp", "fully_convolutional"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_and_head(context, head):
    assert_same(small(CLIPS, context=context, head=head), CLIPS)


@pytest.mark.parametrize("context", ["shared", "own"])
@pytest.mark.parametrize("attention", [*ATTENTIONS, None])
def test_every_attention(attention, context):
    assert_same(small(CLIPS, attention=attention, context=context), CLIPS)


@settings(deadline=None, max_examples=15)
@given(
    dynamic_blocks=st.sampled_from(list(BLOCK_SETS)),
    attention_blocks=st.sampled_from([None, *BLOCK_SETS]),
    dynamic_convs=st.sets(st.sampled_from(BlockConfig.POSITIONS)).map(tuple),
    dynamic_relus=st.sets(st.sampled_from(BlockConfig.POSITIONS)).map(tuple),
    context=st.sampled_from(["shared", "separate", "concatenated"]),
    strides=st.tuples(*[st.sampled_from([1, 2])] * 4),
    n_kernels=st.integers(1, 5),
    n_maps=st.integers(1, 4),
    temperature=st.sampled_from([0.3, 1.0, 30.0]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),
    tile=st.sampled_from([1, 64, 2**20]),
)
def test_every_other_setting_and_any_size(size, tile, **overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "TILE", tile)
        patch.setattr(fused, "MIN_PLACES", tile)
        log_mel = clips(4, *size[1:], seed=size[1])
        assert_same(small(log_mel, seed=size[2], **overrides), log_mel[: size[0]])


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 3), (5, 4), (7, 1)])
def test_other_geometries_in_tiles(kernel_size, stride, monkeypatch):
    monkeypatch.setattr(fused, "TILE", 1)
    monkeypatch.setattr(fused, "MIN_PLACES", 1)
    settings_of_all = {
        "dynamic_convs": BlockConfig.POSITIONS,
        "dynamic_relus": ("depthwise",),
        "attention": "ca",
        "context_size": 8,
    }
    first = BlockConfig(8, 8, 8, kernel_size, stride, "relu", **settings_of_all)  # no expansion
    second = BlockConfig(8, 24, 8, kernel_size, stride, "hardswish", **settings_of_all)
    config = ModelConfig(width=1.0, blocks=(first, second), c_last=16, c_hidden=16, num_classes=5)
    model = LIVELY.lively(MobileNet(config).initialise(torch.Generator().manual_seed(0)), CLIPS)
    assert_same(model, CLIPS)


def test_maps_without_slope():
    """Slopes of 0 in both maps of a channel: nothing divides by them."""
    model = small(CLIPS)
    with torch.no_grad():
        for block in model.blocks:
            layer = block.depthwise.activation.coefficients
            layer.weight.zero_()
            theta = layer.bias.view(-1, 4)
            theta[:, 0], theta[:, 1] = -200.0, 0.0
        logits = model(CLIPS).logits
    assert torch.isfinite(logits).all()
    assert_same(model, CLIPS)


def test_no_clips():
    output = fuse(small(CLIPS))(torch.zeros(0, 1, 64, 30))
    assert output.logits.shape == (0, 9) and output.embedding.shape[0] == 0


def test_is_a_copy_that_can_be_copied():
    model, log_mel = small(CLIPS), CLIPS
    form = fuse(model)
    expected = form(log_mel).logits
    for parameter in model.parameters():
        parameter.data.zero_()
    model.temperature = 7.0
    for other in (form, copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        assert torch.equal(other(log_mel).logits, expected)
    assert form.config.temperature == 1.0


def test_stays_in_float32_inside_autocast():
    model, log_mel = small(CLIPS), CLIPS
    form = fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(form(log_mel).logits, form(log_mel.float()).logits)


def test_probabilities_are_those_of_the_network():
    import dataclasses

    model, logits = small(CLIPS), torch.randn(2, 9)
    assert torch.equal(fuse(model).probabilities(logits), model.probabilities(logits))
    model.card = dataclasses.replace(model.card, exclusive=True)
    assert torch.equal(fuse(model).probabilities(logits), model.probabilities(logits))


def test_other_input_is_refused():
    with pytest.raises(ConfigError, match=r"\[B, 1, n_mels, frames\]"):
        fuse(small(CLIPS))(torch.zeros(1, 2, 64, 30))
    with pytest.raises(ConfigError, match=r"torch\.float16.*float32 and float64"):
        fuse(small(CLIPS).half())
