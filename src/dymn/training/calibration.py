"""Calibration of a student to its teacher: all logits are scaled and shifted equally."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dymn.evaluation import calibration
from dymn.evaluation.calibration import Affine

LOWEST = 1e-7  # of a probability


def fit_affine(student: npt.NDArray[np.float32], teacher: npt.NDArray[np.float32]) -> Affine:
    """Return the map of a student's logits with the least binary cross-entropy, from both probabilities [N, C]."""
    p = np.clip(student.astype(np.float64), LOWEST, 1 - LOWEST)
    return calibration.fit_affine(np.log(p / (1 - p)), teacher)
