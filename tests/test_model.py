"""Networks: Table I at every width, any input size, configs that rebuild them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn.architectures import MODELS, Variant, architectures, model_config
from dymn.config import ModelConfig, from_dict, round_channels, to_dict
from dymn.errors import ConfigError
from dymn.inference.events import EventSettings
from dymn.inference.selection import TagSettings
from dymn.models.layers import DynamicConv2d
from dymn.models.mobilenet import MobileNet, create_model
from dymn.training.settings import TrainConfig


def random_input(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(name="dymn10", **overrides):
    return create_model(name, 7, generator=torch.Generator().manual_seed(0), width=0.1, **overrides).eval()


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_builds_and_hears(name):
    model = create_model(name, 5, **({} if MODELS[name]["width"] <= 0.5 else {"width": 0.15})).eval()
    with torch.no_grad():
        output = model(random_input(2, 1, 128, 40))
    assert output.logits.shape == (2, 5)
    assert output.embedding.shape == (2, model.config.c_last)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    n_mels=st.integers(1, 80),
    n_frames=st.integers(1, 90),
    name=st.sampled_from(["dymn10", "mn10"]),
    head=st.sampled_from(["mlp", "fully_convolutional"]),
)
def test_any_size_from_one_frame_up_and_the_batch_axis_stays(batch, n_mels, n_frames, name, head):
    model = small(name, head=head)
    log_mel = random_input(batch, 1, n_mels, n_frames, seed=n_frames)
    with torch.no_grad():
        together = model(log_mel)
        alone = model(log_mel[-1:])
    assert together.logits.shape == (batch, 7) and alone.logits.shape == (1, 7)
    assert torch.allclose(together.logits[-1:], alone.logits, atol=1e-5)
    assert torch.allclose(together.embedding[-1:], alone.embedding, atol=1e-5)


def test_each_clip_of_a_batch_has_its_own_kernels():
    """Grouping by clip must not mix kernels up: clips in another order give the same answers in that order."""
    model = small()
    for module in model.modules():
        if isinstance(module, DynamicConv2d):
            torch.nn.init.normal_(module.coefficients.weight, generator=torch.Generator().manual_seed(1))
    log_mel = random_input(4, 1, 64, 50) * torch.tensor([0.1, 1.0, 3.0, 10.0])[:, None, None, None]
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        assert torch.allclose(model(log_mel).logits[order], model(log_mel[order]).logits, atol=1e-5)


def test_feature_maps_are_those_of_the_forward_pass():
    model = small()
    log_mel = random_input(2, 1, 128, 100)
    with torch.no_grad():
        maps = model.feature_maps(log_mel)
        assert torch.equal(maps[0], model.stem(log_mel))
        assert torch.equal(maps[-1], model.features(log_mel)) and torch.equal(model.last(maps[-2]), maps[-1])
    assert [tuple(values.shape[2:]) for values in maps[:5]] == [(64, 50), (64, 50), (32, 25), (32, 25), (16, 13)]
    assert len(maps) == 17


@pytest.mark.parametrize("shape", [(1, 128, 100), (1, 2, 128, 100), (128, 100)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ConfigError, match=r"\[B, 1, n_mels, frames\]"):
        small()(torch.zeros(shape))


def test_temperature_reaches_every_convolution_and_the_config():
    model = small(temperature=30.0)
    convolutions = [module for module in model.modules() if isinstance(module, DynamicConv2d)]
    assert len(convolutions) > 30 and {module.temperature for module in convolutions} == {30.0}
    model.temperature = 2.5
    assert {module.temperature for module in convolutions} == {2.5} and model.config.temperature == 2.5


def test_high_temperature_is_near_uniform_attention():
    model = small(temperature=1e6)
    attention = [
        m.kernel_attention(model.blocks[0].context(random_input(2, 8, 5, 5))) for m in [model.blocks[0].depthwise.conv]
    ]
    assert torch.allclose(attention[0], torch.full_like(attention[0], 0.25), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    width=st.floats(0.05, 4),
    dynamic_blocks=st.sampled_from(["all", "none", "first5", "mid5", "last5", "se"]),
    strides=st.tuples(*[st.sampled_from([1, 2])] * 4),
    n_kernels=st.integers(1, 6),
    n_maps=st.integers(1, 3),
    head=st.sampled_from(["mlp", "fully_convolutional"]),
)
def test_configs_survive_json(**settings_given):
    config = Variant(**settings_given).config()
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ConfigError, match="blocks is '-'; it must be a list"):
        from_dict(ModelConfig, to_dict(config) | {"blocks": "-"})


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (TagSettings, {"specific": "false"}, "specific is 'false'; it must be true or false"),
        (TagSettings, {"partial": 0}, "partial is 0; it must be true or false"),
        (TagSettings, {"top_k": True}, "top_k is True; true and false are not allowed"),
        (TagSettings, {"band": [None, True]}, "band is .* not allowed"),
        (EventSettings, {"min_gap": False}, "min_gap is False; true and false are not allowed"),
        (TrainConfig, {"optim": {"compile": "no"}}, "compile is 'no'; it must be true or false"),
    ],
)
def test_booleans_are_true_or_false_and_no_numbers(kind, values, said):
    with pytest.raises(ConfigError, match=said):
        from_dict(kind, values)


@given(st.floats(0.1, 10_000))
def test_rounded_channels(channels):
    rounded = round_channels(channels)
    assert (
        rounded % 8 == 0
        and rounded >= 8
        and rounded >= 0.9 * channels
        and (rounded <= 8 or abs(rounded - channels) <= 8)
    )


def test_same_generator_same_weights():
    first, second = (create_model("dymn04", generator=torch.Generator().manual_seed(3)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_initialisation_is_that_of_the_paper():
    model = create_model("dymn04", generator=torch.Generator().manual_seed(0))
    project = model.blocks[14].project.conv
    fan_out = project.weight.shape[1]
    for kernel in project.weight.detach():
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert model.head.classifier.weight.detach().std() == pytest.approx(0.01, rel=0.05)
    assert not model.head.classifier.bias.any()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"attention": "nothing"}, "attention is 'nothing'"),
        ({"head": "tail"}, "head is 'tail'"),
        ({"head": {}}, "head is {}"),
        ({"strides": (2, 2)}, "strides"),
        ({"strides": (2, 2, 2, 3)}, "strides"),
        ({"colour": 1}, "no setting colour"),
        ({"width": 0.0}, "width is 0.0"),
        ({"temperature": 0.0}, "temperature"),
        ({"dynamic_blocks": "odd"}, "'odd' is not a valid set of blocks"),
        ({"dynamic_blocks": (15,)}, "from 0 to 14"),
        ({"h_min": 64, "h_max": 32}, "h_min"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        model_config("dymn10", **overrides)


def test_unknown_architectures_name_those_there_are():
    with pytest.raises(ConfigError, match="dymn20"):
        create_model("dymn99")
    assert model_config("DyMN-L") == model_config("dymn20")
    assert architectures("dymn*0") == ["dymn10", "dymn20"]


def test_gradients_reach_every_parameter():
    model = create_model("dymn10", 5, width=0.1, generator=torch.Generator().manual_seed(0)).train()
    output = model(random_input(4, 1, 64, 64))
    (output.logits.square().mean() + output.embedding.mean()).backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent


def test_static_network_is_built_without_dynamic_parts():
    names = [name for name, _ in small("mn10").named_parameters()]
    assert not any("coefficients" in name or "context" in name for name in names)
    assert isinstance(small("mn10"), MobileNet)
