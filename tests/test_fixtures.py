"""The networks and front ends of the shared fixtures, which published weights and their code gave."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dymn import FrontEndConfig, LogMel
from dymn.weights import import_efficientat

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FIXTURES.glob("*/state_dict.pt")))
def test_network(name):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    strides = config.get("strides", (2, 2, 2, 2))
    model = import_efficientat(FIXTURES / name / "state_dict.pt", temperature=config["attention_temperature"], strides=strides)
    io = np.load(FIXTURES / name / "io.npz")
    with torch.no_grad():
        output = model(torch.from_numpy(io["log_mel"]))
    np.testing.assert_allclose(output.logits, io["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.embedding, io["embedding"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("mel/*.npz")), ids=lambda path: path.stem)
def test_log_mel(path):
    fixture = np.load(path)
    config = json.loads(str(fixture["config"]))
    front_end = LogMel(FrontEndConfig(n_mels=config["n_mels"], win_length=config["win_length"], hop_length=config["hopsize"]))
    log_mel = front_end(torch.from_numpy(fixture["waveform"])[None])[0, 0]
    np.testing.assert_allclose(log_mel, fixture["log_mel"], rtol=0, atol=1e-4)
