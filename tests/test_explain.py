"""The arrays are what the network computes; the picture and the page hold them."""

import base64
import dataclasses
import json
import re
import wave
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dymn.architectures import Variant
from dymn.cli import app
from dymn.errors import AudioError, ConfigError
from dymn.explain import BlockDecisions, explain, is_dynamic
from dymn.models.frontend import LogMel
from dymn.models.layers import Context
from dymn.models.mobilenet import MobileNet
from dymn.plots.explanation import attention_scale, deviations, function_zoom, functions, kernel_zoom, save_picture
from dymn.plots.explanation_page import page
from dymn.plots.style import frequency_ticks

RATE = 32_000


def network(**settings):
    variant = Variant(**({"width": 0.2, "num_classes": 12} | settings))
    model = MobileNet(variant.config()).initialise(torch.Generator().manual_seed(4)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    labels = ("Dog", "</script><b>Bad & $label$</b>", *(f"Class {i}" for i in range(10)))[: model.config.num_classes]
    model.card = dataclasses.replace(model.card, name="tiny", labels=labels)
    return model


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def waveform():
    time = np.arange(3 * RATE) / RATE
    return (0.3 * np.sin(2 * np.pi * 440 * time * (1 + 0.2 * time))).astype(np.float32)


@pytest.fixture(scope="module")
def explanation(model, waveform):
    return explain(model, waveform, RATE, top_k=12, hop=0.25, window=1.0)


def test_decisions_are_those_of_the_forward_pass(model, waveform, explanation):
    log_mel = LogMel()(torch.from_numpy(waveform)[None])
    assert np.allclose(explanation.log_mel, log_mel[0, 0])
    maps = model.feature_maps(log_mel)
    for block, x, decisions in zip(model.blocks, maps, explanation.blocks, strict=False):
        context: Context = block.context(x)
        convs = {name: getattr(block, name).conv for name in decisions.kernels}
        assert set(convs) == {"depthwise", "project"} | ({"expand"} if hasattr(block.expand, "conv") else set())
        for name, conv in convs.items():
            assert np.allclose(decisions.kernels[name], conv.kernel_attention(context)[0].detach(), atol=1e-6)
            assert decisions.kernels[name].sum() == pytest.approx(1, abs=1e-5)
        slopes, intercepts = block.depthwise.activation.maps(context)
        assert np.allclose(decisions.slopes["depthwise"], slopes[0].detach(), atol=1e-6)
        assert np.allclose(decisions.intercepts["depthwise"], intercepts[0].detach(), atol=1e-6)
        frequency, time = block.attention.maps(context)
        assert np.allclose(decisions.frequency, frequency[0, :, :, 0].detach(), atol=1e-6)
        assert np.allclose(decisions.time, time[0, :, 0].detach(), atol=1e-6)


def test_scores_and_timeline_are_probabilities_of_runs(model, waveform, explanation):
    def scores(samples):
        with torch.no_grad():
            return model(LogMel()(torch.from_numpy(samples)[None])).logits[0].sigmoid().numpy()

    place = [model.card.labels.index(label) for label in explanation.labels]
    assert np.allclose(explanation.scores, scores(waveform)[place], atol=1e-6)
    assert explanation.timeline.shape == (12, 12)
    assert explanation.times[0] == pytest.approx(0.125)
    # 0.625 s: cut off at the start
    assert np.allclose(explanation.timeline[0], scores(waveform[:20_000])[place], atol=1e-5)
    assert np.allclose(explanation.timeline[5], scores(waveform[44_000 - 16_000 : 44_000 + 16_000])[place], atol=1e-5)
    assert list(explanation.timeline.max(0)) == sorted(explanation.timeline.max(0), reverse=True)


def test_nothing_is_left_behind(waveform):
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, waveform, RATE, top_k=1, hop=1.0)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"context": "own"}, {"kernels", "slopes", "frequency", "time"}),
        (
            {"context": "concatenated", "dynamic_relus": ("expand", "project")},
            {"kernels", "slopes", "frequency", "time"},
        ),
        ({"attention": "ca_time", "dynamic_convs": ()}, {"slopes", "time"}),
        ({"attention": "ca_frequency", "dynamic_relus": ()}, {"kernels", "frequency"}),
        ({"attention": "ca_original", "attention_blocks": "all", "dynamic_blocks": "none"}, {"frequency", "time"}),
        ({"attention": "se", "attention_blocks": "se", "dynamic_blocks": "none"}, set()),
        ({"dynamic_blocks": "last5", "n_kernels": 7, "n_maps": 1}, {"kernels", "slopes", "frequency", "time"}),
    ],
)
def test_every_kind_of_network_is_explained(settings, kinds, waveform, tmp_path):
    model = network(**settings)
    explanation = explain(model, waveform, RATE, top_k=2, hop=1.0)
    found = {kind for block in explanation.blocks for kind in ("kernels", "slopes") if getattr(block, kind)}
    found |= {
        axis for block in explanation.blocks for axis in ("frequency", "time") if getattr(block, axis) is not None
    }
    assert found == kinds
    assert is_dynamic(model) == bool(kinds)
    assert "{{" not in page(explanation)
    if not {"time", "frequency"} <= kinds or settings.get("n_kernels"):  # the pictures that differ most
        pytest.importorskip("matplotlib")
        save_picture(explanation, tmp_path / "picture.png", dpi=30)
        assert (tmp_path / "picture.png").stat().st_size > 1000


