"""Exported files in onnxruntime-web, the runtime of browsers, give the numbers that they give in Python."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dymn.commands.export import recordings
from dymn.export import Plan, build
from dymn.runtime.onnx_backend import OnnxBackend
from dymn.weights import load_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def node():
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node here")
    if not (ROOT / "web" / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not here; get it with: npm ci --prefix web")
    return found


@pytest.mark.parametrize(
    ("precision", "calibrated"), [("fp32", False), ("fp16", False), ("int8", False), ("int8", True)]
)
def test_the_same_clips_give_the_same_probabilities(node, tmp_path, precision, calibrated):
    model = load_model("dymn04_open")
    plan = Plan(precision=precision, seconds=5.0)
    found = recordings([ROOT / "examples" / "audio"], model.card.front_end.sample_rate)
    clips = np.concatenate([plan.clip(waveform, model.card) for waveform in found])
    content = build(model, precision=precision, seconds=5.0, calibrate=found if calibrated else ())
    (tmp_path / "model.onnx").write_bytes(content)
    clips.tofile(tmp_path / "clips")
    command = [
        node,
        str(ROOT / "web" / "check.mjs"),
        str(tmp_path / "model.onnx"),
        str(tmp_path / "clips"),
        str(clips.shape[1]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    got = np.array(json.loads(done.stdout))
    expected = OnnxBackend(content, threads=1).run_waveforms(clips).probabilities
    assert got.shape == expected.shape and expected.max(axis=1).min() > 0.1
    # sums that differ by round-off may fall to different integers
    assert abs(got - expected).max() < (2e-2 if calibrated else 1e-4)
