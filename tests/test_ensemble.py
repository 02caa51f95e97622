"""Several models as one: the mean of their logits, whichever backend computes them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dymn import Tagger
from dymn.cli import app
from dymn.config import FrontEndConfig, ModelCard
from dymn.errors import ConfigError, WeightsError
from dymn.models import pretrained
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import create_model
from dymn.runtime.ensemble import EnsembleBackend
from dymn.runtime.opening import open_backend
from dymn.weights.registry import ENSEMBLES, REGISTRY, members, unknown_model
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
    assert members("mn40_as(2)+mn04_as") == ("mn40_as(2)", "mn04_as") and members("a+") == ("a+",)
    assert "is an ensemble of models" in str(unknown_model("mn40_ensemble"))


def test_the_published_ensemble():
    """Three each of mn40_as, mn40_as_ext and mn40_as_no_im_pre, says EfficientAT's README: 615.87 M parameters."""
    nine = members("mn40_ensemble")
    assert nine == ENSEMBLES["mn40_ensemble"] and len(set(nine)) == 9
    assert round(sum(REGISTRY[name].parameters for name in nine) / 1e6) == 616


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
