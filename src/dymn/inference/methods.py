"""How frames are got and become events by default, method by method."""

from __future__ import annotations

from typing import Literal, NamedTuple


class CutSeconds(NamedTuple):
    """How a recording is cut, in seconds."""

    window: float
    hop: float


class Method(NamedTuple):
    """What a method does by default; times are in seconds.

    Attributes:
        window, hop: how it cuts recordings.
        threshold: what the probability of an event reaches.
        off_share: what it may fall to, as a share of the threshold.
        median: length of the median filter.
        min_gap: what separates events of a label.
        edges: how the median filter continues a recording at its ends, a mode of `numpy.pad`.
    """

    window: float
    hop: float
    threshold: float = 0.1
    off_share: float = 0.3
    median: float = 0.0
    min_gap: float = 0.64
    edges: Literal["edge", "symmetric"] = "edge"


METHODS = {
    "activation": Method(10.0, 5.0),
    "windows": Method(1.6, 0.32),
    "frames": Method(10.0, 10.0, threshold=0.2, off_share=1.0, median=0.36, min_gap=0.0, edges="symmetric"),
}
"""The methods. The defaults of the first two were chosen with `benchmarks/events.py`; those of `frames` are published
for EfficientSED, whose thresholds are 0.1, 0.2 and 0.5."""
