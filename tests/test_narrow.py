"""A network that is computed from a wider one."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dymn import load_model
from dymn.architectures import model_config
from dymn.config import ModelCard
from dymn.errors import ConfigError
from dymn.models.inflate import calibrate, inherit
from dymn.models.mobilenet import MobileNet, create_model
from dymn.models.narrow import RIDGE, _Fit, narrow, regress, select
from test_inherit import generator, likeness, log_mels


@pytest.fixture(scope="module")
def parent() -> MobileNet:
    model = create_model("mn04", 9, generator=generator(1))
    calibrate(model, log_mels(seed=9))
    model.card = ModelCard(name="parent", labels=tuple("abcdefghi"))
    return model.eval()


def agreement(a: MobileNet, b: MobileNet, x) -> float:
    """Correlation of the logits."""
    with torch.no_grad():
        return float(np.corrcoef(*(model.eval()(x).logits.flatten() for model in (a, b)))[0, 1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), columns=st.integers(2, 7), targets=st.integers(1, 4), data=st.data())
def test_each_column_that_is_removed_is_the_one_that_costs_least(seed, columns, targets, data):
    draw = generator(seed)
    x, y = torch.randn(50, columns, generator=draw).double(), torch.randn(50, targets, generator=draw).double()
    y += x @ torch.randn(columns, targets, generator=draw).double()

    def error(kept):
        weights, offset = regress(x[:, kept], y, 0.0)
        return float((y - x[:, kept] @ weights.T - offset).square().sum())

    count = data.draw(st.integers(1, columns))
    kept = list(range(columns))
    while len(kept) > count:
        kept = min(([i for i in kept if i != j] for j in kept), key=error)
    assert select(x, y, count, 0.0).tolist() == kept


def test_redundant_columns_are_removed_first():
    x = torch.randn(200, 6, generator=generator()).double()
    x[:, 2], x[:, 5] = x[:, 0] - x[:, 4], 0.0
    y = x @ torch.randn(6, 3, generator=generator(1)).double()
    kept = select(x, y, 4, 1e-9)
    assert 5 not in kept and not {0, 2, 4} <= set(kept.tolist())
    weights, offset = regress(x[:, kept], y, 0.0)
    torch.testing.assert_close(x[:, kept] @ weights.T + offset, y)


def test_with_all_channels_a_network_stays_as_it_is():
    """Without Squeeze-and-Excitation, the fits are exact but for the ridge."""
    parent = create_model("mn04", 9, attention=None, generator=generator(1))
    calibrate(parent, log_mels(seed=9))
    x = log_mels()
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    same = narrow(parent, parent.config, x, generator(3))
    assert min(likeness(same, parent, x, block) for block in (0, 2, 6, 10)) > 0.99
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())


@pytest.mark.parametrize("width", [0.2, 0.3])
def test_is_nearer_than_random_weights_and_the_same_each_time(parent, width):
    x = log_mels(48)
    config = model_config("dymn04", num_classes=9, width=width)
    made, again = (narrow(parent, config, x, generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))
    assert not any(block.is_dynamic or block.attention for block in made.config.blocks)
    assert [block.c_exp for block in made.config.blocks] == [block.c_exp for block in config.blocks]
    fresh = create_model("mn04", 9, width=width, generator=generator(4))
    calibrate(fresh, x)
    # On the sample itself: a parent of random weights is chaotic, and what is fitted to few clips holds for these.
    assert agreement(made, parent, x) > 0.8 > 0.5 > agreement(fresh, parent, x)


def test_a_dynamic_network_inherits_from_a_narrowed_one(parent):
    x = log_mels(48)
    student = create_model("dymn04", 9, width=0.2, generator=generator(5))
    static = narrow(parent, student.config, x, generator(3))
    inherited = inherit(student, static, x, generator(3))
    assert likeness(inherited, static, x, 0) > 0.9 and likeness(inherited, static, x, 3) > 0.6
    assert torch.equal(inherited.head.classifier.weight, static.head.classifier.weight)


def test_errors_of_earlier_layers_are_corrected(parent):
    """Each projection is the best one for what the narrow network itself computes, not the wide one."""
    x = log_mels(6)  # so few that all values are used
    config = model_config("mn04", num_classes=9, width=0.2)
    child = narrow(parent, config, x, generator(3))
    fit = _Fit(parent, child, generator(4))
    with torch.no_grad():
        stem = parent.stem(x)
        inputs = torch.equal(child.stem(x), stem)
        assert inputs  # 8 channels in both, all of them kept
        maps = fit.combinations(stem, torch.arange(8))
        number = 7
        wide, slim = parent.feature_maps(x)[number + 1], child.feature_maps(x)[number]
        block = child.blocks[number]
        hidden = block.depthwise(block.expand(slim, None), None)
        rows = [y.permute(0, 2, 3, 1).flatten(0, 2).double() for y in (hidden, wide, slim, block(slim))]
        target = rows[1] @ maps[number].T - rows[2]
        weights, offset = regress(rows[0], target, RIDGE)
        torch.testing.assert_close(rows[0] @ weights.T + offset + rows[2], rows[3], rtol=0, atol=2e-3)


def test_the_best_hidden_units_are_kept(parent):
    half = copy.deepcopy(parent)
    with torch.no_grad():
        half.head.classifier.weight[:, :256] = 0.0
    x = log_mels(48)
    made = narrow(half, model_config("mn04", num_classes=9, width=0.2), x, generator(3))
    assert agreement(made, half, x) > 0.8


def test_attention_that_reads_the_context_of_a_static_block():
    wide = create_model("mn04", 9, attention="ca", attention_blocks="all", generator=generator(1)).eval()
    made = narrow(wide, model_config("dymn04", num_classes=9, width=0.2), log_mels(4), generator(3))
    assert torch.isfinite(made(log_mels(4)).logits).all()


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (2, 1, 32, 40)])
def test_few_short_clips(parent, shape):
    made = narrow(parent, model_config("mn04", num_classes=9, width=0.2), torch.randn(shape), generator(3))
    assert all(torch.isfinite(value).all() for value in made.state_dict().values())


@pytest.mark.parametrize("log_mel", [torch.zeros(0, 1, 32, 40), torch.full((1, 1, 32, 40), torch.nan)])
def test_refuses_spectrograms_that_are_no_basis(parent, log_mel):
    with pytest.raises(ConfigError, match="there are none, or not all values are finite"):
        narrow(parent, model_config("mn04", num_classes=9, width=0.2), log_mel, generator())


@pytest.mark.parametrize(
    ("wide", "slim"),
    [
        ({}, {"width": 0.225}),
        ({"width": 1.0}, {"width": 0.4}),
        ({"strides": (1, 2, 2, 2)}, {"width": 0.2, "strides": (1, 2, 2, 2)}),
    ],
)
def test_other_residual_connections_and_stems(wide, slim):
    """Rounding makes the channels of some blocks agree in the narrow network only."""
    parent = create_model("mn04", 9, generator=generator(1), **wide)
    x = log_mels(24)
    calibrate(parent, x)
    config = model_config("dymn04", num_classes=9, **slim)
    assert agreement(narrow(parent.eval(), config, x, generator(3)), parent, x) > 0.5


def test_the_published_network_at_half_its_width(shared):
    published = load_model(shared / "weights" / "mn04_as_mAP_432.pt")
    x = log_mels(24, 128, 100)
    made = narrow(published, model_config("dymn04", width=0.2), x, generator(3))
    assert agreement(made, published, log_mels(12, 128, 100, seed=8)) > 0.8


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dymn04", {"width": 0.5}),
        ("dymn04", {"width": 0.1}),
        ("dymn04", {"width": 0.2, "num_classes": 8}),
        ("dymn04", {"width": 0.2, "in_chans": 2}),
        ("dymn04", {"width": 0.2, "strides": (2, 2, 2, 1)}),
        ("dymn04", {"width": 0.2, "head": "fully_convolutional"}),
    ],
)
def test_refuses_other_networks(parent, name, changes):
    with pytest.raises(ConfigError, match="same blocks, classes and input channels and at most"):
        narrow(parent, model_config(name, **{"num_classes": 9} | changes), log_mels(2), generator())
