"""dymn's own format: round trips, and files that were not written by dymn or were tampered with."""

import dataclasses
import errno
import json
import os
import stat
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save as serialise

from dymn.architectures import model_config
from dymn.config import FrontEndConfig, ModelCard, to_dict
from dymn.errors import ConfigError, WeightsError
from dymn.models import pretrained
from dymn.models.layers import ATTENTIONS
from dymn.models.mobilenet import MobileNet, create_model
from dymn.weights import format as weights_format
from dymn.weights import load_model
from dymn.weights.files import MAX_FILE
from dymn.weights.format import is_finite

CARD = ModelCard(
    name="three sounds",
    front_end=FrontEndConfig(hop_length=480, n_mels=64),
    labels=("Dog", "Cat|Lion", "Bells: “loud”"),
    licence="CC-BY-4.0",
    metrics={"mAP": 0.5},
    provenance={"recipe": {"epochs": 3}, "data": None},
)


@pytest.fixture(scope="module")
def model():
    model = create_model(
        "dymn04", num_classes=3, width=0.1, temperature=7.0, generator=torch.Generator().manual_seed(0)
    ).eval()
    model.card = CARD
    return model


def without_digest(card):
    return dataclasses.replace(card, provenance={k: v for k, v in card.provenance.items() if not k.endswith("sha256")})


def same_weights(a, b):
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
    )


