"""Samplers: the clips of an epoch as one global sequence, which is cut into batches and divided among processes.

The sequence depends only on seed and epoch, not on the number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dymn.data.source import Source
from dymn.errors import ConfigError, DataError

MOST = 100_000  # clips of a balanced epoch, as for AudioSet
AUDIBLE = 0.1  # least probability of a class that counts as a prediction of the teacher
EVEN = 0.25  # of the draws, for which all clips are alike
ENOUGH = 3.0  # clips of a class, from which on it is as frequent as any other among the draws
Order = npt.NDArray[np.int64]


class Draw(NamedTuple):
    """One draw: the clip, and its position in the epoch, which determines its random crop."""

    epoch: int
    place: int
    clip: int


class Sampler(Protocol):
    """Determines the order of an epoch."""

    def order(self, epoch: int) -> Order:
        """Return the positions of the clips of this epoch."""
        ...

    def __len__(self) -> int: ...


class PlainSampler:
    """Every clip once per epoch, shuffled or in order; or `draws` clips, in several passes if necessary."""

    def __init__(self, n: int, seed: int = 0, *, shuffle: bool = True, draws: int | None = None) -> None:
        if n < 1 or (draws is not None and draws < 1) or seed < 0:
            raise ConfigError(
                f"n, draws and seed are {n}, {draws} and {seed}; n and draws must be at least 1, seed at least 0."
            )
        self.n, self.seed, self.shuffle = n, seed, shuffle
        self.draws = draws if draws is not None else n

    def __len__(self) -> int:
        return self.draws

    def order(self, epoch: int) -> Order:
        """Return whole passes, and a part of one more if `draws` is not a multiple of the number of clips."""
        rng = np.random.default_rng((self.seed, epoch, 0, 0))
        passes = -(-self.draws // self.n)
        order = [rng.permutation(self.n) if self.shuffle else np.arange(self.n) for _ in range(passes)]
        return np.concatenate(order)[: self.draws].astype(np.int64)


class BalancedSampler:
    """Draws rare classes more often; an epoch has `draws` clips.

    If fewer than half of the clips are drawn, this is without replacement, as for AudioSet (Sec. IV-A): a clip's weight
    is the sum of 1000 / (100 + count) over its classes. With more draws, this would select nearly every clip. Then a
    clip's weight is the sum of 1 / count, so all classes are drawn equally often (clips with several classes
    aside), and the clips of rare ones several times; of each clip, the number of times is rounded up or down at random.
    """

    def __init__(self, source: Source, seed: int = 0, *, draws: int) -> None:
        if draws < 1 or seed < 0:
            raise ConfigError(f"draws and seed are {draws} and {seed}; draws must be at least 1, seed at least 0.")
        self.seed = seed
        weights = clip_weights(source)
        labelled = int((weights > 0).sum())
        if labelled == 0:
            raise DataError("No clip has a label, so classes cannot be balanced. Use plain sampling.")
        self.draws = draws
        self._repeated: WeightedSampler | None = None
        if 2 * draws >= labelled:
            self._repeated = WeightedSampler(clip_weights(source, offset=0.0), seed, draws=self.draws)
        with np.errstate(divide="ignore"):
            self._log_weights = np.log(weights)

    def __len__(self) -> int:
        return self.draws

    def order(self, epoch: int) -> Order:
        """Return the positions in the order of successive draws.

        Without replacement, the largest values of log(weight) + Gumbel noise are distributed like such draws.
        """
        if self._repeated is not None:
            return self._repeated.order(epoch)
        rng = np.random.default_rng((self.seed, epoch, 0, 0))
        scores = self._log_weights + rng.gumbel(size=len(self._log_weights))
        chosen = np.argpartition(-scores, self.draws - 1)[: self.draws]
        return chosen[np.argsort(-scores[chosen], kind="stable")].astype(np.int64)


class WeightedSampler:
    """Draws each clip in proportion to its weight.

    An epoch has `draws` clips; the number of times that a clip is drawn is rounded up or down at random.
    """

    def __init__(self, weights: npt.NDArray[np.float64], seed: int = 0, *, draws: int) -> None:
        if draws < 1 or seed < 0:
            raise ConfigError(f"draws and seed are {draws} and {seed}; draws must be at least 1, seed at least 0.")
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise DataError("Weights of clips must be finite, at least 0, and not all 0.")
        self.seed, self.draws = seed, draws
        self._ends = np.cumsum(weights / weights.sum() * draws)
        self._last = int(np.flatnonzero(weights)[-1])

    def __len__(self) -> int:
        return self.draws

    def order(self, epoch: int) -> Order:
        """Return the positions of the drawn clips, shuffled."""
        rng = np.random.default_rng((self.seed, epoch, 0, 0))
        points = rng.random() + np.arange(self.draws)
        order = np.minimum(np.searchsorted(self._ends, points, side="right"), self._last)
        return rng.permutation(order).astype(np.int64)


def heard_weights(probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return sampling weights [N] of clips from a teacher's probabilities [N, C].

    Clips without predictions have probabilities of zero. The share `EVEN` of a weight is equal for all clips. The rest
    is the sum over classes of the probability divided by its sum over the corpus, so all classes have the same weight,
    except those with less than about `ENOUGH` clips. Probabilities below `AUDIBLE` are ignored, because their large
    number would outweigh the others.
    """
    known = probabilities.any(axis=1)
    audible = np.where(probabilities < AUDIBLE, 0.0, probabilities).astype(np.float64)
    weights: npt.NDArray[np.float64] = known / known.sum()
    if not audible.any():
        return weights
    rare = audible @ (1.0 / (ENOUGH + audible.sum(axis=0)))
    weights = known * (EVEN * weights + (1.0 - EVEN) * rare / rare.sum())
    return weights


