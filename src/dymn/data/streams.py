"""An order of the clips of an epoch in which each process and worker reads its own part of the shards sequentially.

The shards are shuffled in each epoch, and their sequence is cut into equal slices. A batch takes clips from many slices
at once; a process or worker reads only its own slices. The next clip of a slice is drawn from its next `BLOCK` clips.
The result is a permutation that depends only on seed and epoch and is known before anything is read: each clip occurs
as often as in the original order, whatever the number of processes and workers, and a position is a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from dymn.data.samplers import Draw, Order, Sampler
from dymn.data.source import Source

SLICES = 64
"""Slices per group: the clips of a batch come from this many slices in turn, or from their greatest common divisor
with the batch size."""
GROUPS = 8
"""Groups of slices, used by the batches in turn: up to this many workers share no slice."""
BLOCK = 16
"""Number of consecutive clips of a slice that are shuffled together."""
AHEAD = 64 * 2**20
"""Bytes that a worker reads ahead."""
LINE = 2
"""Separates these random numbers from those of the sampler's order, which have 0 in this place, and of crops."""

Draws = list[Draw]
Contents = dict[int, "bytes | Exception"]


class Streamed:
    """The clips of a sampler, rearranged.

    Processes share no slices if their number divides both the batch size and `SLICES`, and workers if theirs divides
    `GROUPS`. Otherwise, they read parts of the same slices; the clips of an epoch are the same.

    Args:
        sampler: draws the clips of an epoch.
        parts: number of the shard of each clip [N]; the clips of a shard are stored in the order of their numbers.
        batch_size: total over all processes.
        seed: seed of the rearrangement.
    """

    def __init__(self, sampler: Sampler, parts: npt.NDArray[np.int64], batch_size: int, seed: int = 0) -> None:
        self.sampler, self.parts, self.batch_size, self.seed = sampler, parts, batch_size, seed
        self.slices = math.gcd(batch_size, SLICES)

    def __len__(self) -> int:
        return len(self.sampler)

    def order(self, epoch: int) -> Order:
        """Return the positions of the clips of this epoch; each pass over the data is rearranged separately."""
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
        slices = (place % self.slices * GROUPS + batch % GROUPS).astype(np.uint16)
        places = np.argsort(slices, kind="stable")
        slices = slices[places]
        block = (np.arange(len(row)) - np.searchsorted(slices, slices)) // BLOCK
        order = np.empty_like(row)
        order[places] = row[np.lexsort((rng.random(len(row)), block, slices))]
        return order


def read_ahead(source: Source, shares: Iterable[Draws]) -> Iterator[tuple[Draws, Contents]]:
    """Yield batches with the contents of their clips' files, read `AHEAD` bytes at a time in the order of storage.

    For a source without shards, nothing is read ahead; its clips are read when they are decoded.
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
