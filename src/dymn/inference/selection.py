"""Selection of the labels of a window or a recording, by name, pattern, threshold and rank."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio.settings import ReadSettings
from dymn.audio.windows import check_windows
from dymn.config import ModelCard, check, check_choice
from dymn.errors import ConfigError
from dymn.runtime.scores import Scores, ThresholdOrName, check_threshold, thresholds_of
from dymn.runtime.vocabulary import kinds

COMBINATIONS = ("max", "mean")
SPECIFIC_SHARE = 0.5
"""A more specific label takes the place of a general one if it has at least this share of its probability."""


class Tag(NamedTuple):
    """A label, its probability, and the start and end of the passage that it describes, in seconds."""

    label: str
    score: float
    start: float
    end: float


@dataclass(frozen=True)
class TagSettings(ReadSettings):
    """Settings of tagging; the defaults are those of `dymn tag`. `ReadSettings` defines how recordings are read.

    Attributes:
        top_k: maximum number of labels, best first; 0 returns all.
        threshold: labels with a lower probability are left out; "auto" and "precise" select the thresholds per label
            that are stored in the checkpoint, see `dymn.runtime.scores.THRESHOLDS`.
        labels: patterns of the labels to report, such as "Dog" or "*music*", in upper or lower case; by default, all
            labels.
        exclude: patterns of labels to leave out.
        window: length of a window in seconds; the networks were trained on 10 seconds.
        hop: distance between the starts of two windows in seconds; by default, `window`.
        fill: how a recording, or a remainder at its end, that is shorter than the window is filled: "repeat" repeats
            it, "pad" adds zeros, "bare" leaves it unchanged.
        combine: how windows are combined for the whole recording: "max" is a label's highest probability in any window,
            "mean" its mean over time.
        specific: whether to leave out a label, such as "Animal", if a more specific one, such as "Dog", reaches the
            threshold and at least half of its probability.
    """

    top_k: int = 10
    threshold: ThresholdOrName = 0.0
    labels: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    window: float = 10.0
    hop: float | None = None
    fill: str = "repeat"
    combine: str = "max"
    specific: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            isinstance(self.top_k, int) and self.top_k >= 0,
            f"top_k is {self.top_k!r}; it must be a whole number, 0 for all labels.",
        )
        check_threshold(self.threshold)
        check_windows(self.window, self.hop, self.fill)
        check_choice("combine", self.combine, COMBINATIONS)
        for name in ("labels", "exclude"):
            value = getattr(self, name)
            check(not isinstance(value, str), f"{name} is the text {value!r}; it must be a list of patterns.")
            object.__setattr__(self, name, tuple(value))


class Selection:
    """The selected labels of a model, and the best of them for given probabilities."""

    def __init__(self, card: ModelCard, settings: TagSettings) -> None:
        """Look up the patterns of `settings` among the labels of a model, and its thresholds.

        Raises:
            ConfigError: if a pattern matches no label, nothing is left to choose from, or thresholds are
                requested that the model does not contain.
        """
        labels = card.labels
        chosen = matching(labels, settings.labels) if settings.labels else set(range(len(labels)))
        chosen -= matching(labels, settings.exclude)
        check(
            bool(chosen),
            f"No label is left: exclude={settings.exclude} excludes all labels of labels={settings.labels}.",
        )
        self.labels = labels
        self.thresholds = thresholds_of(card, settings.threshold)
        self.allowed = np.array(sorted(chosen))
        self.count = min(settings.top_k or len(chosen), len(chosen))
        self._kinds = kinds(labels)[np.ix_(self.allowed, self.allowed)] if settings.specific else None

    def best(self, scores: Scores) -> npt.NDArray[np.intp]:
        """Return the indices of the best of the selected labels for probabilities [C], best first."""
        found = scores[self.allowed]
        order = np.argsort(-found, kind="stable")
        if self._kinds is not None:
            order = order[~is_general(found, self._kinds, self.thresholds[self.allowed])[order]]
        best = self.allowed[order[: self.count]]
        chosen: npt.NDArray[np.intp] = best[scores[best] >= self.thresholds[best]]
        return chosen

    def tags(
        self, indices: npt.NDArray[np.intp], scores: npt.NDArray[np.floating[Any]], start: float, end: float
    ) -> list[Tag]:
        """Return labels and their probabilities as tags with a start and an end."""
        return [Tag(self.labels[i], float(score), start, end) for i, score in zip(indices, scores, strict=True)]


def is_general(scores: Scores, kinds: npt.NDArray[np.bool_], thresholds: Scores) -> npt.NDArray[np.bool_]:
    """Return for probabilities [C] which labels are replaced by a more specific one.

    Args:
        scores: probabilities.
        kinds: which labels are kinds of which [C, C], as in `dymn.runtime.vocabulary.kinds`.
        thresholds: the least probability of each label as a more specific one [C].
    """
    rivals = np.where(scores >= thresholds, scores, 0) * kinds  # [row, kinds of it]
    general: npt.NDArray[np.bool_] = rivals.max(axis=1) >= SPECIFIC_SHARE * scores
    return general


def matching(labels: Sequence[str], patterns: Sequence[str]) -> set[int]:
    """Return the indices of the labels that any of the patterns names, upper and lower case being the same.

    A pattern is a label, or a shell-style pattern, or several of them with commas between; labels may hold commas
    themselves.

    Raises:
        ConfigError: if a pattern names no label; the message names similar ones.
    """
    found: set[int] = set()
    for pattern in patterns:
        whole = _matches(labels, pattern)
        for part in [pattern] if whole else [text.strip() for text in pattern.split(",")]:
            matches = _matches(labels, part)
            if not matches:
                close = difflib.get_close_matches(part, labels, n=3)
                close = close or [label for label in labels if part.lower() in label.lower()][:3]
                hint = "`dymn tag RECORDING --top-k 0` lists all labels."
                if close:
                    hint = f"Did you mean: {'; '.join(close)}?"
                raise ConfigError(f"The model has no label {part!r}. {hint}")
            found |= matches
    return found


def _matches(labels: Sequence[str], pattern: str) -> set[int]:
    wanted = pattern.strip().lower()
    exact = {i for i, label in enumerate(labels) if label.lower() == wanted}
    return exact or {i for i, label in enumerate(labels) if fnmatch.fnmatchcase(label.lower(), wanted)}


class WindowTags(NamedTuple):
    """Start and end of a window in seconds, and its tags, best first."""

    start: float
    end: float
    tags: list[Tag]


class Timeline(Sequence[WindowTags]):
    """The tags of each window of a recording, kept small: a day of windows takes a few megabytes."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._spans: list[tuple[float, float]] = []
        self._indices: list[npt.NDArray[np.int16 | np.int32]] = []
        self._scores: list[Scores] = []
        self._small = np.int16 if len(selection.labels) < 2**15 else np.int32

    def append(self, start: float, end: float, scores: Scores) -> None:
        """Add a window with probabilities [C]."""
        best = self._selection.best(scores)
        self._spans.append((start, end))
        self._indices.append(best.astype(self._small))
        self._scores.append(scores[best])

    def matrix(self) -> tuple[npt.NDArray[np.float64], Scores]:
        """Return start and end of each window [W, 2], and probabilities [W, C]; those that were not kept are 0."""
        scores = np.zeros((len(self), len(self._selection.labels)), np.float32)
        for row, indices, values in zip(scores, self._indices, self._scores, strict=True):
            row[indices] = values
        return np.array(self._spans, np.float64).reshape(-1, 2), scores

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        start, end = self._spans[i]
        return WindowTags(
            start, end, self._selection.tags(self._indices[i].astype(np.intp), self._scores[i], start, end)
        )
