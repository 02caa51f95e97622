"""A dynamic network that inherits from a static one begins near it."""

import pytest
import torch

from dymn import load_model
from dymn.errors import ConfigError
from dymn.models.inflate import calibrate, inherit
from dymn.models.mobilenet import MobileNet, create_model

MN = {"dynamic_blocks": "none", "attention": "se", "attention_blocks": "se"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_mels(n=12, bands=32, frames=40, seed=5):
    """Spectrograms that differ from each other: coloured noise with a stripe."""
    noise = torch.randn(n, 1, bands, frames, generator=generator(seed))
    tilt = torch.linspace(-1, 1, bands)[None, None, :, None] * torch.randn(n, 1, 1, 1, generator=generator(seed + 1))
    for i, clip in enumerate(noise):
        clip[:, i % bands] += 2.0
    return noise * 0.5 + tilt


@pytest.fixture(scope="module")
def parent() -> MobileNet:
    """A static network whose squeeze and excitation, norms and head are no longer as initialised."""
    model = create_model("dymn04", 9, width=0.1, generator=generator(1), **MN)
    draw = generator(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attention." in name or name.startswith("head."):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    calibrate(model, log_mels(seed=9))
    return model.eval()


def likeness(a: MobileNet, b: MobileNet, x, block: int) -> float:
    """Correlation of the values of a block's output."""
    with torch.no_grad():
        one, two = (model.eval().feature_maps(x)[block + 1].flatten() for model in (a, b))
    return float(torch.corrcoef(torch.stack([one, two]))[0, 1])


def student(**changes) -> MobileNet:
    return create_model("dymn04", 9, width=0.1, generator=generator(3), **changes)


@pytest.mark.parametrize("context", ["shared", "separate", "concatenated", "own"])
def test_is_much_nearer_than_a_fresh_network(parent, context):
    x = log_mels()
    fresh = student(context=context)
    calibrate(fresh, x)
    inherited = inherit(student(context=context), parent, x, generator(4))
    # A parent of random weights is chaotic: what differs a little at first differs much after fifteen blocks.
    assert likeness(inherited, parent, x, 0) > 0.9 and likeness(inherited, parent, x, 4) > 0.8 > 0.3 > likeness(
        fresh, parent, x, 4
    )


def test_takes_over_what_the_two_share(parent):
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    inherited = inherit(student(), parent, log_mels(), generator(4))
    # the parent stays as it is
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert torch.equal(inherited.head.classifier.weight, parent.head.classifier.weight)
    assert torch.equal(inherited.stem.conv.weight, parent.stem.conv.weight)
    assert all(norm.momentum == 0.01 for norm in inherited.modules() if isinstance(norm, torch.nn.BatchNorm2d))
    kernels, kernel = inherited.blocks[4].expand.conv.weight, parent.blocks[4].expand.conv.weight
    assert not torch.equal(kernels[0], kernels[1])
    assert 0.3 * kernel.std() < (kernels - kernel).std() < 0.6 * kernel.std()
    torch.testing.assert_close(kernels.mean(dim=0), kernel)  # so that a uniform kernel attention changes nothing
    again = inherit(student(), parent, log_mels(), generator(4))
    assert all(
        torch.equal(a, b) for a, b in zip(inherited.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_partly_dynamic_network(parent):
    inherited = inherit(
        student(dynamic_blocks="last5", dynamic_convs=("depthwise",), attention=None), parent, log_mels(), generator(4)
    )
    assert torch.equal(inherited.blocks[3].depthwise.conv.weight, parent.blocks[3].depthwise.conv.weight)
    assert inherited.blocks[12].depthwise.conv.weight.ndim == 5


def test_from_the_published_network(shared):
    published = load_model(shared / "weights" / "mn04_as_mAP_432.pt")
    x = log_mels(8, 128, 100)
    fresh = create_model("dymn04", generator=generator(3))
    calibrate(fresh, x)
    inherited = inherit(create_model("dymn04", generator=generator(3)), published, x, generator(4))
    assert likeness(inherited, published, x, 4) > 0.45 and likeness(inherited, published, x, -1) > 0.25
    assert max(likeness(fresh, published, x, block) for block in (4, -1)) < 0.2


@pytest.mark.parametrize(
    "changes", [{"width": 0.2}, {"num_classes": 8}, {"head": "fully_convolutional"}, {"in_chans": 2}]
)
def test_refuses_networks_that_do_not_fit(parent, changes):
    other = create_model("dymn04", **{"width": 0.1, "num_classes": 9} | changes)
    with pytest.raises(ConfigError, match="same width, head, classes and input channels"):
        inherit(other, parent, log_mels(2), generator())


def test_refuses_a_dynamic_parent():
    with pytest.raises(ConfigError, match="dynamic blocks"):
        inherit(student(), student(), log_mels(2), generator())
