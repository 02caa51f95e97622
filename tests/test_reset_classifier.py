"""Another last layer: weights, configuration and card agree, or nothing is saved."""

import dataclasses

import pytest
import torch
from torch import nn

from dymn import create_model, load_model
from dymn.errors import ConfigError, WeightsError
from dymn.models import pretrained

LABELS = ("dog", "cat", "rain")


@pytest.fixture(params=["mlp", "fully_convolutional"])
def network(request):
    made = create_model("mn01", 5, generator=torch.Generator().manual_seed(0), head=request.param).eval()
    made.card = dataclasses.replace(made.card, metrics={"mAP": 0.5}, provenance={"sha256": "x"}, licence="MIT")
    return made


def test_the_last_layer_alone_is_fresh(network, tmp_path):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    again = network.reset_classifier(LABELS, generator=torch.Generator().manual_seed(1))
    assert (
        again is network and network.config.num_classes == 3 and network.card.labels == LABELS and not network.training
    )
    assert network.card.metrics == {} and network.card.provenance == {} and network.card.licence == "MIT"
    after = network.state_dict()
    changed = {
        name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert changed and all(name.startswith(("head.classifier", "head.norm")) for name in changed)
    network.save_pretrained(tmp_path / "folder")
    loaded = load_model(tmp_path / "folder")
    assert loaded.card.labels == LABELS
    log_mel = torch.randn(2, 1, 128, 40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded(log_mel).logits, network(log_mel).logits)
    assert network.reset_classifier(2).card.labels == ("class_0", "class_1")
    with pytest.raises(ConfigError, match="at least one class"):
        network.reset_classifier([])


def test_a_layer_replaced_by_hand_is_not_saved(tmp_path):
    network = create_model("mn01", 5)
    network.head.classifier = nn.Linear(network.head.classifier.in_features, 3)
    for save in (network.save_pretrained, lambda path: pretrained.save(network, path)):
        with pytest.raises(WeightsError, match=r"head\.classifier.*model\.reset_classifier\(labels\)"):
            save(tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_load_model_for_other_classes(network, tmp_path):
    path = tmp_path / "model.safetensors"
    pretrained.save(network, path)
    assert load_model(path, labels=LABELS).card.labels == LABELS
    assert load_model(path, num_classes=3, labels=list(LABELS)).config.num_classes == 3
    assert load_model(path, num_classes=7).card.labels[-1] == "class_6"
    kept = [load_model(path, num_classes=5), load_model(path, labels=network.card.labels)]
    for model in kept:
        assert model.card.metrics == {"mAP": 0.5}
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), network.state_dict().values(), strict=True)
        )
    with pytest.raises(ConfigError, match="num_classes is 4, but there are 3 labels"):
        load_model(path, num_classes=4, labels=LABELS)