def test_arrays_are_named_and_saved(explanation, tmp_path):
    explanation.save(tmp_path / "arrays.npz")
    with np.load(tmp_path / "arrays.npz") as file:
        assert tuple(file["labels"]) == explanation.labels
        assert file["block05.kernels.expand"].shape == (4,)
        assert file["block15.slopes.depthwise"].shape[1] == 2
        assert np.array_equal(file["block01.time"], explanation.blocks[0].time)


def test_picture_quantities_by_hand(explanation):
    rows = deviations([np.array([[0.2, 0.4], [0.4, 0.8]], np.float32), None], 4)
    assert np.allclose(rows, [[-0.15, -0.15, 0.15, 0.15], [0, 0, 0, 0]])
    assert deviations([None, None], 4) is None
    assert attention_scale(explanation) > 0
    block = explanation.blocks[3]
    x = np.array([-1.0, 0.5], np.float32)
    for channel, curve in enumerate(functions(block, "depthwise", x)):
        lines = zip(block.slopes["depthwise"][channel], block.intercepts["depthwise"][channel], strict=True)
        assert np.allclose(curve, np.max([slope * x + intercept for slope, intercept in lines], axis=0))
    places, names = frequency_ticks(explanation.front_end)
    peak = LogMel().basis[:, round(1000 / (RATE / 1024))].argmax()
    assert abs(places[names.index("1")] - (int(peak) + 0.5)) < 1


def decided(kernels, slopes):
    block = BlockDecisions(1, {"expand": np.array(kernels, np.float32)}, {"expand": np.array(slopes, np.float32)})
    return dataclasses.replace(block, intercepts={"expand": np.zeros_like(block.slopes["expand"])})


@pytest.mark.parametrize(
    ("kernels", "slopes", "zooms"),
    [
        ([0.25, 0.25, 0.25, 0.25], [[1, 0]], (20, 20)),
        ([0.27, 0.23, 0.25, 0.25], [[1.03, 0], [0.9, 0]], (10, 5)),
        ([0.5, 0.5], [[1.2, 0.1]], (20, 2)),
        ([0.97, 0.03], [[1.9, -0.5]], (1, 1)),
    ],
)
def test_small_differences_are_enlarged_as_far_as_they_fit(explanation, kernels, slopes, zooms):
    block = decided(kernels, slopes)
    assert (kernel_zoom(dataclasses.replace(explanation, blocks=(block,))), function_zoom(block)) == zooms
    enlarged = 1 / len(kernels) + zooms[0] * (block.kernels["expand"] - 1 / len(kernels))
    assert enlarged.min() > 0
    assert enlarged.sum() == pytest.approx(1)


def test_page_is_whole_and_safe(explanation):
    text = page(explanation)
    assert not re.search(r"(src|href)\s*=\s*[\"']?https?:", text)
    assert "</script><b>Bad" not in text
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert "</script><b>Bad & $label$</b>" in data["labels"]
    block = data["blocks"][4]
    assert block["kernels"]["expand"] == pytest.approx(explanation.blocks[4].kernels["expand"], abs=1e-4)
    time = np.frombuffer(base64.b64decode(block["time"]["data"]), np.uint8).reshape(block["time"]["rows"], -1) / 255
    assert np.allclose(time, explanation.blocks[4].time, atol=0.003)
    with wave.open(BytesIO(base64.b64decode(data["audio"].partition(",")[2]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (RATE, 3 * RATE)


def test_a_stretch_of_a_file_is_taken(model, waveform, tmp_path):
    path = tmp_path / "$tone_{1}.wav"
    soundfile.write(path, waveform, RATE, subtype="FLOAT")
    explanation = explain(model, path, start=1.0, seconds=1.5, top_k=1, hop=1.0)
    assert np.array_equal(explanation.waveform, waveform[RATE : int(2.5 * RATE)])
    assert (explanation.name, explanation.seconds) == ("$tone_{1}.wav", 1.5)
    with pytest.raises(AudioError, match="ends before 3 s"):
        explain(model, path, start=3.0)


@pytest.mark.parametrize(
    "setting", [{"top_k": 0}, {"start": -1}, {"seconds": 0}, {"window": 0}, {"hop": 0}, {"seconds": 1e9}]
)
def test_wrong_settings_are_refused(model, waveform, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        explain(model, waveform, RATE, **setting)


def test_a_very_short_recording_is_explained(model):
    explanation = explain(model, np.zeros(10, np.float32), RATE, top_k=1)
    assert explanation.timeline.shape == (1, 1)


def test_command_shows_all_labels_of_a_model_with_few(waveform, tmp_path):
    network(num_classes=2).save_pretrained(tmp_path / "two")
    soundfile.write(tmp_path / "tone.wav", waveform, RATE)
    words = ["explain", str(tmp_path / "tone.wav"), "--model", str(tmp_path / "two"), "-o", str(tmp_path / "out.npz")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.npz").exists()


def test_command_writes_picture_page_and_arrays(model, waveform, tmp_path):
    pytest.importorskip("matplotlib")
    model.save_pretrained(tmp_path / "tiny")
    soundfile.write(tmp_path / "tone.wav", waveform, RATE)

    def run(*arguments):
        return CliRunner().invoke(
            app, ["explain", str(tmp_path / "tone.wav"), "--model", str(tmp_path / "tiny"), *arguments]
        )

    outputs = [tmp_path / f"out.{ending}" for ending in ("png", "html", "npz")]
    result = run(*(text for path in outputs for text in ("-o", str(path))))
    assert result.exit_code == 0, result.output
    assert all(path.stat().st_size > 10_000 for path in outputs)
    for wrong in ("out.gif", "tiny", "tone.wav"):
        result = run("-o", str(tmp_path / wrong))
        assert result.exit_code == 2
        assert "--output" in result.output
