"""Probabilities of labels, and how logits become them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
"""Probabilities of labels, [C], [B, C] or [B, T, C]."""


def probabilities(logits: Scores, exclusive: bool) -> Scores:
    """Return the probabilities of classes [..., C].

    A sigmoid of each logit, or a softmax if the classes exclude each other.

    Logits that are not finite give probabilities that are not finite; `Backend.checked` reports them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if exclusive:
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
