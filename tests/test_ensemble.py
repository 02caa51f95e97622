"""Several models as one: the mean of their logits, whichever backend computes them."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dymn import Tagger
from dymn.audio.reading import read
from dymn.cli import app
from dymn.commands.ensembles import with_ensembles
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, WeightsError
from dymn.export import build, export_model
from dymn.models import pretrained
from dymn.models.ensemble import MeanOfLogits
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import create_model
from dymn.runtime.ensemble import EnsembleBackend
from dymn.runtime.opening import open_backend
from dymn.weights.ensembles import COMMANDS, ENSEMBLES, members
from dymn.weights.registry import REGISTRY, unknown_model
from tiny_runs import write_clips

LABELS = ("high", "low", "other")


def network(seed, folder, exclusive=False, labels=LABELS, **front_end):
    generator = torch.Generator().manual_seed(seed)
    model = create_model("dymn04", len(labels), width=0.1, generator=generator)
    torch.nn.init.normal_(model.head.classifier.weight, std=0.5, generator=generator)
    front = FrontEndConfig(**front_end)
    model.card = ModelCard(name=f"m{seed}", labels=labels, front_end=front, licence="MIT", exclusive=exclusive)
    path = folder / f"m{seed}.safetensors"
    pretrained.save(model.eval(), path)
    return model, str(path)


@pytest.fixture
def waveforms():
    return 0.1 * np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("front_end", [{}, {"hop_length": 640}])
def test_the_mean_of_the_logits(tmp_path, waveforms, exclusive, front_end):
    """With one front end, whose spectrograms are shared, and with two."""
    models = [network(0, tmp_path, exclusive), network(1, tmp_path, exclusive, **front_end)]
    backend = open_backend("+".join(path for _, path in models))
    assert isinstance(backend, EnsembleBackend) and backend.card.name == "m0+m1"
    found = backend.run_waveforms(waveforms)
    with torch.inference_mode():
        outputs = [model(LogMel(model.card.front_end)(torch.from_numpy(waveforms))) for model, _ in models]
    logits = torch.stack([output.logits for output in outputs]).mean(dim=0)
    expected = logits.softmax(dim=1) if exclusive else logits.sigmoid()
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-5)
    np.testing.assert_allclose(found.embedding, torch.cat([o.embedding for o in outputs], dim=1), atol=1e-4)


def test_frames_and_tags(tmp_path, waveforms):
    paths = [network(seed, tmp_path)[1] for seed in (0, 1)]
    tagger, alone = Tagger.from_pretrained("+".join(paths)), Tagger.from_pretrained(paths[0])
    assert tagger.backend.frame_samples == alone.backend.frame_samples
    both = tagger.backend.frame_run(tagger.backend.waveform_features(waveforms))
    assert both.frames.shape == alone.backend.frame_run(alone.backend.waveform_features(waveforms)).frames.shape
    assert {tag.label for tag in tagger.tag(waveforms[0], sample_rate=32_000, top_k=3)} == set(LABELS)


def test_models_that_do_not_go_together(tmp_path):
    paths = [network(0, tmp_path)[1], network(1, tmp_path, labels=("a", "b"))[1]]
    with pytest.raises(ConfigError, match="m0 and m1 differ in their classes or sample rate"):
        open_backend("+".join(paths))
    with pytest.raises(WeightsError, match="no file"):
        open_backend(f"{paths[0]}+nowhere.safetensors")
    plus = tmp_path / "a+b.safetensors"
    plus.write_bytes((tmp_path / "m0.safetensors").read_bytes())
    assert members(str(plus)) == (str(plus),) and open_backend(str(plus)).labels == LABELS
    assert members("mn40_as(2)+mn04_as") == ("mn40_as(2)", "mn04_as")
    for wrong in ("a+", "+a", "a++b"):
        with pytest.raises(ConfigError, match=r"a name is missing next to a \+"):
            members(wrong)
    assert "is an ensemble of models" in str(unknown_model("mn40_ensemble"))


def test_the_published_ensemble():
    """Three each of mn40_as, mn40_as_ext and mn40_as_no_im_pre, says EfficientAT's README: 615.87 M parameters."""
    nine = members("mn40_ensemble")
    assert nine == ENSEMBLES["mn40_ensemble"] and len(set(nine)) == 9
    assert round(sum(REGISTRY[name].parameters for name in nine) / 1e6) == 616


