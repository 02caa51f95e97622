"""One door for names, files, folders and the Hub; published files are held to what the registry says."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import dymn.weights
from dymn import Tagger
from dymn.config import FrontEndConfig
from dymn.errors import ConfigError, WeightsError
from dymn.models.mobilenet import create_model
from dymn.system.files import open_regular
from dymn.weights import REGISTRY, audioset_labels, convert, files, import_efficientat, load_model, open_checkpoint
from dymn.weights.download import is_local
from dymn.weights.files import read_file
from dymn.weights.labels import labels_for
from dymn.weights.published import import_published

MN04 = "weights/mn04_as_mAP_432.pt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def release(tmp_path, monkeypatch, shared):
    """A folder that a server offers as if it were the release of published files."""
    folder = tmp_path / "release"
    folder.mkdir()
    shutil.copy(shared / "fixtures/mn_w01/state_dict.pt", folder / "mn01_as_mAP_298.pt")  # a network of the same shape
    shutil.copy(shared / MN04, folder)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, model in REGISTRY.items():
        if not model.packaged:
            monkeypatch.setitem(
                REGISTRY, name, dataclasses.replace(model, url=f"http://127.0.0.1:{server.server_port}/{model.file}")
            )
    yield folder
    server.shutdown()
    server.server_close()


def small(name="small", num_classes=3):
    model = create_model("mn01", num_classes=num_classes, generator=torch.Generator().manual_seed(0)).eval()
    model.card = dataclasses.replace(model.card, name=name)
    return model


def test_a_published_file_by_path_knows_its_card(shared):
    model = load_model(shared / MN04)
    card = model.card
    assert (card.name, card.licence, card.metrics, card.front_end) == (
        "mn04_as",
        "MIT",
        {"mAP": 0.432},
        FrontEndConfig(),
    )
    assert card.labels == audioset_labels() and not model.training
    assert (
        card.provenance["sha256"] == REGISTRY["mn04_as"].sha256 and card.provenance["source"] == REGISTRY["mn04_as"].url
    )


def test_a_renamed_published_file_is_known_by_its_digest(shared, tmp_path):
    shutil.copy(shared / MN04, tmp_path / "whatever.bin")
    assert load_model(str(tmp_path / "whatever.bin")).card.name == "mn04_as"


def test_the_file_name_tells_the_front_end(shared, tmp_path, monkeypatch):
    entry = dataclasses.replace(
        REGISTRY["mn01_as"], name="mn01_as_hop_15", file="mn01_hop.pt", front_end=FrontEndConfig(hop_length=480)
    )
    monkeypatch.setitem(REGISTRY, entry.name, entry)
    shutil.copy(shared / "fixtures/mn_w01/state_dict.pt", tmp_path / "mn01_hop.pt")
    assert load_model(tmp_path / "mn01_hop.pt").card.front_end.hop_length == 480


def test_a_known_name_with_other_content_is_not_believed(shared, tmp_path, caplog):
    shutil.copy(shared / MN04, tmp_path / "mn10_as_mAP_471.pt")
    with open(tmp_path / "mn10_as_mAP_471.pt", "ab") as file:
        file.write(b"\0")  # another digest than that of mn04_as
    model = load_model(tmp_path / "mn10_as_mAP_471.pt")
    assert model.card.metrics == {} and model.config.width == 0.4 and len(model.card.labels) == 527
    assert "is not mn10_as: its width is 0.4 instead of 1.0" in caplog.text


def test_447_classes_of_clips_are_not_taken_for_those_of_audioset_strong(tmp_path):
    """Only heads for frames have AudioSet Strong's classes."""
    assert (
        labels_for(447) == tuple(f"class_{i}" for i in range(447)) and labels_for(447, framewise=True)[0] != "class_0"
    )
    assert labels_for(527)[0] == labels_for(527, framewise=True)[0] == "Speech"


def test_scores_of_a_network_that_was_trained_on_images_come_with_a_warning(release, shared, caplog):
    shutil.copy(shared / "fixtures/mn_w01/state_dict.pt", release / "mn01_im.pt")
    Tagger.from_pretrained("mn01_im")
    assert any("mn01_im was trained on images" in message for message in caplog.messages)


