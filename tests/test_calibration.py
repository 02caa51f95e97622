"""Logits stretched and shifted to fit a teacher."""

import numpy as np
import pytest
import torch

from dymn import create_model
from dymn.errors import ConfigError
from dymn.evaluation.calibration import reliability
from dymn.training.calibration import Affine, fit_affine, fold_affine


def test_the_map_that_was_undone_is_found():
    z = np.random.default_rng(0).normal(-4, 3, (200, 30))
    teacher = 1 / (1 + np.exp(-(1.3 * z + 0.4)))
    student = 1 / (1 + np.exp(-z))
    found = fit_affine(student.astype(np.float32), teacher.astype(np.float32))
    assert found.slope == pytest.approx(1.3, abs=2e-3) and found.offset == pytest.approx(0.4, abs=5e-3)


def test_the_map_is_folded_into_the_last_layer():
    x = torch.randn(2, 1, 128, 40)
    model = create_model("dymn04", 7, width=0.1, generator=torch.Generator().manual_seed(0)).eval()
    with torch.inference_mode():
        before = model(x).logits
        fold_affine(model, Affine(1.5, -0.25))
        torch.testing.assert_close(model(x).logits, 1.5 * before - 0.25)
    with pytest.raises(ConfigError, match="last linear layer"):
        fold_affine(create_model("dymn04", 7, width=0.1, head="fully_convolutional"), Affine(1.0, 0.0))


def test_reliability_compares_with_probabilities_as_well():
    p = np.random.default_rng(0).uniform(0, 1, 1000)
    assert reliability(p, p).error == pytest.approx(0, abs=1e-12)
    assert reliability(p, p / 2).error == pytest.approx(p.mean() / 2)
