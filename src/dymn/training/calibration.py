"""Calibration of a student to its teacher: all logits are scaled and shifted equally."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dymn.errors import ConfigError
from dymn.evaluation import calibration
from dymn.evaluation.calibration import Affine
from dymn.models.mobilenet import MLPHead, MobileNet

LOWEST = 1e-7  # of a probability


def fit_affine(student: npt.NDArray[np.float32], teacher: npt.NDArray[np.float32]) -> Affine:
    """Return the map of a student's logits with the least binary cross-entropy, from both probabilities [N, C]."""
    p = np.clip(student.astype(np.float64), LOWEST, 1 - LOWEST)
    return calibration.fit_affine(np.log(p / (1 - p)), teacher)


@torch.no_grad()
def fold_affine(model: MobileNet, affine: Affine) -> None:
    """Put a map of the logits into the last linear layer of a model, or raise a `ConfigError` without one."""
    if not isinstance(model.head, MLPHead):
        raise ConfigError(
            "Logits are calibrated in the last linear layer, which this network does not have (head 'mlp')."
        )
    model.head.classifier.weight.mul_(affine.slope)
    model.head.classifier.bias.mul_(affine.slope).add_(affine.offset)