def test_an_unknown_state_dict(shared):
    model = load_model(shared / "fixtures/dymn_w01_50cls_s2221/state_dict.pt")
    assert model.card.labels[:2] == ("class_0", "class_1") and len(model.card.labels) == 50
    assert model.card.front_end == FrontEndConfig() and model.card.metrics == {}


def test_assumed_settings_are_named_with_the_remedy(shared, tmp_path, caplog):
    source = tmp_path / "own.pt"
    for fixture, options in (("dymn_w01_50cls_s2221", " --temperature T"), ("mn_w01", " --labels FILE")):
        shutil.copy(shared / f"fixtures/{fixture}/state_dict.pt", source)
        caplog.clear()
        open_checkpoint(source)
        (message,) = caplog.messages
        assert message.endswith(f"run: dymn convert {source} OUT --strides S,S,S,S{options}")
        assert "assumed to be 2,2,2,2" in message and ("temperature" in message) == ("temperature" in options)
        assert ("its labels, which are assumed to be AudioSet's because there are 527" in message) == (
            "labels" in options
        )
    caplog.clear()
    convert(source, tmp_path / "own.safetensors", strides=(2, 2, 2, 1))
    (message,) = caplog.messages
    assert "does not name its 527 classes; they are assumed to be AudioSet's" in message
    caplog.clear()
    convert(source, tmp_path / "own.safetensors", strides=(2, 2, 2, 1), labels=[f"class_{i}" for i in range(527)])
    open_checkpoint(tmp_path / "own.safetensors")
    open_checkpoint(shared / MN04)
    assert not caplog.messages


def test_what_is_verified_is_what_is_read(release, cache, shared, tmp_path, monkeypatch):
    """Each file of weights is opened once, whatever happens to it meanwhile."""
    opened = []
    monkeypatch.setattr(files, "open_regular", lambda path: opened.append(Path(path).name) or open_regular(path))
    small().save_pretrained(tmp_path / "folder")
    for source in ("dymn04_open", "mn04_as", "mn04_as", tmp_path / "folder", shared / "fixtures/mn_w01/state_dict.pt"):
        open_checkpoint(source)
    assert [name for name in opened if "part" not in name] == [
        "dymn04_open.safetensors", "mn04_as_mAP_432.pt", "model.safetensors", "state_dict.pt"
    ]  # fmt: skip
    assert len(opened) == 5  # the download was read once, too

    def replaced(path):
        file = open_regular(path)
        os.replace(shutil.copy(shared / "fixtures/mn_w01/state_dict.pt", tmp_path / "other.pt"), path)
        return file

    expected = load_model(shared / MN04).state_dict()
    monkeypatch.setattr(files, "open_regular", replaced)
    found = load_model("mn04_as").state_dict()
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_a_registry_name_is_downloaded_verified_and_cached(release, cache):
    calls = []
    model = load_model("mn04_as", progress=lambda *amounts: calls.append(amounts))
    assert calls[-1] == (4_066_513, 4_066_513)
    assert model.card.name == "mn04_as" and os.listdir(cache) == ["mn04_as_mAP_432.pt"]
    (release / "mn04_as_mAP_432.pt").unlink()
    assert load_model("mn04_as").config == model.config


def test_without_a_digest_the_import_decides(release, cache):
    assert load_model("mn01_as").card.metrics == {"mAP": 0.298}
    digest = hashlib.sha256((release / "mn01_as_mAP_298.pt").read_bytes()).hexdigest()
    assert (cache / "mn01_as_mAP_298.pt.sha256").read_text() == f"{digest}  mn01_as_mAP_298.pt\n"
    shutil.copy(release / "mn01_as_mAP_298.pt", release / "mn02_as_mAP_378.pt")
    with pytest.raises(WeightsError, match=r"is not mn02_as: its width is 0.1 instead of 0.2"):
        load_model("mn02_as")
    assert sorted(os.listdir(cache)) == ["mn01_as_mAP_298.pt", "mn01_as_mAP_298.pt.sha256"]


