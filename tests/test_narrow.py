"""A network that is computed from a wider one."""

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
from dymn.models.narrow import narrow, regress, select
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
@given(seed=st.integers(0, 2**31), columns=st.integers(2, 7), targets=st.integers(1, 4))
def test_the_column_that_is_removed_is_the_one_that_costs_least(seed, columns, targets):
    draw = generator(seed)
    x, y = torch.randn(50, columns, generator=draw).double(), torch.randn(50, targets, generator=draw).double()
    y += x @ torch.randn(columns, targets, generator=draw).double()

    def error(kept):
        weights, offset = regress(x[:, kept], y, 0.0)
        return float((y - x[:, kept] @ weights.T - offset).square().sum())

    rest = [[i for i in range(columns) if i != j] for j in range(columns)]
    assert select(x, y, columns - 1, 0.0).tolist() == min(rest, key=error)


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


def test_a_dynamic_network_inherits_from_a_wider_one(parent):
    x = log_mels(48)
    student = create_model("dymn04", 9, width=0.2, generator=generator(5))
    inherited = inherit(student, parent, x, generator(3))
    static = narrow(parent, student.config, x, generator(3))
    assert likeness(inherited, static, x, 0) > 0.9 and likeness(inherited, static, x, 3) > 0.6
    assert torch.equal(inherited.head.classifier.weight, static.head.classifier.weight)


def test_the_published_network_at_half_its_width(shared):
    path = shared / "weights" / "mn04_as_mAP_432.pt"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    published = load_model(path)
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
