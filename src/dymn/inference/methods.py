"""The methods that compute frames and detect events in them: their defaults, and the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from dymn.audio.settings import ReadSettings
from dymn.config import check, check_choice
from dymn.inference.selection import TagSettings
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores

if TYPE_CHECKING:
    from typing_extensions import Self

Times = npt.NDArray[np.float64]


class CutSeconds(NamedTuple):
    """Window and hop of a recording, in seconds."""

    window: float
    hop: float


class Nearby(NamedTuple):
    """A lower threshold that adapts to the probabilities of the label nearby.

    It is a weighted geometric mean of the highest nearby probability and the background: the same sound may have a
    probability of 0.9 in one recording and of 0.1 in another, so no fixed threshold marks its start and end in both.

    Attributes:
        seconds: range on either side.
        background: quantile of the nearby probabilities that counts as the background.
        weight: weight of the highest probability in the mean, from 0 to 1.
        least: lower bound of the mean, as a share of the threshold.
    """

    seconds: float
    background: float = 0.2
    weight: float = 0.4
    least: float = 0.003

    def lowest(self, scores: Scores) -> Scores:
        """Return the lower thresholds [n] of frames with the neighbourhoods [n, size]."""
        place = round(self.background * (scores.shape[1] - 1))
        background = np.partition(scores, place, axis=1)[:, place]
        found: Scores = scores.max(axis=1) ** self.weight * background ** (1 - self.weight)
        return found


class Around(NamedTuple):
    """The neighbourhood of a frame: `half` frames on each side for its median, and `near` nearby frames."""

    half: int = 0
    near: int = 0

    @property
    def reach(self) -> int:
        """The number of frames on each side that are needed."""
        return max(self)

    def nearby(self, scores: Scores) -> Scores:
        """Return the neighbourhoods [n, 2 * near + 1] of [n + 2 * reach] probabilities."""
        margin = self.reach - self.near
        return sliding_window_view(scores[margin : len(scores) - margin], 2 * self.near + 1)

    def smooth(self, scores: Scores) -> Scores:
        """Return the medians of [n + 2 * reach] probabilities, [n]."""
        margin = self.reach - self.half
        inner = scores[margin : len(scores) - margin]
        if self.half == 0:
            return inner
        found: Scores = np.median(sliding_window_view(inner, 2 * self.half + 1), axis=1).astype(np.float32)
        return found


def odd_frames(length: float, step: float) -> int:
    """Return the odd number of frames that is nearest to a length; `step` is that of a frame, in the same unit."""
    return max(0, round((length / step - 1) / 2)) * 2 + 1


class Method(NamedTuple):
    """The defaults of a method; times are in seconds.

    Attributes:
        window, hop: its windows.
        threshold: probability that an event must reach.
        off_share: lower threshold, as a share of the threshold.
        nearby: how the lower threshold adapts to nearby probabilities, or None.
        median: length of the median filter.
        min_gap: minimum gap between events of a label.
    """

    window: float
    hop: float
    threshold: float = 0.1
    off_share: float = 0.3
    nearby: Nearby | None = Nearby(5.0)
    median: float = 0.0
    min_gap: float = 0.64


METHODS = {
    "combined": Method(0.96, 0.16),
    "activation": Method(10.0, 5.0),
    "windows": Method(0.96, 0.16, nearby=Nearby(5.0, weight=0.3)),
    "frames": Method(10.0, 10.0, threshold=0.2, off_share=1.0, nearby=None, median=0.36, min_gap=0.0),
}
"""The methods. The defaults of the first three were chosen with `benchmarks/events.py --sweep`; those of `frames` are
published for EfficientSED, whose thresholds are 0.1, 0.2 and 0.5."""

LONG = 9.6
"""The distance between the long windows of the method "combined", in seconds."""


@dataclass(frozen=True)
class FrameSettings(ReadSettings):
    """Settings of frames and their labels; `ReadSettings` defines how recordings are read.

    Attributes:
        method: a key of `METHODS`, see `dymn.inference.frames`; by default, "frames" for frame-wise networks, "windows"
            for backends that compute whole windows only, and "combined" for all others.
        window: length of a window in seconds; the default depends on the method.
        hop: distance between the starts of two windows in seconds; the default depends on the method.
        smoothing: length in seconds over which the feature map is averaged around each frame ("activation" and
            "combined").
        clip: weight of longer windows in the geometric mean that is a frame's probability, from 0 to 1: of the whole
            window for "activation", of the frames of "activation" for "combined".
        labels: patterns of the labels to report, such as "Dog" or "*music*"; by default, all labels.
        exclude: patterns of labels to leave out.
    """

    method: str | None = None
    window: float | None = None
    hop: float | None = None
    smoothing: float = 0.96
    clip: float = 0.3
    labels: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is not None:
            check_choice("method", self.method, METHODS)
        check(0 <= self.smoothing <= 60, f"smoothing is {self.smoothing}; it must be from 0 to 60 seconds.")
        check(0 <= self.clip <= 1, f"clip is {self.clip}; it must be from 0 to 1.")
        tagging = self.tagging()  # checks what it shares with tagging
        for name in ("labels", "exclude"):
            object.__setattr__(self, name, getattr(tagging, name))
        window, hop = self.cutting()
        check(
            hop <= window or (self.method is None and self.window is None),  # the window is set by `of`
            f"hop is {hop} s and window {window} s; a hop longer than the window would leave out parts of the "
            "recording.",
        )

    @property
    def usual(self) -> Method:
        """The defaults of the method."""
        return METHODS[self.method or "combined"]

    def of(self, backend: Backend) -> Self:
        """Return the settings with the method of a backend's network, unless they name one that fits it.

        Raises:
            ConfigError: if the method does not fit the network.
        """
        own = backend.frame_seconds is not None
        other = "combined" if backend.scores_frames else "windows"
        method = self.method or ("frames" if own else other)
        name = backend.card.name or "This model"
        check(
            own == (method == "frames"),
            f"method is {method!r}, but {name} is a frame-wise network. Leave the method out."
            if own
            else f"method is 'frames', but {name} is not a frame-wise network. Use combined, windows or activation.",
        )
        given = [seconds for seconds in (self.window, self.hop) if seconds is not None]
        check(
            not own or all(abs(seconds - (backend.frame_seconds or 0)) < 1e-6 for seconds in given),
            f"window, hop are {self.window}, {self.hop}; {name} processes consecutive windows of "
            f"{backend.frame_seconds} s. Leave both out.",
        )
        return replace(self, method=method)

    def cutting(self) -> CutSeconds:
        """Return window and hop in seconds."""
        window = self.usual.window if self.window is None else self.window
        return CutSeconds(window, min(self.usual.hop, window) if self.hop is None else self.hop)

    def tagging(self) -> TagSettings:
        """Return the settings that tag such windows with all chosen labels."""
        return TagSettings(0, 0.0, self.labels, self.exclude, *self.cutting())
