"""The registry is data; here it is compared with what the networks say."""

import functools
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dymn.architectures import MODELS, model_config
from dymn.cli import app
from dymn.models.frontend import LogMel
from dymn.profiling import count
from dymn.weights import REGISTRY, audioset_labels, list_models, model_rows
from dymn.weights.published import published_card
from dymn.weights.registry import unknown_model


@functools.cache
def counted(architecture, n_mels, n_frames, settings):
    return count(model_config(architecture, **dict(settings)), n_mels, n_frames)


@pytest.mark.parametrize("name", REGISTRY)
def test_costs_are_those_of_the_network(name):
    model = REGISTRY[name]
    n_frames = LogMel(model.front_end).n_frames(10 * model.front_end.sample_rate)
    cost = counted(model.architecture, model.front_end.n_mels, n_frames, tuple(model.settings.items()))
    assert (model.parameters, model.macs) == (cost.parameters, cost.macs)


def test_entries_are_sound():
    files = [model.file for model in REGISTRY.values()]
    assert len(set(files)) == len(files) == len(REGISTRY)
    for name, model in REGISTRY.items():
        assert model.name == name and model.architecture in MODELS and model.licence == "MIT"
        home = "theMoro/EfficientSED" if model.is_framewise else "fschmid56/EfficientAT"
        assert model.packaged or model.url == f"https://github.com/{home}/releases/download/v0.0.1/{model.file}"
        n_classes = 447 if name.endswith("_strong") else 527
        assert (model.num_classes, model.temperature) == ((1000, 30) if name.endswith("_im") else (n_classes, 1))
        assert (model.psds is not None) == name.endswith("_strong")
        if "mAP" in model.file:
            assert f"mAP_{1000 * model.mean_ap:.0f}" in model.file
    hops = {name: model.front_end.hop_length for name, model in REGISTRY.items() if "_hop_" in name}
    assert hops == {"mn10_as_hop_5": 160, "mn10_as_hop_15": 480, "mn10_as_hop_20": 640, "mn10_as_hop_25": 800}
    assert {model.front_end.n_mels for name, model in REGISTRY.items() if "_mels_" in name} == {40, 64, 256}
    assert REGISTRY["mn10_as_fc_s2221"].strides == (2, 2, 2, 1) and REGISTRY["mn10_as_fc_s2211"].strides == (2, 2, 1, 1)


def test_frame_wise_entries():
    names = list_models("fmn*", pretrained=True)
    assert len(names) == 35 and sum(name.endswith("_weak") for name in names) == 5
    model = REGISTRY["fmn10_tf256_strong"]
    assert (model.file, model.parameters, model.psds) == ("fmn10+tf-256_strong.pt", 5_028_254, 0.4386)
    assert REGISTRY["fmn10_tf256_kd_strong"].file == "fmn10+tf-256_advanced-kd-weak-strong.pt"
    # millions of parameters and multiply-adds as computed for the published networks
    known = {"fmn04_gru104": (1.205, 329), "fmn20_hybrid512": (22.529, 6415), "fmn30_tf768": (43.079, 12404)}
    for name, (parameters, macs) in known.items():
        model = REGISTRY[f"{name}_strong"]
        assert (round(model.parameters / 1e6, 3), round(model.macs / 1e6)) == (parameters, macs)


def test_listing():
    assert set(list_models(pretrained=True)) == set(REGISTRY)
    assert set(list_models()) == set(REGISTRY) | set(MODELS)
    assert list_models("dymn*_im") == ["dymn04_im", "dymn10_im", "dymn20_im"]
    assert list_models("nothing*") == []
    row = model_rows("mn10_as_hop_15")[0]
    assert row.front_end == "128 mels, hop 15 ms" and row.classes == "527 (AudioSet)" and row.mean_ap == 0.463


def test_cached_column(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))
    assert not model_rows("mn10_as")[0].cached
    (tmp_path / "mn10_as_mAP_471.pt").write_bytes(b"x")
    assert model_rows("mn10_as")[0].cached


def test_the_list_says_what_is_unverified(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path))

    def place(name):
        return CliRunner().invoke(app, ["models", name, "--pretrained"]).output.splitlines()[1]

    assert place("mn10_as").endswith("not downloaded, unverified (first use)")
    assert place("mn04_as").endswith("not downloaded") and place("dymn04_open").endswith("included in dymn")
    (tmp_path / "mn10_as_mAP_471.pt.sha256").write_text("0" * 64)
    assert place("mn10_as").endswith("not downloaded, as first downloaded")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  mn10_as\n")
    assert place("mn10_as").endswith("not downloaded, pinned")


def test_labels():
    labels = audioset_labels()
    assert len(labels) == len(set(labels)) == 527
    assert labels[0] == "Speech" and labels[526] == "Field recording"


def test_unknown_names_are_answered_with_similar_ones():
    assert "Did you mean mn10_as" in str(unknown_model("mn10_ass"))
    assert "models with weights are: dymn04_open, " in str(unknown_model("zzz"))


def test_the_listing_does_without_torch():
    script = (
        "import sys; from dymn.weights import model_rows; "
        "print(len(model_rows()), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == f"{len(REGISTRY)} False False\n"


def test_the_spellings_of_the_public_code_are_names_too():
    """Every name of the lists in EfficientAT's models/mn/model.py and models/dymn/model.py."""
    numbered = ["dymn20_as(1)", "dymn20_as(2)", "dymn20_as(3)"]
    numbered += [f"mn40_as{kind}({i})" for kind in ("", "_no_im_pre", "_ext") for i in (2, 3)]
    for name in numbered:
        assert name in REGISTRY and REGISTRY[name].name == name.replace("(", "_").replace(")", "")
    assert REGISTRY["mn40_as_no_im_pre(2)"].url.endswith("/mn40_as_no_im_pre_mAP_483(2).pt")
    assert "mn40_as(4)" not in REGISTRY and "(1)" not in REGISTRY
    with pytest.raises(KeyError):
        REGISTRY["mn40_as(4)"]
    assert REGISTRY["dymn20_as(1)"].mean_ap == 0.491
    pytorch = REGISTRY["mn10_im_pytorch"]
    assert (
        pytorch.num_classes == 527 and model_rows("mn10_im_pytorch")[0].classes == "527 (ImageNet, last layer random)"
    )
    assert audioset_labels() != published_card(pytorch).labels