def test_round_trip(model, tmp_path):
    digest = pretrained.save(model, tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.config == model.config and loaded.temperature == 7.0
    assert same_weights(loaded, model) and not loaded.training
    assert loaded.card.provenance["sha256"] == digest and without_digest(loaded.card) == CARD
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    x = torch.randn(2, 1, 64, 30)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_the_digest_of_the_source_is_kept(model, tmp_path):
    first = pretrained.save(model, tmp_path / "a.safetensors")
    second = pretrained.save(load_model(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert load_model(tmp_path / "b.safetensors").card.provenance == CARD.provenance | {
        "source_sha256": first,
        "sha256": second,
    }


def test_the_same_model_gives_the_same_file(model, tmp_path):
    assert pretrained.save(model, tmp_path / "a.safetensors") == pretrained.save(model, tmp_path / "b.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage(model, tmp_path, dtype):
    pretrained.save(model, tmp_path / "full.safetensors")
    pretrained.save(model, tmp_path / "half.safetensors", dtype=dtype)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = load_model(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.stem.norm.weight, model.stem.norm.weight)
    torch.testing.assert_close(dict(loaded.named_parameters()), dict(model.named_parameters()), rtol=2**-8, atol=1e-6)


def test_values_beyond_half_precision_are_kept(tmp_path):
    model = create_model("mn01", num_classes=2)
    with torch.no_grad():
        model.stem.conv.weight[0, 0, 0, 0] = 1e6
    pretrained.save(model, tmp_path / "a.safetensors", dtype=torch.float16)
    assert torch.equal(load_model(tmp_path / "a.safetensors").stem.conv.weight, model.stem.conv.weight)


def test_only_these_storage_types(model, tmp_path):
    with pytest.raises(ConfigError, match="float64; weights are stored as one of"):
        pretrained.save(model, tmp_path / "a.safetensors", dtype=torch.float64)


@pytest.mark.parametrize("head", ["mlp", "fully_convolutional"])
@pytest.mark.parametrize("name", ["dymn04", "dymn04_replace_se", "mn04"])
def test_each_family_is_rebuilt(name, head, tmp_path):
    model = create_model(name, num_classes=4, width=0.1, head=head)
    pretrained.save(model, tmp_path / "a.safetensors")
    assert same_weights(load_model(tmp_path / "a.safetensors"), model)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_filled_skeleton_leaves_nothing_out(attention):
    model = create_model("dymn04", num_classes=4, width=0.1, attention=attention)
    filled = MobileNet.skeleton(model.config).fill(model.state_dict())
    assert not any(
        tensor.is_meta for module in filled.modules() for tensor in [*module.parameters(), *module.buffers()]
    )
    x = torch.randn(1, 1, 32, 20)
    torch.testing.assert_close(filled.eval()(x), model.eval()(x))


def test_filling_copies():
    model = create_model("mn01", num_classes=4)
    filled = MobileNet.skeleton(model.config).fill(model.state_dict())
    with torch.no_grad():
        filled.stem.conv.weight.zero_()
    assert model.stem.conv.weight.abs().sum() > 0


def test_the_default_card(model):
    card = create_model("mn01", num_classes=3).card
    assert card == ModelCard(labels=("class_0", "class_1", "class_2"))
    with pytest.raises(ConfigError, match="2 labels for a network with 3 classes"):
        create_model("mn01", num_classes=3).card = ModelCard(labels=("a", "b"))


def test_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "folder", dtype=torch.float16)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = MobileNet.from_pretrained(tmp_path / "folder")
    assert loaded.config == model.config and without_digest(loaded.card) == CARD
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["config"] == json.loads(
        json.dumps(to_dict(model.config))
    )


def test_the_readme_is_a_card_of_the_hub(model, tmp_path):
    from huggingface_hub import ModelCard as HubCard

    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    data = HubCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "dymn", "audio-classification")
    assert "# three sounds" in text and "| mAP | 0.5 |" in text and '| recipe | {"epochs": 3} |' in text


def test_upload(model, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repository, private, exist_ok):
            calls.append(repository)

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(sorted(os.listdir(folder_path)))
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("user/repo", token="t") == "https://hub/commit"
    assert calls == ["t", "user/repo", ["README.md", "config.json", "model.safetensors"]]
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(WeightsError, match="user/repo cannot be uploaded"):
        model.push_to_hub("user/repo")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch, step):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(WeightsError, match=r"a.safetensors cannot be written: No space left on device"):
        pretrained.save(model, path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_written_file_has_the_usual_mode_and_links_stay(model, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real" / "a.safetensors")
    mask = os.umask(0o022)
    try:
        pretrained.save(model, tmp_path / "link.safetensors")
    finally:
        os.umask(mask)
    assert (tmp_path / "link.safetensors").is_symlink()
    assert stat.S_IMODE((tmp_path / "real" / "a.safetensors").stat().st_mode) == 0o644


def test_weights_that_diverged_are_not_written(tmp_path):
    model = create_model("mn01", num_classes=2)
    with torch.no_grad():
        model.stem.conv.weight[0] = float("nan")
    with pytest.raises(WeightsError, match=r"not written: stem.conv.weight .*diverged"):
        pretrained.save(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# Files that cannot be trusted


def description(model, **changes):
    return {"format": 1, "config": to_dict(model.config), "card": to_dict(model.card)} | changes


def with_config(**changes):
    return lambda model: description(model, config=to_dict(model.config) | changes)


def with_block(**changes):
    def describe(model):
        config = to_dict(model.config)
        config["blocks"] = [dict(block) for block in config["blocks"]]
        config["blocks"][14] |= changes
        return description(model, config=config)

    return describe


def with_card(**changes):
    return lambda model: description(model, card=to_dict(model.card) | changes)


GIANT_CONFIG = {"c_last": 2**20, "c_hidden": 2**20}


@pytest.mark.parametrize(
    ("describe", "reason"),
    [
        (lambda model: description(model, format=99), "format 99; this version reads 1"),
        (lambda model: [1, 2], "not a JSON object"),
        (lambda model: {"format": 1}, "ModelConfig cannot be built"),
        (with_config(colour="red"), "ModelConfig has no setting colour"),
        (with_config(width="wide", dropout="x"), "an invalid network"),
        (with_config(blocks=[]), "blocks is empty"),
        (with_config(blocks=[5]), "an invalid network"),
        (with_config(blocks=5), "an invalid network"),
        (with_config(head="python"), "head is 'python'"),
        (
            with_config(**GIANT_CONFIG),
            r"wrong shape last.conv.weight \[96, 16, 1, 1\] instead of \[1048576, 16, 1, 1\]",
        ),
        (with_config(num_classes=2**20), "3 labels for 1048576 classes"),
        (with_block(activation="eval"), "an invalid network.*'eval'"),
        (with_block(activation=["relu"]), "an invalid network"),
        (with_block(attention="backdoor"), "an invalid network.*backdoor"),
        (with_block(c_exp=-1), "c_exp is -1"),
        (with_block(c_exp=65536, n_kernels=65536, kernel_size=65535), "an invalid network|does not fit"),
        (with_block(c_exp=10**30), "c_exp is 1000"),
        (with_block(context_size=10**30), "an invalid network"),
        (with_card(labels=["a", "b"]), "2 labels for 3 classes"),
        (with_card(labels=["a", "b", "b"]), "'b' more than once"),
        (with_card(labels=["a", "b", "\x1b[2J"]), "printable text"),
        (with_card(labels=["a", "b", "x" * 2000]), "printable text of up to 1000"),
        (with_card(labels=["a", "b", ["c"]]), "printable text"),
        (with_card(labels="abc"), "labels is 'abc'"),
        (with_card(name=5), "printable text"),
        (with_card(metrics={"mAP": "good"}), "it must be a number"),
        (with_card(metrics=[1]), "it must be a mapping"),
        (with_card(provenance={"x": "y" * 70_000}), "at most 65536"),
        (with_card(front_end={"n_mels": 10**9}), "n_mels is 1000000000"),
        (with_card(front_end={"sample_rate": 10**9}), "sample_rate is 1000000000"),
        (with_config(temperature=10**400), "temperature is 1000|an invalid network"),
        (with_card(front_end=5), "must be a FrontEndConfig"),
    ],
)
def test_descriptions_that_are_not_allowed(model, tmp_path, describe, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialise(dict(model.state_dict()), {"dymn": json.dumps(describe(model))}))
    started = time.process_time()
    with pytest.raises(WeightsError, match=reason) as caught:
        load_model(path)
    assert time.process_time() - started < 2
    assert str(path) in str(caught.value) and len(str(caught.value)) < 3000


def test_too_many_blocks(model, tmp_path):
    block = to_dict(model.config)["blocks"][2]
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        serialise({}, {"dymn": json.dumps(with_config(blocks=[block | {"c_out": block["c_in"]}] * 2000)(model))})
    )
    with pytest.raises(WeightsError, match="2000 blocks; at most 256"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("stem.conv.weight"), "missing stem.conv.weight"),
        (lambda state: state.update(extra=torch.zeros(2)), "extra extra"),
        (
            lambda state: state.update({"head.hidden.bias": torch.zeros(3)}),
            r"wrong shape head.hidden.bias \[3\] instead of",
        ),
        (
            lambda state: state["stem.conv.weight"].fill_(torch.inf),
            "stem.conv.weight contains values that are not finite",
        ),
        (lambda state: state.update({"stem.norm.bias": torch.zeros(8, dtype=torch.int32)}), "stem.norm.bias is I32"),
        (
            lambda state: state.update({"stem.norm.bias": torch.full((8,), 1e300, dtype=torch.float64)}),
            "stem.norm.bias contains values",
        ),
        (lambda state: state.clear(), "missing stem.conv.weight, .* more"),
    ],
)
def test_tensors_that_do_not_fit(model, tmp_path, change, reason):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(state)
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialise(state, {"dymn": json.dumps(description(model))}))
    with pytest.raises(WeightsError, match=reason):
        load_model(path)