def test_an_ensemble_has_no_thresholds_of_its_first_model(tmp_path):
    networks = [network(seed, tmp_path)[0] for seed in range(2)]
    provenance = {"thresholds": {"auto": [0.5] * len(LABELS)}, "calibration": "x", "config": {"data": {"seconds": 5}}}
    networks[0].card = dataclasses.replace(networks[0].card, provenance=provenance)
    assert MeanOfLogits(networks).card.provenance.keys() == {"members", "sha256"}


def test_evaluation_and_tagging_without_pytorch(tmp_path):
    clips = write_clips(tmp_path / "clips", 4)
    names = "+".join(network(seed, tmp_path)[1] for seed in (0, 1))
    words = ["evaluate", names, "--data", str(clips), "--split", "all", "--seconds", "0.5", "--format", "json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0 and '"accuracy"' in found.output, found.output
    script = (
        "import sys; from dymn.inference.tagger import Tagger; "
        f"print(len(Tagger.from_pretrained({names!r}).labels), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "3 False\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two networks, as the name of an ensemble and as a tagger, and a recording of three seconds."""
    folder = tmp_path_factory.mktemp("pair")
    paths = [network(seed, folder)[1] for seed in (0, 1)]
    clip = folder / "clip.wav"
    soundfile.write(clip, 0.1 * np.random.default_rng(1).standard_normal(96_000), 32_000, subtype="FLOAT")
    return "+".join(paths), paths, clip


def run(*words, **options):
    done = CliRunner().invoke(app, [str(word) for word in words], **options)
    assert done.exit_code == 0, done.output
    return done


def test_embeddings_are_those_of_the_members_side_by_side(pair, tmp_path):
    names, paths, clip = pair
    found = {}
    for i, model in enumerate((names, *paths)):
        run("embed", clip, "--model", model, "--layer", "last", "--output", tmp_path / f"{i}.npy")
        found[model] = np.load(tmp_path / f"{i}.npy")["embedding"]
    np.testing.assert_allclose(found[names], np.concatenate([found[path] for path in paths], axis=1), atol=1e-5)


def test_events_are_those_of_the_mean_frame_logits(pair):
    names, paths, clip = pair
    backends = [open_backend(path, device="cpu") for path in (names, *paths)]
    waveform = read(clip, 32_000)[None]
    both, *alone = (b.frame_run(b.waveform_features(waveform)).frames.astype(np.float64) for b in backends)
    logits = np.mean([np.log(frames) - np.log1p(-frames) for frames in alone], axis=0)
    np.testing.assert_allclose(both, 1 / (1 + np.exp(-logits)), atol=1e-5)
    threshold = float(np.median(both))
    words = ["events", clip, "--model", names, "--threshold", threshold, "--format", "json"]
    found = json.loads(run(*words).stdout)["recordings"][0]["events"]
    expected = Tagger.from_pretrained(names, "cpu").events(clip, threshold=threshold)
    assert [event["label"] for event in found] == [event.label for event in expected] and found


@pytest.mark.parametrize("settings", [{}, {"dynamic_time": True, "dynamic_batch": True}, {"precision": "fp16"}])
def test_one_onnx_file(tmp_path, settings):
    """Mean logits and joined embeddings, as PyTorch computes them, and opened with labels and a digest of its own."""
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    networks = [network(seed, tmp_path)[0] for seed in (0, 1)]
    model = MeanOfLogits(networks)
    tolerance = 0.02 if settings.get("precision") else 1e-4
    exported = export_model(model, tmp_path / "both.onnx", seconds=1, **settings)
    assert exported.parity.holds and exported.parity.largest < tolerance
    backend = open_backend(tmp_path / "both.onnx")
    waveform = 0.1 * np.random.default_rng(0).standard_normal((1, 32_000)).astype(np.float32)
    with torch.inference_mode():
        log_mel = LogMel(model.card.front_end)(torch.from_numpy(waveform))
        alone = [member(log_mel) for member in networks]
    found = backend.run_waveforms(waveform)
    logits = torch.stack([output.logits for output in alone]).mean(dim=0)
    np.testing.assert_allclose(found.probabilities, logits.sigmoid(), atol=tolerance)
    np.testing.assert_allclose(found.embedding, torch.cat([o.embedding for o in alone], dim=1), atol=10 * tolerance)
    assert backend.labels == LABELS and backend.card.name == "m0+m1"


def test_a_file_that_onnx_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dymn.export.onnx.MAX_FILE", 2**20)
    with pytest.raises(ConfigError, match=r"file of 0\.00 GB, but ONNX files are limited to 2 GB"):
        build(MeanOfLogits([network(seed, tmp_path)[0] for seed in (0, 1)]))


def test_the_command_exports_an_ensemble(pair, tmp_path):
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    names, _, clip = pair
    out = tmp_path / "both.onnx"
    assert "allowed" in run("export", names, "--output", out, "--seconds", 3).output
    expected = Tagger.from_pretrained(names, "cpu").tag(clip, top_k=3)
    words = ["tag", clip, "--model", out, "--window", 3, "--top-k", 3, "--threshold", 0, "--format", "json"]
    found = json.loads(run(*words).stdout)["recordings"][0]["tags"]
    assert {tag["label"]: tag["score"] for tag in found} == pytest.approx(
        {tag.label: tag.score for tag in expected}, abs=1e-4
    )
    run("export", names, "--seconds", 3)  # into the cache, where it is found by the names of the models
    assert (
        json.loads(run(*words[:3], "m0+m1", "--backend", "onnx", *words[4:]).stdout)["recordings"][0]["tags"] == found
    )
    done = CliRunner().invoke(app, ["export", names, "--format", "litert", "--input", "log-mel", "-o", "both.tflite"])
    assert done.exit_code == 2 and "ensembles are exported as onnx or torch" in done.output


def test_an_exported_program(tmp_path):
    model = MeanOfLogits([network(seed, tmp_path)[0] for seed in (0, 1)])
    assert export_model(model, tmp_path / "both.pt2", format="torch", seconds=1).parity.largest < 1e-4


def test_listening(pair):
    names, _, clip = pair
    pcm = (read(clip, 32_000) * 32767).astype("<i2").tobytes()
    words = ["listen", "-", "--model", names, "--rate", 32_000, "--window", 1, "--hop", 1, "--threshold", 0, "--json"]
    first = json.loads(run(*words, input=pcm).stdout.splitlines()[0])
    tagger = Tagger.from_pretrained(names, "cpu")
    expected = tagger.tag(read(clip, 32_000)[:32_000], sample_rate=32_000, top_k=3)
    assert {tag["label"]: tag["score"] for tag in first["tags"]} == pytest.approx(
        {tag.label: tag.score for tag in expected}, abs=1e-4
    )


def test_serving(pair):
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from starlette.testclient import TestClient

    from dymn.serve.app import create_app
    from dymn.serve.settings import ServeSettings

    names, _, clip = pair
    tagger = Tagger.from_pretrained(names, "cpu")
    with TestClient(create_app({"both": tagger}, ServeSettings())) as client:
        answer = client.post("/v1/tag", params={"top_k": 3, "threshold": 0}, content=clip.read_bytes()).json()
    expected = {tag.label: tag.score for tag in tagger.tag(clip, top_k=3)}
    assert {tag["label"]: tag["score"] for tag in answer["tags"]} == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_is_evaluated_on_windows_of_no_single_member(tmp_path):
    """Models that were trained with other windows do not depend on which one is named first."""
    write_clips(tmp_path / "clips" / "test", 4)
    paths = []
    for seed, data in enumerate(({"seconds": 0.5, "fill": "repeat"}, {"seconds": 0.25, "fill": "pad"})):
        model, path = network(seed, tmp_path, labels=("high", "low"))
        model.card = dataclasses.replace(model.card, provenance={"config": {"data": data}})
        pretrained.save(model, path)
        paths.append(path)
    words = ["--data", str(tmp_path / "clips"), "--format", "json"]
    refused = CliRunner().invoke(app, ["evaluate", "+".join(paths), *words])
    assert refused.exit_code == 2 and "data.seconds: 0.5 (m0), 0.25 (m1). Set seconds (--seconds)." in refused.output
    refused = CliRunner().invoke(app, ["evaluate", "+".join(paths), *words, "--seconds", "0.5"])
    assert "data.fill: repeat (m0), pad (m1). Set fill (--fill)." in refused.output
    tables = []
    for i, order in enumerate((paths, paths[::-1])):
        table = tmp_path / f"{i}.csv"
        given = [*words, "--seconds", "0.5", "--fill", "pad", "--predictions", str(table)]
        assert CliRunner().invoke(app, ["evaluate", "+".join(order), *given]).exit_code == 0
        rows = list(csv.reader(table.open(newline="", encoding="utf-8")))[1:]
        tables.append(np.array([[float(value) for value in row[3:]] for row in rows]))
    np.testing.assert_allclose(*tables, atol=1e-5)


def test_an_ensemble_whose_members_treat_whole_clips_differently(tmp_path):
    write_clips(tmp_path / "clips" / "test", 2)
    paths = []
    for seed, data in enumerate(({"whole": True, "holdout": 0.5}, {"whole": False, "holdout": 0.1})):
        model, path = network(seed, tmp_path, labels=("high", "low"))
        model.card = dataclasses.replace(model.card, provenance={"config": {"data": data}})
        pretrained.save(model, path)
        paths.append(path)
    words = ["evaluate", "+".join(paths), "--data", str(tmp_path / "clips")]
    assert (
        "data.whole: True (m0), False (m1). Set whole (--whole or --no-whole)." in CliRunner().invoke(app, words).output
    )
    assert CliRunner().invoke(app, [*words, "--no-whole"]).exit_code == 0
    write_clips(tmp_path / "unsplit", 8)
    words[-1] = str(tmp_path / "unsplit")
    refused = CliRunner().invoke(app, [*words, "--whole", "--split", "val"])
    assert "data.holdout: 0.5 (m0), 0.1 (m1). Use the test clips or all clips" in refused.output
    assert CliRunner().invoke(app, [*words, "--whole", "--split", "all"]).exit_code == 0


@pytest.mark.parametrize("words", [("--model", "a", "--model=b"), ("-m", "a", "-mb"), ("-qm", "a", "-m", "b")])
def test_a_second_model_is_refused_not_taken_instead_of_the_first(words, tmp_path):
    refused = CliRunner().invoke(app, ["tag", str(tmp_path), *words])
    assert "--model is given 2 times. Give it once; for an ensemble, write --model A B." in refused.output
    refused = CliRunner().invoke(app, ["tag", "dymn04_open", str(tmp_path)])
    assert "dymn04_open is the name of a model" in refused.output
    kept = CliRunner().invoke(app, ["tag", "--model", "no_such_model", "--", "--model"])
    assert "--model is given" not in kept.output
    for named in (
        ["export", "model", "-o", "model"],
        ["evaluate", "model", "--data", "model"],
    ):  # a folder's usual name
        assert "--model is given" not in CliRunner().invoke(app, named).output


@pytest.mark.parametrize(
    ("words", "is_positional", "expected"),
    [
        ("a.wav --model mn04_as dymn04_open dymn02_open", False, "a.wav --model mn04_as+dymn04_open+dymn02_open"),
        ("--model x.safetensors y.pt a.wav", False, "--model x.safetensors+y.pt a.wav"),
        ("-qm mn04_as dymn04_open a.wav", False, "-qm mn04_as+dymn04_open a.wav"),
        ("-mmn04_as dymn04_open --top-k 3", False, "-mmn04_as+dymn04_open --top-k 3"),
        ("--model=mn04_as dymn04_open", False, "--model=mn04_as+dymn04_open"),
        ("--model mn04_as folder dymn04_open", False, "--model mn04_as folder dymn04_open"),
        ("mn04_as dymn04_open --data x", True, "mn04_as+dymn04_open --data x"),
        ("--data mn04_as dymn04_open", True, "--data mn04_as dymn04_open"),
        ("mn04_as dymn04_open", False, "mn04_as dymn04_open"),
        ("--model mn04_as -- dymn04_open", False, "--model mn04_as -- dymn04_open"),
        ("--model mn04_as here", False, "--model mn04_as here"),
    ],
)
def test_models_that_follow_one_another_are_an_ensemble(words, is_positional, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert with_ensembles(words.split(), is_positional) == expected.split()


def test_a_folder_with_the_name_of_a_model_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dymn04_open").mkdir()
    assert with_ensembles(["--model", "mn04_as", "dymn04_open"], False) == ["--model", "mn04_as", "dymn04_open"]


def test_an_ensemble_on_the_command_line(tmp_path):
    write_clips(tmp_path / "clips" / "test", 2)
    paths = [network(seed, tmp_path, labels=("high", "low"))[1] for seed in range(2)]
    clip = str(next((tmp_path / "clips" / "test" / "high").iterdir()))
    said = [
        CliRunner().invoke(app, ["tag", clip, "--format", "json", *model]).stdout
        for model in (["--model", *paths], ["--model", "+".join(paths)], ["--model", paths[0]])
    ]
    assert [json.loads(text)["model"] for text in said] == ["m0+m1", "m0+m1", "m0"]
    words = ["--data", str(tmp_path / "clips"), "--format", "json"]
    assert CliRunner().invoke(app, ["evaluate", *paths, *words]).exit_code == 0
    write_clips(tmp_path / "unsplit", 12)
    probed = run("probe", tmp_path / "unsplit", "--model", *paths, "--format", "json", "--folds", 2)
    assert json.loads(probed.stdout)["model"] == "m0+m1"
    page = tmp_path / "page.html"
    assert "1 question" in run("review", *paths, clip, "--output", page).stderr


def test_an_index_of_an_ensemble(pair, tmp_path):
    pytest.importorskip("usearch", reason="USearch is not installed (dymn[search])")
    _, paths, clip = pair
    run("index", clip, "--model", *paths, "--window", 1, "--output", tmp_path / "index")
    found = json.loads(run("search", clip, "--index", tmp_path / "index", "--model", *paths, "-f", "json").stdout)
    assert found["model"] == "+".join(paths) and len(found["results"]) == 3


def test_the_list_of_commands_with_ensembles_is_that_of_the_help():
    from typer.main import get_command

    commands = get_command(app).commands
    texts = {name: str([getattr(one, "help", "") for one in command.params]) for name, command in commands.items()}
    assert {name for name, text in texts.items() if "A+B is an ensemble" in text} <= set(COMMANDS) <= set(commands)
    assert all(name in str(unknown_model("a+b")) for name in COMMANDS)


def test_commands_that_need_one_network_refuse_an_ensemble(pair, tmp_path):
    names, paths, clip = pair
    write_clips(tmp_path / "clips", 4)
    for words in (
        ("explain", clip, "--model", names),
        ("fit", tmp_path / "clips", "--model", names, "--output", tmp_path / "x.safetensors"),
    ):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 2 and "is an ensemble of models, which only dymn tag, events, embed" in done.stderr, (
            done.output
        )
        twice = CliRunner().invoke(app, [str(word) for word in (*words, "--model", paths[0])])
        assert "--model is given 2 times. Give it once." in twice.stderr
    words = ("embed", clip, "--model", names, "--layer", "block3", "--output", tmp_path / "x.npy")
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2 and "m0+m1 is an ensemble, which has no layers other than last" in done.stderr
