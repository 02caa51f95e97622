"""Published state dicts: the fixtures to the digit, and files that do not fit."""

import json

import numpy as np
import pytest
import torch

from dymn.architectures import model_config
from dymn.errors import ConfigError, WeightsError
from dymn.weights import efficientat, import_efficientat
from dymn.weights.shapes import state_shapes

FIXTURES = {
    "dymn_w01": ("dymn10", {"width": 0.1}),
    "dymn_w01_50cls_s2221": ("dymn10", {"width": 0.1, "num_classes": 50, "strides": (2, 2, 2, 1)}),
    "dymn_w01_no_dyrelu_temp10": ("dymn10", {"width": 0.1, "dynamic_relus": (), "temperature": 10.0}),
    "dymn_w02_k2_m3": ("dymn10", {"width": 0.2, "n_kernels": 2, "n_maps": 3}),
    "dymn_w02_replace_se": ("dymn10", {"width": 0.2, "dynamic_blocks": "se"}),
    "mn_w01": ("mn10", {"width": 0.1}),
    "mn_w01_fully_convolutional": ("mn10", {"width": 0.1, "head": "fully_convolutional"}),
}


def load(shared, name):
    folder = shared / "fixtures" / name
    built = json.loads((folder / "config.json").read_text())
    path = folder / "state_dict.pt"
    return import_efficientat(
        path, temperature=built["attention_temperature"], strides=built.get("strides", (2, 2, 2, 2))
    )


def state(shared, name="dymn_w01"):
    return torch.load(shared / "fixtures" / name / "state_dict.pt", weights_only=True)


@pytest.mark.parametrize("name", FIXTURES)
def test_gives_the_published_numbers(shared, name):
    model, expected = load(shared, name), np.load(shared / "fixtures" / name / "io.npz")
    with torch.no_grad():
        output = model(torch.from_numpy(expected["log_mel"]))
    assert abs(output.logits.numpy() - expected["logits"]).max() < 1e-5
    assert abs(output.embedding.numpy() - expected["embedding"]).max() < 1e-5


@pytest.mark.parametrize("name", FIXTURES)
def test_finds_the_network_from_names_and_shapes(shared, name):
    architecture, settings = FIXTURES[name]
    assert load(shared, name).config == model_config(architecture, **settings)


def test_finds_a_static_convolution_in_a_dynamic_block(shared):
    """A dynamic block with static convolutions is published with its kernels inside a wrapper."""
    tensors = state(shared)
    for key in [key for key in tensors if "_conv." in key and "joint" not in key]:
        value = tensors.pop(key)
        if key.endswith("_conv.weight"):
            name = key.removesuffix(".weight")
            i, position = name.split(".")[1:]
            norm = tensors[f"layers.{i}.{position.removesuffix('_conv')}_norm.weight"]
            kernel = value[0, 0, 0]
            size = {"exp_conv": 1, "proj_conv": 1}.get(position)
            shape = (
                (len(norm), -1, size, size) if size else (len(norm), 1, *[round((len(kernel) / len(norm)) ** 0.5)] * 2)
            )
            tensors[f"{name}.module.weight"] = kernel.reshape(shape)
    model = import_efficientat(tensors)
    assert model.config == model_config("dymn10", width=0.1, dynamic_convs=())


@pytest.mark.parametrize("nothing", [None, "none"])
def test_a_network_without_coordinate_attention_holds_its_tensors_all_the_same(shared, nothing):
    """Of a DyMN trained with `no_ca`, only the caller knows: weights of 1 everywhere are the same network."""
    tensors = state(shared)
    for key in tensors:
        if ".context_gen.conv_" in key:
            tensors[key] = torch.full_like(tensors[key], 60.0 if key.endswith("bias") else 0.0)
    log_mel = torch.from_numpy(np.load(shared / "fixtures/dymn_w01/io.npz")["log_mel"])
    without, with_ones, other = (
        import_efficientat(tensors, attention=nothing),
        import_efficientat(tensors),
        import_efficientat(state(shared)),
    )
    assert without.config == model_config("dymn10", width=0.1, attention="none")
    with torch.no_grad():
        assert torch.allclose(without(log_mel).logits, with_ones(log_mel).logits, atol=1e-5)
        assert not torch.allclose(without(log_mel).logits, other(log_mel).logits, atol=1e-2)
    with pytest.raises(WeightsError, match=r"layers\.4\.context_gen\.joint_conv\.weight"):
        import_efficientat(
            {key: value for key, value in tensors.items() if "4.context_gen" not in key}, attention=nothing
        )
    with pytest.raises(ConfigError, match="attention is 'se'; allowed: ca, none"):
        import_efficientat(tensors, attention="se")