def test_a_page_instead_of_weights_is_refused(release):
    (release / "mn05_as_mAP_443.pt").write_text("<html>Sign in</html>")
    with pytest.raises(WeightsError, match="not a plain state dict"):
        load_model("mn05_as")


def test_imagenet_models_may_have_another_head(release, shared):
    shutil.copy(shared / "fixtures/mn_w01/state_dict.pt", release / "mn01_im.pt")  # 527 classes instead of 1,000
    model = load_model("mn01_im")
    assert model.temperature == 30 and model.card.labels[526] == "class_526"


def test_every_published_network_is_recognised(tmp_path):
    """What an import of each file would give is what the registry expects: no entry refuses its own network."""
    for name in ("dymn04_as", "dymn04_replace_se_as", "mn02_as", "mn10_as_fc_s2221", "dymn04_im"):
        entry = REGISTRY[name]
        state = published_layout(create_model(entry.architecture, **entry.settings))
        torch.save(state, tmp_path / entry.file)
        model = import_published(read_file(tmp_path / entry.file), entry)
        assert model.config.num_classes == entry.num_classes
        assert load_model(tmp_path / entry.file).card.name == name


def published_layout(model):
    """Name the tensors of a network as EfficientAT does."""
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    dynamic = any(block.is_dynamic for block in model.config.blocks)
    names = {}
    for key in state:
        parts = key.split(".")
        if parts[0] in ("stem", "last"):
            place = {"stem": "in_c" if dynamic else "features.0", "last": "out_c" if dynamic else "features.16"}[
                parts[0]
            ]
            names[key] = f"{place}.{ {'conv': 0, 'norm': 1}[parts[1]] }.{parts[2]}"
        elif parts[0] == "head":
            mlp = {"hidden": 2, "classifier": 5}
            places = mlp if model.config.head == "mlp" else {"classifier": 0, "norm": 1}
            names[key] = f"classifier.{places[parts[1]]}.{parts[2]}"
        else:
            names[key] = block_name(model.config.blocks[int(parts[1])], int(parts[1]), parts[2:], dynamic)
    return {names[key]: reshaped(names[key], value) for key, value in state.items()}


def block_name(block, i, parts, dynamic):
    prefix = f"layers.{i}" if dynamic else f"features.{i + 1}"
    stages = ["expand", "depthwise", "project"] if block.c_exp != block.c_in else ["depthwise", "project"]
    rest = ".".join(parts[-1:])
    if not block.is_dynamic:
        if parts[0] == "attention":
            layer = {"squeeze": "fc1", "excite": "fc2"}[parts[1]]
            return f"{prefix}.block.{len(stages) - 1}.conc_se_layers.0.{layer}.{rest}"
        position = stages.index(parts[0]) + (block.attention == "se" and parts[0] == "project")
        return f"{prefix}.block.{position}.{ {'conv': 0, 'norm': 1}[parts[1]] }.{rest}"
    if parts[0] == "context":
        return f"{prefix}.context_gen.joint_{parts[1]}.{rest}"
    if parts[0] == "attention":
        return f"{prefix}.context_gen.conv_{parts[1][0]}.{rest}"
    stage = {"expand": "exp", "depthwise": "depth", "project": "proj"}[parts[0]]
    if parts[1] == "activation":
        return f"{prefix}.{stage}_act.coef_net.0.{rest}"
    return f"{prefix}.{stage}_{parts[1]}.{'residuals.0.' if parts[2] == 'coefficients' else ''}{rest}"


def reshaped(name, value):
    return value.reshape(1, 1, len(value), -1) if name.endswith("_conv.weight") and value.ndim == 5 else value


