"""Probabilities from logits, and thresholds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dymn.config import ModelCard, check
from dymn.errors import WeightsError

Scores = npt.NDArray[np.float32]
"""Probabilities of labels, [C], [B, C] or [B, T, C]."""
ThresholdOrName = float | str
"""A probability, or a key of `THRESHOLDS`."""
THRESHOLDS = ("auto", "precise")
"""What the thresholds that a card carries are for: the highest F1, and few false alarms."""


def check_threshold(threshold: ThresholdOrName) -> None:
    """Raise a `ConfigError` unless a threshold is a probability or one of `THRESHOLDS`."""
    allowed = threshold in THRESHOLDS if isinstance(threshold, str) else 0 <= threshold <= 1
    check(allowed, f"threshold is {threshold}; it must be from 0 to 1, or one of: {', '.join(THRESHOLDS)}.")


def thresholds_of(card: ModelCard, threshold: ThresholdOrName) -> Scores:
    """Return the threshold of each class [C]: the same for all, or those that a checkpoint carries.

    Raises:
        ConfigError: if the checkpoint carries none, or the labels are groups or a level that were not made for them.
        WeightsError: if those it carries are not one probability for each class.
    """
    n_classes = len(card.labels)
    if not isinstance(threshold, str):
        return np.full(n_classes, threshold, np.float32)
    stored = card.provenance.get("thresholds")
    found = stored.get(threshold) if isinstance(stored, dict) else None
    check(
        found is not None or "labels" not in card.provenance,  # see `dymn.runtime.vocabulary.Relabelled`
        f"The labels are groups or a level, but their scores are not relative to the thresholds {threshold!r} of the "
        f"model. Create them with relabel(..., threshold={threshold!r}), or give a number.",
    )
    check(
        found is not None,
        f"The model {card.name or 'without a name'} contains no thresholds, which --threshold {threshold} needs. "
        "Create them with `dymn fit` or `dymn calibrate`, or give a number.",
    )
    numbers = found if isinstance(found, list) else []
    if len(numbers) != n_classes or not all(type(value) in (int, float) and 0 <= value <= 1 for value in numbers):
        raise WeightsError(
            f"The card of {card.name or 'the model'} has invalid thresholds; they must be one number from 0 to 1 for "
            f"each of its {n_classes} classes. Create them again with `dymn calibrate`."
        )
    return np.array(numbers, np.float32)


def probabilities(logits: Scores, exclusive: bool) -> Scores:
    """Return probabilities [..., C]: a sigmoid of each logit, or a softmax if the classes exclude each other.

    Logits that are not finite give probabilities that are not finite; `Backend.checked` reports them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if exclusive:
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
