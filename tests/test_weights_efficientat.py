"""Published state dicts that are not what they should be.

Each is refused with a sentence, none is executed or blown up.
"""

import numpy as np
import pytest
import torch

from dymn.errors import ConfigError, WeightsError
from dymn.weights import import_efficientat
from dymn.weights.efficientat import read_efficientat


@pytest.fixture(scope="module", params=["dymn_w01", "mn_w01", "mn_w01_fully_convolutional", "dymn_w02_replace_se"])
def state(request, shared):
    return torch.load(shared / "fixtures" / request.param / "state_dict.pt", weights_only=True)


ALTERATIONS = {
    "scalar": lambda tensor: torch.zeros(()),
    "empty": lambda tensor: torch.zeros(0),
    "empty 4-d": lambda tensor: torch.zeros(0, 0, 0, 0),
    "another rank": lambda tensor: torch.zeros(3, *tensor.shape),
    "half of it": lambda tensor: tensor[: len(tensor) // 2],
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bool": lambda tensor: tensor.bool(),
    "sparse": lambda tensor: tensor.float().to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "a tensor of terabytes out of one number": lambda tensor: torch.zeros(1).expand(10**12),
    "not finite": lambda tensor: torch.full_like(tensor, torch.nan),
    "beyond float32": lambda tensor: torch.full(tensor.shape, 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_tensors_are_refused(state, alteration):
    stem = "in_c" if "in_c.0.weight" in state else "features.0"
    for key in (
        f"{stem}.0.weight",
        f"{stem}.1.weight",
        "classifier.0.weight",
        "classifier.5.weight",
        "layers.3.context_gen.joint_conv.weight",
    ):
        if key in state:
            with pytest.raises(WeightsError):
                import_efficientat(state | {key: ALTERATIONS[alteration](state[key])})


def test_every_width_that_another_layer_has_is_refused(state):
    arrays = {key: values.numpy() for key, values in state.items()}
    norms = [key for key in arrays if key.endswith(".1.weight") and arrays[key].ndim == 1]
    for key in norms:
        for width in {len(arrays[other]) for other in norms} - {len(arrays[key])}:
            with pytest.raises(WeightsError, match="does not fit"):
                read_efficientat(arrays | {key: np.ones(width, np.float32)})


def test_what_is_missing_or_extra_is_named(state):
    key = next(name for name in state if name.endswith("1.running_var"))
    with pytest.raises(WeightsError, match=f"missing {key}"):
        import_efficientat({name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(WeightsError, match="extra other, something"):
        import_efficientat(state | {"something": torch.zeros(1), "other": torch.zeros(1)})


@pytest.mark.parametrize("content", [{}, {"a": 1}, {1: torch.zeros(1)}, {"weight": torch.zeros(1)}])
def test_other_mappings(content):
    with pytest.raises(WeightsError):
        import_efficientat(content)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"<html>"])
def test_other_files(content, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="not a plain state dict"):
        import_efficientat(tmp_path / "a.pt")


def test_settings_that_leave_no_trace_are_checked(shared):
    path = shared / "fixtures/mn_w01/state_dict.pt"
    for strides in ((2, 2, 2), (2, 2, 2, 3)):
        with pytest.raises(ConfigError, match="strides is"):
            import_efficientat(path, strides=strides)
    with pytest.raises(ConfigError, match="temperature is 0"):
        import_efficientat(path, temperature=0)


def test_the_mapping_is_left_alone(shared):
    state = torch.load(shared / "fixtures/mn_w01/state_dict.pt", weights_only=True)
    state = {key: tensor.float() for key, tensor in state.items()}
    before = state["features.0.0.weight"].clone()
    model = import_efficientat(state)
    with torch.no_grad():
        model.stem.conv.weight.zero_()
    assert torch.equal(state["features.0.0.weight"], before)
