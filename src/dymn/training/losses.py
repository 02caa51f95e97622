"""The training loss (Sec. IV-B, eq. 8): a weighted sum of label loss and teacher loss, also for mixtures.

Targets are linear, so the targets of a mixture are mixed targets. Missing teacher logits or annotations have weight
zero, also in mixtures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dymn.evaluation.score import probabilities as probabilities


class Targets(NamedTuple):
    """The targets of B clips."""

    labels: Tensor  # [B, C], annotation times mask
    mask: Tensor  # [B, C], 1 where annotated
    teacher: Tensor  # [B, C], the teacher's probabilities, 0 for a clip without
    teacher_share: Tensor  # [B], share of the clip with a teacher: 0 or 1, between for a mixture

    def mixed(self, partner: Tensor, share: Tensor) -> Targets:
        """Mix the targets of each clip [B], with weight `share` [B], with those of clip `partner` [B].

        The masks of mixed clips (a share below 1) are united.
        """
        other = self.mask[partner] * (share < 1).to(self.mask)[:, None]
        return Targets(
            mix(self.labels, partner, share),
            torch.maximum(self.mask, other),
            mix(self.teacher, partner, share),
            mix(self.teacher_share, partner, share),
        )


def mix(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share x + (1 - share) x[partner] along the first axis of `values` [B, ...]."""
    weight = share.view(-1, *[1] * (values.ndim - 1))
    return weight * values + (1.0 - weight) * values[partner]


def targets_of(labels: Tensor, mask: Tensor, teacher_logits: Tensor, has_teacher: Tensor, kind: str = "bce") -> Targets:
    """Return the targets of a batch.

    Args:
        labels: [B, C].
        mask: [B, C], 1 where annotated.
        teacher_logits: [B, C].
        has_teacher: [B], bool.
        kind: "bce" (independent classes) or "ce" (exactly one class).
    """
    share = has_teacher.float()
    return Targets(labels * mask, mask, probabilities(teacher_logits, kind) * share[:, None], share)


def label_loss(
    logits: Tensor, targets: Targets, kind: str, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Return the mean loss against the labels: over annotated classes ("bce"), or over clips that have a label ("ce").

    Args:
        logits: [B, C].
        targets: targets of the clips.
        kind: "bce" or "ce".
        smoothing: share of a label that is moved: half of it to the opposite ("bce"), or all of it to all classes
            equally ("ce").
        weights: weight of each class in the mean [C]; by default, equal weights.
    """
    labels = targets.labels
    if kind == "bce":
        loss = functional.binary_cross_entropy_with_logits(
            logits, labels * (1.0 - smoothing) + 0.5 * smoothing, reduction="none"
        )
        counts = targets.mask if weights is None else targets.mask * weights
        return (loss * counts).sum() / counts.sum().clamp(min=1e-12 if weights is not None else 1.0)
    counts = labels if weights is None else labels * weights
    total = counts.sum(dim=1, keepdim=True)
    smoothed = counts * (1.0 - smoothing) + smoothing * total / labels.shape[1]
    loss = -(smoothed * functional.log_softmax(logits, dim=1)).sum(dim=1)
    return loss.sum() / total.sum().clamp(min=1e-12 if weights is not None else 1.0)


def balanced_weights(counts: npt.NDArray[np.int64]) -> Tensor:
    """Return the reciprocal number of clips of each class [C], 1 on average.

    A class without clips, of which only absence can be learned, has the mean weight of the others.
    """
    found = counts > 0
    weights = 1.0 / np.maximum(counts, 1)
    if found.any():
        weights[~found] = weights[found].mean()
    return torch.from_numpy(weights / weights.mean()).float()


def teacher_loss(logits: Tensor, targets: Targets, kind: str) -> Tensor:
    """Return the mean cross-entropy over clips ("bce": and classes); clips without a teacher count as zero."""
    if kind == "bce":
        # share * softplus(z) - teacher * z is the binary cross-entropy, scaled by the share that has a teacher.
        return (targets.teacher_share[:, None] * functional.softplus(logits) - targets.teacher * logits).mean()
    return -(targets.teacher * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()


class Terms(NamedTuple):
    """The two terms of eq. 8, unweighted scalars; None where its weight is zero."""

    label: Tensor | None
    teacher: Tensor | None

    def weighted(self, label_weight: float) -> Tensor:
        """Return eq. 8: `label_weight` times the label loss plus the rest times the teacher loss."""
        parts = [(label_weight, self.label), (1.0 - label_weight, self.teacher)]
        return torch.stack([weight * term for weight, term in parts if term is not None]).sum()


def loss_terms(
    logits: Tensor,
    targets: Targets,
    *,
    label_weight: float,
    kind: str = "bce",
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Terms:
    """Return the terms of eq. 8.

    For clips without teacher logits, only the labels are used. `smoothing` and `weights` are those of `label_loss`.
    """
    return Terms(
        label_loss(logits, targets, kind, smoothing, weights) if label_weight > 0 else None,
        teacher_loss(logits, targets, kind) if label_weight < 1 else None,
    )
