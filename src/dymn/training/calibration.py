"""Logits stretched and shifted, all classes alike, so that a student is as sure as its teacher."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dymn.errors import ConfigError
from dymn.models.mobilenet import MLPHead, MobileNet

STEPS = 20  # of Newton's method
LOWEST = 1e-7  # of a probability


class Affine(NamedTuple):
    """logits -> slope * logits + offset."""

    slope: float
    offset: float


def fit_affine(student: npt.NDArray[np.float32], teacher: npt.NDArray[np.float32]) -> Affine:
    """Return the map of a student's logits that has the least binary cross-entropy against a teacher, from
    probabilities [N, C] of both.
    """
    p = torch.from_numpy(student.astype(np.float64)).clamp(LOWEST, 1 - LOWEST).flatten()
    q = torch.from_numpy(teacher.astype(np.float64)).flatten()
    z = torch.stack([p.logit(), torch.ones_like(p)])  # [2, N C]
    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(STEPS):
        said = torch.sigmoid(at @ z)
        slope = z @ (said - q)
        bend = (z * (said * (1 - said))) @ z.T
        step = torch.linalg.solve(bend + 1e-9 * torch.eye(2, dtype=bend.dtype), slope)
        size = 1.0
        while size > 1e-3 and _loss(at - size * step, z, q) > _loss(at, z, q):
            size /= 2
        at = at - size * step
    return Affine(*at.tolist())


def _loss(at: Tensor, z: Tensor, q: Tensor) -> Tensor:
    logits = at @ z
    return (functional.softplus(logits) - q * logits).mean()


@torch.no_grad()
def fold_affine(model: MobileNet, affine: Affine) -> None:
    """Put a map of the logits into the last layer of a model.

    Raises:
        ConfigError: if its head has no such layer.
    """
    if not isinstance(model.head, MLPHead):
        raise ConfigError("Logits are calibrated in the last linear layer, which this network lacks (head 'mlp').")
    model.head.classifier.weight.mul_(affine.slope)
    model.head.classifier.bias.mul_(affine.slope).add_(affine.offset)