@pytest.mark.parametrize(("fixture", "architecture"), [("dymn_w01", "dymn10"), ("mn_w01", "mn10")])
def test_a_reduced_tail_is_seen_in_the_shapes(shared, fixture, architecture):
    plain = {name: values.numpy() for name, values in state(shared, fixture).items()}
    config = model_config(architecture, width=0.1, reduced_tail=True)
    shapes, tensors = state_shapes(config), {}
    for source, target in efficientat._entries(plain, import_efficientat(state(shared, fixture)).config):
        kernels = len(shapes[target]) == 5
        tensors[source] = torch.zeros(shapes[target]).reshape(1, 1, 4, -1) if kernels else torch.zeros(shapes[target])
    model = import_efficientat(tensors)
    assert model.config == config and (config.c_last, config.c_hidden) == (48, 64)
    assert [block.c_out for block in config.blocks[11:]] == [16, 8, 8, 8]
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 128, 50)).logits.shape == (1, 527)


def test_missing_and_extra_tensors_are_named(shared):
    tensors = state(shared)
    del tensors["layers.3.proj_norm.bias"]
    tensors["layers.3.surprise"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"missing layers\.3\.proj_norm\.bias; extra layers\.3\.surprise"):
        import_efficientat(tensors)


@pytest.mark.parametrize(
    "key",
    ["in_c.0.weight", "layers.5.depth_norm.weight", "classifier.5.weight", "layers.0.context_gen.joint_conv.weight"],
)
def test_files_that_lack_what_tells_the_network_are_refused(shared, key):
    tensors = state(shared)
    del tensors[key]
    with pytest.raises(WeightsError, match=r"missing|extra"):
        import_efficientat(tensors)


@pytest.mark.parametrize(
    ("key", "shape"), [("layers.4.exp_norm.bias", (3,)), ("layers.4.depth_conv.weight", (1, 2, 4, 100))]
)
def test_other_shapes_are_refused(shared, key, shape):
    tensors = state(shared)
    tensors[key] = torch.zeros(shape)
    with pytest.raises(WeightsError):
        import_efficientat(tensors)


def test_other_constants_of_the_dynamic_relu_are_refused(shared):
    tensors = state(shared)
    tensors["layers.2.depth_act.lambdas"] = torch.tensor([1.0, 1.0, 1.0, 1.0])
    with pytest.raises(WeightsError, match=r"extra layers\.2\.depth_act\.lambdas"):
        import_efficientat(tensors)


def test_values_that_are_not_finite_are_refused(shared):
    tensors = state(shared)
    tensors["classifier.5.bias"][3] = float("nan")
    with pytest.raises(WeightsError, match=r"classifier\.5\.bias contains values that are not finite"):
        import_efficientat(tensors)


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_code_is_never_executed(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save({"in_c.0.weight": Hostile()}, path)
    with pytest.raises(WeightsError, match="It was not executed"):
        import_efficientat(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=str(path)):
        import_efficientat(path)
    with pytest.raises(WeightsError, match="There is no file"):
        import_efficientat(tmp_path / "absent.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, {}])
def test_other_objects_are_refused(content):
    with pytest.raises((WeightsError, TypeError, ValueError)):
        import_efficientat(content)


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 2, 3), ()])
def test_strides_that_cannot_be_are_refused(shared, strides):
    with pytest.raises(ConfigError, match="strides"):
        import_efficientat(state(shared), strides=strides)