def test_paths_and_folders(tmp_path):
    small().save_pretrained(tmp_path / "folder")
    assert load_model(str(tmp_path / "folder")).card.name == "small"
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "folder" / "other.safetensors")
    assert load_model(tmp_path / "folder").card.name == "small"
    shutil.copy(tmp_path / "folder" / "other.safetensors", tmp_path / "folder" / "third.safetensors")
    with pytest.raises(WeightsError, match=r"contains 2 .safetensors files, such as other.safetensors"):
        load_model(tmp_path / "folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"contains no .safetensors file"):
        load_model(tmp_path / "empty")
    shutil.copy(tmp_path / "folder" / "other.safetensors", tmp_path / "weights.bin")
    assert load_model(tmp_path / "weights.bin").card.name == "small"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mn10_ass", "Did you mean mn10_as"),
        ("no/such/folder/at/all", "There is no file, folder or model with weights"),
        ("runs/best.safetensors", r"There is no file runs/best.safetensors"),
        ("dymn10", r"architecture without weights. Available with weights: dymn10_as, dymn10_im"),
        ("dymn06", r"architecture without weights. `dymn.create_model`"),
        ("", "There is no file, folder or model"),
    ],
)
def test_names_that_are_nothing(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=reason):
        load_model(name)


def test_devices(tmp_path):
    small().save_pretrained(tmp_path)
    assert load_model(tmp_path, device=torch.device("cpu")).stem.conv.weight.device.type == "cpu"
    with pytest.raises(ConfigError, match="'abacus'"):
        load_model(tmp_path, device="abacus")


def test_a_device_is_refused_at_once():
    with pytest.raises(WeightsError, match="/dev/zero is neither a file nor a folder"):
        load_model("/dev/zero")


def test_convert(shared, tmp_path):
    digest = convert(shared / MN04, tmp_path / "mn04.safetensors")
    original, converted = import_efficientat(shared / MN04), load_model(tmp_path / "mn04.safetensors")
    assert (
        digest
        == hashlib.sha256((tmp_path / "mn04.safetensors").read_bytes()).hexdigest()
        == converted.card.provenance["sha256"]
    )
    assert converted.card.name == "mn04_as" and converted.card.provenance["source_sha256"] == REGISTRY["mn04_as"].sha256
    x = torch.randn(2, 1, 128, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(original(x).logits, converted(x).logits)
    convert(tmp_path / "mn04.safetensors", tmp_path / "half", half=True)
    halved = load_model(tmp_path / "half")
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 2_100_000
    torch.testing.assert_close(halved(x).logits.sigmoid(), original(x).logits.sigmoid(), atol=2e-3, rtol=0)


def test_convert_is_told_what_the_file_does_not_say(shared, tmp_path):
    source = shared / "fixtures/dymn_w01_50cls_s2221/state_dict.pt"
    labels = [f"sound {i}" for i in range(50)]
    convert(
        source,
        tmp_path / "out.safetensors",
        name="fifty",
        labels=labels,
        licence="MIT",
        front_end=FrontEndConfig(hop_length=160),
        temperature=3.0,
        strides=(2, 2, 2, 1),
    )
    model = load_model(tmp_path / "out.safetensors")
    assert (model.card.name, model.card.labels, model.card.front_end.hop_length) == ("fifty", tuple(labels), 160)
    assert model.temperature == 3.0 and model.config.blocks[12].stride == 1
    with pytest.raises(ConfigError, match="1 labels for a network with 50 classes"):
        convert(source, tmp_path / "out.safetensors", labels=["one"])
    with pytest.raises(ConfigError, match=r"Write to .*out.safetensors instead"):
        convert(source, tmp_path / "out.pt")


def test_pickled_code_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"in_c.0.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="not executed"):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_looking_up_names_imports_nothing_slow():
    script = (
        "import sys, dymn.weights as w; w.REGISTRY; w.open_checkpoint('dymn04_open')\n"
        "print({'torch', 'ssl', 'http.client'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dymn.weights.nothing


def test_the_model_that_comes_with_dymn():
    entry = REGISTRY["dymn04_open"]
    if not is_local(entry):
        pytest.skip("this checkout comes without dymn04_open")
    model = load_model("dymn04_open")
    assert model.card.name == "dymn04_open" and model.card.labels == audioset_labels()
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
