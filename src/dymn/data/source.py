"""Sources: a catalog of annotations and a store of encoded audio."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from dymn.audio import reading
from dymn.audio.notes import Notes
from dymn.data.batch import BadClip, Clip
from dymn.data.catalog import Catalog
from dymn.data.stores import Store
from dymn.errors import AudioError, DataError
from dymn.system.arrays import Floats

logger = logging.getLogger(__name__)

MAX_SECONDS = 600.0
MAX_NOTED = 10  # clips of a dataset whose notes are logged

Interval = tuple[float, float]  # start and end in seconds
Cut = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


class Decoded(Protocol):
    """Decoded waveforms, by position in the whole catalog."""

    def read(self, i: int, cut: Cut | None = None) -> tuple[Floats, int] | str:
        """Return waveform [N], after `cut`, and fingerprint, or the reason why there is none."""
        ...


class Source(Dataset["Clip | BadClip"]):
    """A map-style dataset of clips, decoded and resampled on access; one that cannot be decoded is a `BadClip`."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        *,
        name: str = "",
        indices: Sequence[int] | None = None,
        sample_rate: int = 32_000,
        max_seconds: float = MAX_SECONDS,
        decoded: Decoded | None = None,
    ) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.max_seconds = max_seconds
        self.store = store
        self.decoded = decoded
        self.full = catalog
        self.indices = np.arange(len(catalog.keys)) if indices is None else np.asarray(indices, dtype=np.int64)
        self.catalog = catalog if indices is None else catalog.take(self.indices.tolist())
        self.keys = list(self.catalog.keys)
        self.labels = self.catalog.labels
        self._noted: set[str] = set()  # clips with notes

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Clip | BadClip:
        if not -len(self) <= i < len(self):
            raise IndexError(f"There is no clip {i} among {len(self)}.")
        return self.clip(range(len(self))[i])

    def clip(self, i: int, cut: Cut | None = None, content: bytes | Exception | None = None) -> Clip | BadClip:
        """Return clip `i` with `cut` applied to its waveform.

        `cut` must also accept 16-bit samples, which it receives from decoded clips. `content` is the result of the
        store, if it was read before.
        """
        read = self.read(i, cut, content)
        if isinstance(read, BadClip):
            return read
        waveform, fingerprint = read
        row = slice(i, i + 1)
        return Clip(
            self.keys[i], waveform, self.catalog.target_rows(row)[0], self.catalog.mask_rows(row)[0], fingerprint
        )

    def read(
        self, i: int, cut: Cut | None = None, content: bytes | Exception | None = None
    ) -> tuple[Floats, int] | BadClip:
        """Return waveform [N] and fingerprint of clip `i`, or why there is none (arguments as for `clip`)."""
        if self.decoded is not None:
            read = self.decoded.read(int(self.indices[i]), cut)
            return BadClip(self.keys[i], read) if isinstance(read, str) else read
        try:
            place = int(self.indices[i])
            found = self._encoded(place, content)
            waveform = self.decode(i, found)
            return waveform if cut is None else cut(waveform), self._mark(place, found)
        except (AudioError, DataError, OSError) as error:
            return BadClip(self.keys[i], (str(error) or type(error).__name__).rstrip("."))

    def whole(self, i: int, content: bytes | Exception | None = None) -> tuple[Iterable[Floats], int]:
        """Return the whole waveform of clip `i`, of any length, as blocks [n], and its fingerprint.

        Raises:
            AudioError, DataError, OSError: if the clip cannot be read; raised by the blocks where the clip is damaged.
        """
        if self.decoded is not None:
            read = self.decoded.read(int(self.indices[i]))
            if isinstance(read, str):
                raise DataError(read)
            if len(read[0]) < int(self.max_seconds * self.sample_rate):  # else the end may be missing
                return [read[0]], read[1]
        place = int(self.indices[i])
        found = self._encoded(place, content)
        return self._stream(i, found, Notes()), self._mark(place, found)

    def decode(self, i: int, content: bytes) -> Floats:
        """Decode the file of clip `i` to mono float32 [N]; what is longer than `max_seconds` is cut, with a note.

        Raises:
            AudioError: if it cannot be decoded or contains no samples.
        """
        limit, length = int(self.max_seconds * self.sample_rate), 0
        blocks: list[Floats] = []
        notes = Notes()
        for block in self._stream(i, content, notes):
            blocks.append(block)
            length += len(block)
            if length >= limit:
                notes.add(f"it is longer than {self.max_seconds:g} s; only its beginning is used. Cut it into clips.")
                self._log(i, notes)
                break
        if length == 0:
            raise AudioError("The file contains no samples.")
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[:limit]

    def _stream(self, i: int, content: bytes, notes: Notes) -> Iterator[Floats]:
        yield from within(
            reading.stream(_Named(content), self.sample_rate, notes=notes), self.sample_rate, self._span(i)
        )
        self._log(i, notes)

    def _log(self, i: int, notes: Notes) -> None:
        """Log the notes on a clip, unless many clips have some."""
        key = self.keys[i]
        if notes.lines and key not in self._noted and len(self._noted) <= MAX_NOTED:
            self._noted.add(key)
            if len(self._noted) <= MAX_NOTED:
                notes.log(key, advice=False)
            else:
                logger.warning("Notes on further clips are not shown.")

    def _encoded(self, place: int, content: bytes | Exception | None) -> bytes:
        found = self.store.read(place) if content is None else content
        if isinstance(found, Exception):
            raise found
        return found

    def _span(self, i: int) -> Interval | None:
        if self.catalog.spans is None:
            return None
        start, end = self.catalog.spans[i].tolist()
        return start, end

    def _mark(self, place: int, content: bytes) -> int:
        return fingerprint_of(content) if self.store.fingerprints is None else int(self.store.fingerprints[place])

    def read_many(self, indices: Sequence[int]) -> dict[int, bytes | Exception]:
        """Return the contents of the files of some clips, read in their order on disk, or why there are none."""
        place = {int(self.indices[i]): i for i in indices}
        return {place[where]: content for where, content in self.store.read_many(list(place))}

    @property
    def streams(self) -> bool:
        """Whether clips are in shards that must be read sequentially."""
        return self.store.parts is not None and self.decoded is None

    @property
    def parts(self) -> npt.NDArray[np.int64] | None:
        """Number of the shard of each clip [N]; None if each clip has its own file or can be read in any order."""
        return None if self.store.parts is None else self.store.parts[self.indices]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Encoded bytes of each clip [N], -1 if unknown."""
        return np.asarray(self.store.sizes(), dtype=np.int64)[self.indices]

    @property
    def targets(self) -> Floats:
        """Annotation of all clips [N, C], created at each call (4 bytes per value: 4 GB for all of AudioSet)."""
        return self.catalog.target_rows(slice(None))

    @property
    def masks(self) -> Floats:
        """Mask of the annotated entries [N, C], created at each call."""
        return self.catalog.mask_rows(slice(None))

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of names, classes, annotations and sizes of all clips, in order; equal on every machine."""
        sizes = self.store.sizes()
        parts = [*self.labels, *self.keys, *(str(sizes[i]) for i in self.indices)]
        digest = hashlib.sha256("\0".join(parts).encode())
        digest.update(np.ascontiguousarray(self.catalog.targets).tobytes())
        digest.update(b"" if self.catalog.masks is None else np.ascontiguousarray(self.catalog.masks).tobytes())
        return digest.hexdigest()

    def stamp(self) -> str:
        """A SHA-256 that also changes when a file of the dataset is rewritten."""
        return hashlib.sha256("\0".join([self.digest, *self.store.stamps()]).encode()).hexdigest()

    def where(self, indices: Sequence[int]) -> Source:
        """Return a source of some of the clips, by position."""
        if len(indices) == 0:
            raise DataError(f"No clip of {self.name or 'the dataset'} is left. Check split and fold.")
        return self._same(self.indices[np.asarray(indices, dtype=np.int64)].tolist(), self.decoded)

    def at(self, sample_rate: int) -> Source:
        """Return the same source with another sample rate in Hz; clips that are already decoded are not reused."""
        if sample_rate == self.sample_rate:
            return self
        full = self._same(self.indices.tolist(), None)
        full.sample_rate = sample_rate
        return full

    def where_all(self) -> Source:
        """Return the source of the whole dataset to which this one belongs."""
        return self._same(None, self.decoded)

    def with_decoded(self, decoded: Decoded) -> Source:
        """Return the same source with waveforms from `decoded`."""
        return self._same(self.indices.tolist(), decoded)

    def _same(self, indices: list[int] | None, decoded: Decoded | None) -> Source:
        return Source(
            self.full,
            self.store,
            name=self.name,
            indices=indices,
            sample_rate=self.sample_rate,
            max_seconds=self.max_seconds,
            decoded=decoded,
        )


class _Named(io.BytesIO):
    """Bytes with the name that error messages show."""

    name = "the clip"


def within(blocks: Iterable[Floats], sample_rate: int, span: Interval | None) -> Iterator[Floats]:
    """Yield a span of a waveform that arrives in blocks [n]; later blocks are not read.

    Raises:
        AudioError: if the waveform ends before the start of the span.
    """
    start, end = (0, math.inf) if span is None else (round(span[0] * sample_rate), span[1] * sample_rate)
    at = 0
    for block in blocks:
        if (last := round(min(end, at + len(block)))) > start:
            yield block[max(0, start - at) : last - at]
        at += len(block)
        if at >= end:
            return
    if span is not None and at <= start:
        raise AudioError(
            f"The file ends after {at / sample_rate:.2f} s, before the start of the clip at {span[0]:g} s."
        )


def fingerprint_of(content: bytes) -> int:
    """Return a 63-bit digest of encoded bytes, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1 | 1
