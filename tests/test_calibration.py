"""Logits stretched and shifted to fit a teacher."""

import numpy as np
import pytest
import torch

from dymn import create_model
from dymn.architectures import HEADS
from dymn.evaluation.calibration import Affine, reliability
from dymn.training.calibration import fit_affine


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_map_that_was_undone_is_found():
    z = np.random.default_rng(0).normal(-4, 3, (200, 30))
    teacher = 1 / (1 + np.exp(-(1.3 * z + 0.4)))
    student = 1 / (1 + np.exp(-z))
    found = fit_affine(student.astype(np.float32), teacher.astype(np.float32))
    assert found.slope == pytest.approx(1.3, abs=2e-3) and found.offset == pytest.approx(0.4, abs=5e-3)


@pytest.mark.parametrize("head", HEADS)
def test_the_map_is_folded_into_the_last_layer(head):
    settings = {} if head == "frames" else {"width": 0.1, "head": head}
    model = create_model("fmn04" if head == "frames" else "dymn04", 7, generator=seeded(0), **settings).eval()
    x = torch.randn(2, 1, 128, 40, generator=seeded(1))
    with torch.inference_mode():
        before = model(x).logits
        model.head.scale(*Affine(1.5, -0.25))
        torch.testing.assert_close(model(x).logits, 1.5 * before - 0.25, atol=1e-5, rtol=1e-4)


def test_reliability_compares_with_probabilities_as_well():
    p = np.random.default_rng(0).uniform(0, 1, 1000)
    assert reliability(p, p).error == pytest.approx(0, abs=1e-12)
    assert reliability(p, p / 2).error == pytest.approx(p.mean() / 2)
