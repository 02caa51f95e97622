"""An order of an epoch in which shards are read sequentially, by every process and worker its own part.

The shards are shuffled in each epoch, and their sequence is cut into equal stretches. A batch takes its clips from many
stretches at once, a process and a worker only from their own. What a stretch gives next is drawn from its next `BLOCK`
clips. All of it is a permutation that (seed, epoch) decide, before anything is read: every clip comes as often as in
the order that is rearranged, whatever the number of processes and workers, and a position is a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from dymn.data.samplers import Draw, Order, Sampler
from dymn.data.source import Source

STRETCHES = 64
"""The places of a batch take turns in so many stretches, or as many as divide the batch into equal parts."""
GROUPS = 8
"""Batches take turns in so many groups of stretches: up to so many workers share none."""
BLOCK = 16
"""Clips that are mixed with each other in a stretch."""
AHEAD = 64 * 2**20
"""Bytes that a worker reads ahead."""
LINE = 2
"""Keeps the random numbers of the row apart from those of the order, which have 0 in this place, and of crops."""

Draws = list[Draw]
Contents = dict[int, "bytes | Exception"]


class Streamed:
    """The clips of a sampler, rearranged.

    Processes read stretches of their own where their number divides both the batch and `STRETCHES`; workers, where
    theirs divides `GROUPS`. Else they read parts of the same ones; what an epoch holds does not change.

    Args:
        sampler: says which clips an epoch has.
        parts: number of the shard of each clip [N]; within a shard, clips lie in the order of their numbers.
        batch_size: of all processes together.
        seed: of the rearrangement.
    """

    def __init__(self, sampler: Sampler, parts: npt.NDArray[np.int64], batch_size: int, seed: int = 0) -> None:
        self.sampler, self.parts, self.batch_size, self.seed = sampler, parts, batch_size, seed
        self.stretches = math.gcd(batch_size, STRETCHES)

    def __len__(self) -> int:
        return len(self.sampler)

    def order(self, epoch: int) -> Order:
        """Return the positions of the clips to present in this epoch.

        Each pass over the data is rearranged by itself.
        """
        rng = np.random.default_rng((self.seed, epoch, 0, LINE))
        order = self.sampler.order(epoch)
        passes = range(0, len(order), len(self.parts))
        return np.concatenate(
            [self._rearranged(order[first : first + len(self.parts)], first, rng) for first in passes]
        )

    def _rearranged(self, chosen: Order, first: int, rng: np.random.Generator) -> Order:
        turn = rng.permutation(int(self.parts.max()) + 1)
        row = chosen[np.lexsort((chosen, turn[self.parts[chosen]]))]
        batch, place = np.divmod(np.arange(first, first + len(row)), self.batch_size)
        stretch = (place % self.stretches * GROUPS + batch % GROUPS).astype(np.uint16)
        places = np.argsort(stretch, kind="stable")
        stretch = stretch[places]
        block = (np.arange(len(row)) - np.searchsorted(stretch, stretch)) // BLOCK
        order = np.empty_like(row)
        order[places] = row[np.lexsort((rng.random(len(row)), block, stretch))]
        return order


def read_ahead(source: Source, shares: Iterable[Draws]) -> Iterator[tuple[Draws, Contents]]:
    """Yield batches with what their clips' files hold, read `AHEAD` bytes at a time in the order in which they lie.

    Nothing is read for a source without shards; its clips are read when they are decoded.
    """
    if not source.streams:
        yield from ((share, {}) for share in shares)
        return
    sizes = source.sizes
    waiting: list[Draws] = []
    n_bytes = 0
    for share in shares:
        waiting.append(share)
        n_bytes += int(sizes[[draw.clip for draw in share]].sum())
        if n_bytes >= AHEAD:
            yield from _read(source, waiting)
            waiting, n_bytes = [], 0
    yield from _read(source, waiting)


def _read(source: Source, shares: list[Draws]) -> Iterator[tuple[Draws, Contents]]:
    contents = source.read_many([draw.clip for share in shares for draw in share])
    for share in shares:
        yield share, contents
