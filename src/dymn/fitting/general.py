"""Background for classifiers on `dymn04_open`: embeddings of sounds of all kinds, shipped with dymn.

The embeddings belong to one file of weights, whose digest is stored with them. `benchmarks/general_background.py`
computes them.
"""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dymn.fitting.checkpoint import logits_of
from dymn.fitting.examples import GENERAL, LabelledWindows, Place
from dymn.runtime.scores import Scores, probabilities
from dymn.system.arrays import Bools, Floats
from dymn.system.files import atomic_write
from dymn.weights.format import Stored

FILE = "general_background.npz"
STEPS = 15
"""Values are whole numbers of steps from a lowest one: 4 bits."""
RANGE = 0.002
"""The share of the values that lie below the lowest, and above the highest one."""
OWN_LABELS, NEAR_PEAK, RARE = 2, 0.3, 0.003
HEARD = 0.1


class GeneralBackground(NamedTuple):
    """Clips of all kinds.

    Attributes:
        vectors: embeddings of the last layer [N, D].
        seconds: lengths [N].
    """

    vectors: Floats
    seconds: Floats


def general_background(digest: str, path: Path | None = None) -> GeneralBackground | None:
    """Return the sounds that come with dymn for a network, None if they are of another one.

    Args:
        digest: SHA-256 of the network's file.
        path: of the sounds; None for those of dymn.
    """
    with (path or files("dymn.fitting") / FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if str(arrays["digest"]) != digest:
            return None
        packed, low, step = arrays["packed"], arrays["low"], arrays["step"]
        seconds = arrays["seconds"].astype(np.float32)
    steps = np.stack([packed >> 4, packed & STEPS], axis=2).reshape(len(packed), -1)
    return GeneralBackground((steps * step + low).astype(np.float32), seconds)


def write_general_background(path: Path, found: GeneralBackground, digest: str) -> None:
    """Write sounds of a network, each value in 4 bits, as what `general_background` reads; D must be even."""
    low, high = np.quantile(found.vectors, (RANGE, 1 - RANGE), axis=0).astype(np.float32)
    step = np.maximum((high - low) / STEPS, np.float32(1e-9))
    steps = np.clip(np.rint((found.vectors - low) / step), 0, STEPS).astype(np.uint8)
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            digest=np.array(digest),
            packed=steps[:, ::2] << 4 | steps[:, 1::2],
            low=low,
            step=step,
            seconds=found.seconds.astype(np.float16),
        )


def with_general(examples: LabelledWindows, stored: Stored) -> LabelledWindows:
    """Return examples with the sounds that come with dymn for a network as background; unchanged if there are none.

    Where a sound may hold a class, that is not known: where the network hears what it hears in the class.
    """
    found = general_background(stored.digest)
    if found is None:
        return examples
    n = len(found.vectors)
    before, here = (
        probabilities(logits_of(stored, rows).astype(np.float32), exclusive=False)
        for rows in (found.vectors, examples.vectors)
    )
    known = np.stack([~_may_hold(here[positive], before) for positive in examples.targets.T], axis=1)
    more = examples.targets.shape[1]
    return dataclasses.replace(
        examples,
        vectors=np.concatenate([examples.vectors, found.vectors]),
        targets=np.concatenate([examples.targets, np.zeros((n, more), bool)]),
        known=np.concatenate([examples.known, known]),
        weights=np.concatenate([examples.weights, np.ones(n)]),
        groups=(*examples.groups, *(f"{GENERAL} {i}" for i in range(n))),
        places=[*examples.places, *(Place(f"{GENERAL} {i}", 0.0, float(s)) for i, s in enumerate(found.seconds))],
    )


def _may_hold(heard: Scores, general: Scores) -> Bools:
    """Return which sounds may hold a class [N], from probabilities of labels in the class [P, L] and in them [N, L].

    What tells the class are the labels that are likely in it, and much likelier than elsewhere.
    """
    if not len(heard):
        return np.zeros(len(general), bool)
    mean = heard.mean(axis=0)
    lift = np.where(mean >= NEAR_PEAK * mean.max(), mean / (general.mean(axis=0) + RARE), 0)
    own = np.argsort(-lift)[:OWN_LABELS]
    return np.asarray((general[:, own[lift[own] > 0]] > HEARD).any(axis=1))
