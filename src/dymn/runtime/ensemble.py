"""Several networks as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dymn.audio.windows import Filled
from dymn.config import check
from dymn.errors import ConfigError
from dymn.runtime.backend import Backend, BackendOutput, FrameOutput, O
from dymn.runtime.scores import Scores, probabilities
from dymn.system.arrays import Floats
from dymn.weights.ensembles import joint_card

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

NEAR_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # a probability of 1 counts as this one, a logit of 16.6


class EnsembleBackend(Backend):
    """Networks of the same classes, whose logits are averaged and whose embeddings are concatenated.

    Where they share front end and kind of backend, spectrograms are computed once.
    """

    def __init__(self, members: Sequence[Backend], name: str = "") -> None:
        """Check that the networks go together.

        Args:
            members: two or more.
            name: of the ensemble; empty for those of its members.

        Raises:
            ConfigError: if they differ in classes, sample rate or, for frame-wise networks, the length of windows.
        """
        self.card = joint_card([member.card for member in members], name)
        first = members[0]
        self.members = tuple(members)
        self.embedding_size = sum(member.embedding_size for member in members)
        self.is_cpu = all(member.is_cpu for member in members)
        self.precision = first.precision
        self.frame_seconds = self._same_windows()
        self.seconds = next((member.seconds for member in members if member.seconds is not None), None)
        self._shares = all((type(m), m.front_end) == (type(first), first.front_end) for m in members)

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield the spectrograms that the networks share, or else samples [N]."""
        return self.members[0].features(windows, hop) if self._shares else super().features(windows, hop)

    def run(self, features: Floats) -> BackendOutput:
        """Return probabilities [B, C] of the mean logits, and the embeddings of all networks side by side [B, D]."""
        return self._joined([member.run(self._features(member, features)) for member in self.members])

    @property
    def frame_samples(self) -> int:
        """The samples between two frames; a `ConfigError` if the networks differ or have none."""
        found = {member.frame_samples for member in self.members}
        check(len(found) == 1, f"The frames of {self.card.name} are {sorted(found)} samples apart; they must be equal.")
        return found.pop()

    def frame_run(self, features: Floats, smoothing: int = 1) -> FrameOutput:
        """Return what `run` does and the probabilities of each frame; see `Backend.frame_run`."""
        return self._joined([member.frame_run(self._features(member, features), smoothing) for member in self.members])

    def network(self) -> MobileNet:
        """Raise a `ConfigError`: there are several."""
        raise ConfigError(
            f"{self.card.name} is an ensemble, which has no layers other than last. Give a single model, or only the "
            "layer last."
        )

    def _same_windows(self) -> float | None:
        """Return the `frame_seconds` of the networks, or raise a `ConfigError` if they differ."""
        first, *others = self.members
        for other in others:
            check(
                other.frame_seconds == first.frame_seconds,
                f"{_described(first)} and {_described(other)}; the windows must be equal in an ensemble.",
            )
        return first.frame_seconds

    def enter_worker(self) -> None:
        """See `Backend.enter_worker`."""
        for member in self.members:
            member.enter_worker()

    def entered_workers(self) -> None:
        """See `Backend.entered_workers`."""
        for member in self.members:
            member.entered_workers()

    def _features(self, member: Backend, features: Floats) -> Floats:
        return features if self._shares else member.waveform_features(features)

    def _joined(self, outputs: Sequence[O]) -> O:
        """Return the outputs of the members as one: the probabilities of mean logits, and all embeddings."""
        *scores, embeddings = zip(*outputs, strict=True)  # in the order of the fields
        return self.checked(type(outputs[0])._make([*map(self._mean, scores), np.concatenate(embeddings, axis=1)]))

    def _mean(self, scores: Sequence[Scores]) -> Scores:
        """Return the probabilities of the mean of the logits that probabilities [..., C] stand for."""
        given = np.stack(scores).astype(np.float64).clip(np.finfo(np.float32).tiny, NEAR_ONE)
        logits = np.log(given) if self.card.exclusive else np.log(given) - np.log1p(-given)
        return probabilities(logits.mean(axis=0), self.card.exclusive)


def _described(member: Backend) -> str:
    """Return what a network does with frames, in words."""
    windows = "any length" if member.frame_seconds is None else f"{member.frame_seconds:g} s"
    return f"{member.card.name or 'A network'} scores windows of {windows}"