def class_counts(source: Source, rows: int = 65_536) -> npt.NDArray[np.int64]:
    """Return the number of positive clips of each class [C] (annotated, and above 0.5)."""
    counts = np.zeros(len(source.labels), dtype=np.int64)
    for start in range(0, len(source), rows):
        counts += _positive(source, slice(start, start + rows)).sum(axis=0)
    return counts


def clip_weights(source: Source, rows: int = 65_536, offset: float = 100.0) -> npt.NDArray[np.float64]:
    """Return the sampling weight of every clip [N], the sum of 1000 / (offset + count) over its classes."""
    per_class = 1000.0 / (offset + np.maximum(class_counts(source, rows), 1))
    parts = [_positive(source, slice(start, start + rows)) @ per_class for start in range(0, len(source), rows)]
    return np.concatenate(parts)


class Batches:
    """Divides the order of an epoch into batches, and each batch among the processes.

    Every process iterates over the same global batches and takes every `world`-th clip.

    Args:
        sampler: determines the order.
        batch_size: number of clips of the global batch.
        rank: number of this process.
        world: number of processes.
        drop_last: whether an incomplete last batch is left out.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, *, rank: int = 0, world: int = 1, drop_last: bool = False
    ) -> None:
        if batch_size < 1 or world < 1 or not 0 <= rank < world or batch_size % world:
            raise ConfigError(
                f"batch_size, rank and world are {batch_size}, {rank} and {world}; "
                "the batch must be a multiple of world, and rank must be below it."
            )
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > self.rank and not self.drop_last)

    def shares(self, epoch: int, first: int = 0, step: int = 1) -> Iterator[list[Draw]]:
        """Yield this process's share of each batch of an epoch, or of every `step`-th batch from `first` on."""
        order = self.sampler.order(epoch)
        for number in range(first, len(self), step):
            start = number * self.batch_size
            stop = min(start + self.batch_size, len(order))
            yield [Draw(epoch, place, int(order[place])) for place in range(start + self.rank, stop, self.world)]


def _positive(source: Source, rows: slice) -> npt.NDArray[np.bool_]:
    return (source.catalog.target_rows(rows) > 0.5) & (source.catalog.mask_rows(rows) > 0)
