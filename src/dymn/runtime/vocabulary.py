"""Other labels for a model: the classes of one level of AudioSet's ontology, or user-defined groups.

The probability of such a label is the highest probability of the labels that belong to it, or their sum if the model's
classes are mutually exclusive. With thresholds per label, it is relative to them: see `Relabelled`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.audio.windows import Filled
from dymn.config import check
from dymn.errors import ConfigError
from dymn.runtime.backend import Backend, BackendOutput, FrameOutput
from dymn.runtime.scores import Scores, ThresholdOrName, check_threshold, thresholds_of
from dymn.system.arrays import Floats
from dymn.system.toml import loads
from dymn.weights.ontology import ancestors, at_level, check_audioset, paths

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

Groups = Mapping[str, Sequence[str]]
"""By the names of groups, what belongs to each: labels, patterns such as "*music*", classes of AudioSet's ontology."""
AT_THRESHOLD = 0.5
"""The relative score of a label that is at its own threshold."""
LEAST = 1e-6
"""Probabilities and thresholds are compared from here to 1 less it."""


def read_groups(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the groups in a TOML file with lines such as people = ["Human voice", "Crowd"].

    Raises:
        ConfigError: if the file cannot be read, is not TOML, or contains anything but lists of strings.
    """
    try:
        found = loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The groups {path} cannot be read: {error.strerror}. Give a TOML file.") from error
    except ValueError as error:
        raise ConfigError(f"The groups {path} are not TOML: {error}.") from error
    for name, members in found.items():
        is_list = isinstance(members, list) and members and all(isinstance(one, str) for one in members)
        check(bool(is_list), f"The group {name!r} in {path} is {members!r}; it must be a list of labels.")
    check(bool(found), f"{path} contains no group. Write lines such as: people = ['Human voice', 'Crowd'].")
    return {name: tuple(members) for name, members in found.items()}


def levels(labels: Sequence[str], level: int) -> dict[str, list[int]]:
    """Return the classes at a level of the ontology, 1 at the top, with the indices of the labels that belong to each.

    Raises:
        ConfigError: if the labels are not AudioSet's, or the level is below 1.
    """
    check(level >= 1, f"level is {level}; it must be at least 1, the level of the top classes.")
    check_audioset(labels, "--level")
    found: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for name in at_level(label, level):
            found.setdefault(name, []).append(index)
    order = list(paths())
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in paths() else len(order)))


def grouped(labels: Sequence[str], groups: Groups) -> dict[str, list[int]]:
    """Return the groups with the indices of their labels, or raise a `ConfigError` for an unknown member."""
    return {
        name: sorted({index for member in members for index in _members(labels, member, name)})
        for name, members in groups.items()
    }


def _members(labels: Sequence[str], member: str, group: str) -> set[int]:
    wanted = member.strip().lower()
    found = {
        index
        for index, label in enumerate(labels)
        if fnmatch.fnmatchcase(label.lower(), wanted)
        or label.lower() == wanted
        or wanted in {above.lower() for above in ancestors(label)}
    }
    if not found:
        known = [*labels, *(name for name in paths() if name not in labels)]
        close = difflib.get_close_matches(member, known, n=3)
        hint = f"Did you mean: {'; '.join(close)}?" if close else "`dymn tag RECORDING --top-k 0` lists all labels."
        raise ConfigError(f"The group {group!r} contains {member!r}, but the model has no such label. {hint}")
    return found


class Relabelled(Backend):
    """A backend with other labels.

    Attributes:
        members: names with the indices of the backend's labels that belong to each.
        threshold: the thresholds of the model to which scores are relative, or 0.0 if scores are probabilities.
    """

    def __init__(
        self,
        backend: Backend,
        members: Mapping[str, Sequence[int]],
        about: Mapping[str, Any],
        threshold: ThresholdOrName = 0.0,
    ) -> None:
        """Put `members` in the place of the backend's labels.

        Thresholds of a model belong to its labels, which differ in them: with "auto" or "precise", a new label passes
        if one of its own does. Each probability is therefore shifted, as a logit, by the label's threshold, so that 0.5
        is at the threshold; the highest of these scores counts, and 0.5 is the threshold of each new label.

        Args:
            backend: with the labels of the model.
            members: see above.
            about: their origin as JSON types; the card's provenance contains it under "labels".
            threshold: a key of `dymn.runtime.scores.THRESHOLDS`; a number changes nothing.

        Raises:
            ConfigError: if the model has no such thresholds.
        """
        check_threshold(threshold)
        self._backend, self.members, self._about = backend, members, about
        self._others: dict[ThresholdOrName, Relabelled] = {}
        self.threshold: ThresholdOrName = threshold if isinstance(threshold, str) else 0.0
        provenance = {name: value for name, value in backend.card.provenance.items() if name != "thresholds"}
        provenance["labels"] = dict(about)
        self._limits: Any = None
        self._combine: Any = np.sum if backend.card.exclusive else np.max
        if isinstance(threshold, str):
            self._limits, self._combine = _logits(thresholds_of(backend.card, threshold)), np.max
            provenance["thresholds"] = {threshold: [AT_THRESHOLD] * len(members)}
        self.card = replace(backend.card, labels=tuple(members), provenance=provenance)
        self.embedding_size, self.is_cpu, self.precision = backend.embedding_size, backend.is_cpu, backend.precision
        self.frame_seconds = backend.frame_seconds
        self.seconds = backend.seconds

    def at(self, threshold: ThresholdOrName) -> Relabelled:
        """Return a backend with these labels and scores for a threshold; always the same one, so that batches form.

        Raises:
            ConfigError: if the model has no such thresholds.
        """
        wanted = threshold if isinstance(threshold, str) else 0.0
        if wanted == self.threshold:
            return self
        if wanted not in self._others:
            self._others.setdefault(wanted, Relabelled(self._backend, self.members, self._about, wanted))
        return self._others[wanted]

    def _scores(self, scores: Scores) -> Scores:
        """Return the scores of the new labels [..., G] for the probabilities of the old [..., C]."""
        if self._limits is not None:
            scores = 1 / (1 + np.exp(self._limits - _logits(scores)))
        columns = [self._combine(scores[..., list(indices)], axis=-1) for indices in self.members.values()]
        return np.asarray(np.minimum(np.stack(columns, axis=-1), np.float32(1)), np.float32)

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield the input of `run` for each window."""
        return self._backend.features(windows, hop)

    def run(self, features: Floats) -> BackendOutput:
        """Return probabilities [B, G] and embeddings [B, D]; errors are those of the backend."""
        output = self._backend.run(features)
        return output._replace(probabilities=self._scores(output.probabilities))

    @property
    def frame_samples(self) -> int:
        """The number of samples between two frames of `frame_run`."""
        return self._backend.frame_samples

    def frame_run(self, features: Floats, smoothing: int = 1) -> FrameOutput:
        """Return what `run` does, and the probabilities of frames [B, T, G]."""
        output = self._backend.frame_run(features, smoothing)
        frames, probabilities = self._scores(output.frames), self._scores(output.probabilities)
        return output._replace(frames=frames, probabilities=probabilities)

    def network(self) -> MobileNet:
        """Return the network, whose classes are those of the model."""
        return self._backend.network()

    def enter_worker(self) -> None:
        """See `Backend.enter_worker`."""
        self._backend.enter_worker()

    def entered_workers(self) -> None:
        """See `Backend.entered_workers`."""
        self._backend.entered_workers()


def _logits(probabilities: Scores) -> np.ndarray:
    clipped = np.clip(probabilities.astype(np.float64), LEAST, 1 - LEAST)
    return np.asarray(np.log(clipped / (1 - clipped)))


def relabel(
    backend: Backend, level: int | None = None, groups: Groups | None = None, threshold: ThresholdOrName = 0.0
) -> Backend:
    """Return a backend whose labels are the classes of a level of the ontology, or groups; unchanged without either.

    Args:
        backend: with the labels of the model.
        level: of the ontology.
        groups: names with their members.
        threshold: the threshold that the labels will be compared with; "auto" and "precise" make scores relative to the
            thresholds that the model has for each of its labels, see `Relabelled`.

    Raises:
        ConfigError: if both are given, they do not fit the labels of the model, or it has no such thresholds.

    Example:
        >>> relabel(open_backend("dymn04_open"), level=1).labels[:2]  # doctest: +SKIP
        ('Human sounds', 'Animal')
    """
    check(level is None or groups is None, "Labels are those of a level, or groups. Give either --level or --groups.")
    if level is not None:
        return Relabelled(backend, levels(backend.labels, level), {"level": level}, threshold)
    if groups is None:
        return backend
    about = {"groups": {name: list(members) for name, members in groups.items()}}
    return Relabelled(backend, grouped(backend.labels, groups), about, threshold)


def kinds(labels: Sequence[str]) -> np.ndarray:
    """Return which labels are kinds of which: a matrix [C, C], true where the column is a kind of the row.

    Raises:
        ConfigError: if the labels are not AudioSet's.
    """
    check_audioset(labels, "--specific")
    above = [ancestors(label) for label in labels]
    return np.array([[row in above[column] for column in range(len(labels))] for row in labels], bool)
