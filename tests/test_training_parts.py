"""Freezing, learning rates by layer, momentum and statistics of norms, smoothed labels, class weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dymn import create_model
from dymn.config import FrontEndConfig, ModelCard, from_dict
from dymn.errors import ConfigError
from dymn.models import pretrained
from dymn.training import train
from dymn.training.loop import Run
from dymn.training.losses import Targets, balanced_weights, label_loss
from dymn.training.parts import freeze, frozen, parameter_groups, parts
from dymn.training.report import Reporter
from dymn.weights import load_model
from tiny_runs import FRONT_END, NETWORK, run, write_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("parts"), 12)


@pytest.fixture(scope="module")
def start(clips):
    network = create_model("mn04", 2, generator=torch.Generator().manual_seed(0), **NETWORK)
    network.card = ModelCard(labels=("high", "low"), front_end=from_dict(FrontEndConfig, FRONT_END))
    path = clips.parent / "start.safetensors"
    pretrained.save(network, path)
    return {"name": str(path), "settings": {}, "front_end": {}}


@pytest.mark.parametrize("blocks", [3, 15])
def test_frozen_parts_keep_weights_and_statistics(clips, start, tmp_path, blocks):
    train(run(clips, tmp_path, model=start, optim={"freeze": blocks}))
    before, after = load_model(start["name"]), load_model(tmp_path / "last.safetensors")
    kept = len(frozen(after, blocks))
    assert kept == (4 if blocks == 3 else 17)
    for i, (old, new) in enumerate(zip(parts(before), parts(after), strict=True)):
        same = [torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)]
        assert all(same) if i < kept else not all(same)
    with pytest.raises(ConfigError, match=r"optim\.freeze keeps"):
        run(clips, tmp_path, optim={"freeze": 1, "norm_clips": 4})


def test_frozen_norms_keep_their_statistics_and_train_their_weights(clips, start, tmp_path):
    network = load_model(start["name"])
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    pretrained.save(network, tmp_path / "start.safetensors")
    begun = start | {"name": str(tmp_path / "start.safetensors")}
    train(run(clips, tmp_path / "run", model=begun, optim={"freeze_norms": True}))
    before, after = network.state_dict(), load_model(tmp_path / "run" / "last.safetensors").state_dict()
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("norm.weight"))
    with pytest.raises(ConfigError, match=r"optim\.freeze_norms keeps"):
        run(clips, tmp_path, optim={"freeze_norms": True, "norm_clips": 4})
    with pytest.raises(ConfigError, match=r"optim\.norm_momentum has no effect"):
        run(clips, tmp_path, optim={"freeze_norms": True, "norm_momentum": 0.5})
    with pytest.raises(ConfigError, match=r"optim\.freeze_norms needs a network whose norms have statistics"):
        Run(run(clips, tmp_path / "fresh", optim={"freeze_norms": True}), Reporter())


def test_learning_rates_fall_towards_the_input(clips, start, tmp_path):
    made = Run(run(clips, tmp_path, model=start, optim={"layer_decay": 0.5, "freeze": 14}), Reporter())
    made.fit()
    rates = [group["lr"] for group in made.optimizer.param_groups]
    assert len(rates) == 3 and rates == pytest.approx([rates[0], rates[0] / 2, rates[0] / 4])
    groups = parameter_groups(create_model("mn01", 2), 0.5)
    assert [group["share"] for group in groups[:2]] == [1.0, 0.5] and len(groups) == 18
    assert sum(len(group["params"]) for group in groups) == len(list(create_model("mn01", 2).parameters()))
    network = create_model("mn01", 2)
    freeze(network, head=True)
    assert [group["share"] for group in parameter_groups(network, 0.5)[:2]] == [1.0, 0.5]  # of the last that is trained


def test_the_layer_for_frames_is_not_trained():
    network = create_model("fmn04", 2)
    freeze(network)
    fixed = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert fixed == ["head.frame.weight", "head.frame.bias"]


def test_norms_follow_as_fast_as_is_asked_and_are_measured_anew(clips, start, tmp_path):
    made = Run(run(clips, tmp_path / "fast", model=start, optim={"norm_momentum": 0.3}), Reporter())
    assert {module.momentum for module in made.network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.3}
    train(run(clips, tmp_path / "own", model=start))
    train(run(clips, tmp_path / "anew", model=start, optim={"norm_clips": 8}))
    own, anew = (load_model(tmp_path / name / "last.safetensors").state_dict() for name in ("own", "anew"))
    assert all(torch.equal(own[name], anew[name]) for name in own if "running" not in name and "tracked" not in name)
    assert not any(torch.equal(own[name], anew[name]) for name in own if name.endswith("running_var"))


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_label_loss_is_that_of_pytorch(kind):
    rng = np.random.default_rng(0)
    z, classes, weights = (
        torch.from_numpy(rng.normal(size=(6, 4))),
        torch.tensor([0, 1, 2, 3, 1, 1]),
        torch.tensor([0.5, 1.5, 1.0, 3.0]).double(),
    )
    labels = functional.one_hot(classes, 4).double()
    made = Targets(labels, torch.ones_like(labels), torch.zeros_like(labels), torch.zeros(6).double())
    if kind == "ce":
        assert torch.allclose(label_loss(z, made, kind, 0.1), functional.cross_entropy(z, classes, label_smoothing=0.1))
        assert torch.allclose(
            label_loss(z, made, kind, weights=weights), functional.cross_entropy(z, classes, weight=weights)
        )
    else:
        smooth = labels * 0.9 + 0.05
        assert torch.allclose(label_loss(z, made, kind, 0.1), functional.binary_cross_entropy_with_logits(z, smooth))
        each = functional.binary_cross_entropy_with_logits(z, labels, reduction="none").mean(dim=0)
        assert torch.allclose(label_loss(z, made, kind, weights=weights), (each * weights).sum() / weights.sum())


def test_balanced_weights_are_the_reciprocals_of_the_counts(clips, start, tmp_path):
    weights = balanced_weights(np.array([1, 2, 4, 0]))
    assert (weights / weights[0]).tolist() == pytest.approx([1, 0.5, 0.25, 1.75 / 3])
    assert float(weights.mean()) == pytest.approx(1)
    assert balanced_weights(np.array([100, 100, 0])).tolist() == balanced_weights(np.zeros(3, int)).tolist() == [1] * 3
    made = Run(
        run(clips, tmp_path, model=start, optim={"class_weights": "balanced", "label_smoothing": 0.1}), Reporter()
    )
    assert made.step.class_weights.tolist() == pytest.approx([1, 1]) and made.step.smoothing == 0.1
    made.fit()


@pytest.mark.parametrize(
    "wrong", [{"layer_decay": 0.0}, {"label_smoothing": 1.0}, {"class_weights": "rare"}, {"freeze": -1}]
)
def test_wrong_settings(clips, tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(wrong))} is"):
        run(clips, tmp_path, optim=wrong)