def raw(header, size=None, tail=b""):
    return (len(header) if size is None else size).to_bytes(8, "little") + header + tail


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a .safetensors file, or is truncated"),
        (b"abc", "not a .safetensors file, or is truncated"),
        (raw(b"{}", 2**63), "header cannot be 9,223,372,036,854,775,808 bytes"),
        (raw(b"{}", 100), "truncated"),
        (raw(b"{" * 50_000), "not JSON"),
        (raw(b'{"a":' * 50_000), "not JSON"),
        (raw(b'{"__metadata__": NaN}'), "NaN is not a number"),
        (raw(b"[1, 2]"), "not a JSON object"),
        (raw(b"\xff\xfe\xfd"), "not JSON"),
        (raw(b"{}"), "was not written by dymn"),
        (raw(b'{"__metadata__": {"dymn": 5}}'), "was not written by dymn"),
        (raw(b'{"__metadata__": {"format": "pt"}}'), "was not written by dymn.*dymn convert"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        weights_format.read(path)


def test_damage_anywhere_is_noticed(model, tmp_path):
    path = tmp_path / "a.safetensors"
    pretrained.save(model, path)
    content = path.read_bytes()
    for length in (10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"truncated|damaged"):
            load_model(path)


def test_a_file_beyond_the_bound_is_not_read(model, tmp_path):
    pretrained.save(model, tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", MAX_FILE + 1)  # without blocks on the disk
    with pytest.raises(WeightsError, match="2,147,483,649 bytes; a file of weights has at most 2,147,483,648"):
        load_model(tmp_path / "a.safetensors")


def test_a_skeleton_of_nonsense():
    config = model_config("mn01")
    with pytest.raises(ConfigError, match="activation is 'x'; allowed"):
        MobileNet.skeleton(dataclasses.replace(config, blocks=(dataclasses.replace(config.blocks[0], activation="x"),)))


def test_finite_values_whose_sum_is_not_are_finite():
    assert is_finite(np.full(4, 3e38, np.float32)) and is_finite(np.zeros((), np.int64))
    assert (
        not is_finite(np.array([np.inf, -np.inf]))
        and not is_finite(np.array([np.nan]))
        and is_finite(np.full(999, 6e4, np.float16))
    )


def described(arrays, content=bytes(16)):
    """A file with these entries in its header, and this content."""
    metadata = {
        "dymn": json.dumps(
            {"format": 1, "config": to_dict(model_config("mn01", num_classes=1)), "card": {"labels": ["a"]}}
        )
    }
    header = json.dumps({"__metadata__": metadata, **arrays}).encode()
    return len(header).to_bytes(8, "little") + header + content


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, True]},
        {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 16]},
        {"dtype": "F32", "shape": [1] * 9 + [4], "data_offsets": [0, 16]},
        {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0]},
        {"dtype": "F32", "shape": [4], "data_offsets": {"a": 1}},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        {"shape": [4], "data_offsets": [0, 16]},
        [1, 2],
        None,
    ],
    ids=str,
)
def test_arrays_that_do_not_lie_where_the_header_says(tmp_path, entry):
    path = tmp_path / "a.safetensors"
    path.write_bytes(described({"a": entry}))
    with pytest.raises(WeightsError, match="is damaged"):
        weights_format.read(path)
    path.write_bytes(described({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}))
    assert weights_format.read(path).state["a"].tolist() == [0, 0, 0, 0]


