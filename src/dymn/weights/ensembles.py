"""Ensembles by name: their models, and their common card."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from dymn.config import ModelCard, check

ENSEMBLES = {
    "mn40_ensemble": tuple(f"mn40_as{kind}{run}" for kind in ("", "_ext", "_no_im_pre") for run in ("", "_2", "_3"))
}
"""The published ensemble: nine networks of 68 M parameters, 49.8 mAP together."""
COMMANDS = (
    "tag", "events", "embed", "index", "search", "probe", "review", "listen", "serve", "evaluate", "export",
)  # fmt: skip
"""The commands whose model can be an ensemble."""


def members(name: str) -> tuple[str, ...]:
    """Return the models of an ensemble, of "A+B", or the name alone; a `ConfigError` if one is missing at a "+"."""
    if name in ENSEMBLES:
        return ENSEMBLES[name]
    parts = tuple(name.split("+"))
    if len(parts) == 1 or os.path.exists(os.path.expanduser(name)):
        return (name,)
    check(all(parts), f"model is {name!r}: a name is missing next to a +. Write the models of an ensemble as A+B.")
    return parts


def joint_card(cards: Sequence[ModelCard], name: str = "", *, same_front_end: bool = False) -> ModelCard:
    """Return the card of an ensemble: front end and labels of the first, no metrics, a digest of the digests.

    Args:
        cards: two or more.
        name: of the ensemble; empty for the names of its members.
        same_front_end: whether one spectrogram is for all.

    Raises:
        ConfigError: if they differ in classes, or in sample rate or front end.
    """
    check(len(cards) >= 2, f"An ensemble has {len(cards)} models; it needs at least two.")
    first, sound = cards[0], "front ends" if same_front_end else "sample rate"
    for other in cards[1:]:
        same = (other.labels, other.exclusive) == (first.labels, first.exclusive)
        if same_front_end:
            same = same and other.front_end == first.front_end
        check(
            same and other.front_end.sample_rate == first.front_end.sample_rate,
            f"{first.name} and {other.name} differ in their classes or {sound}; they must be equal in an ensemble.",
        )
    names, digests = [card.name for card in cards], [str(card.provenance.get("sha256", "")) for card in cards]
    return ModelCard(
        name=name or "+".join(names),
        front_end=first.front_end,
        labels=first.labels,
        licence="; ".join(dict.fromkeys(card.licence for card in cards if card.licence)),
        provenance={"members": names, "sha256": joint_digest(digests)},
        exclusive=first.exclusive,
    )


def joint_digest(digests: Sequence[str]) -> str:
    """Return the digest of an ensemble from those of its models."""
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()