def test_files_are_those_of_safetensors(model, tmp_path):
    """What the reference implementation reads, and the other way round."""
    from safetensors.torch import load_file, save_file

    pretrained.save(model, tmp_path / "a.safetensors", dtype=torch.bfloat16)
    theirs = load_file(tmp_path / "a.safetensors")
    state = model.state_dict()
    assert theirs.keys() == state.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, state[name].to(torch.bfloat16) if state[name].ndim >= 2 else state[name])
    save_file(theirs, tmp_path / "b.safetensors", {"dymn": json.dumps(weights_format.description(model.stored()))})
    mine = weights_format.read(tmp_path / "b.safetensors").state
    assert all(
        np.array_equal(values, theirs[name].float() if values.dtype == np.float32 else theirs[name])
        for name, values in mine.items()
    )


@pytest.mark.parametrize(
    "change", [{"head": {}}, {"head": ["mlp"]}, {"blocks": {"activation": {}}}, {"blocks": {"attention": []}}]
)
def test_parts_that_are_no_names(model, tmp_path, change):
    description = json.loads(json.dumps(weights_format.description(model.stored())))
    inner = change.get("blocks", {})
    description["config"] |= {name: value for name, value in change.items() if name != "blocks"}
    description["config"]["blocks"][3] |= inner
    content = serialise(model.state_dict(), {"dymn": json.dumps(description)})
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="an invalid network"):
        load_model(tmp_path / "a.safetensors")
