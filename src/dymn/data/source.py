"""A dataset as the loop sees it: a catalog of what is annotated, and a store of the encoded audio."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from dymn.data.batch import BadClip, Clip, Floats
from dymn.data.stores import Store
from dymn.errors import AudioError, DataError

logger = logging.getLogger(__name__)

MAX_SECONDS = 600.0

Span = tuple[float, float]  # start and end in seconds
Cut = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Catalog:
    """What is known of N clips without their audio.

    Attributes:
        keys: one name a clip, unique.
        labels: names of the C classes.
        targets: annotation, [N, C] float32, or uint8 [N, ceil(C / 8)] with `packed` (as `np.packbits` makes it).
        masks: [N, C], 1 where annotated; None if all is.
        splits: "train", "val", "test" or "" for each clip; empty if the dataset has no splits.
        folds: number of the fold of each clip; empty if the dataset has none.
        packed: whether `targets` are packed bits.
        spans: from where to where in its file each clip goes, in seconds [N, 2] (inf for the end); None if clips are
            whole files.
        task: what the data say of their task, by the names of `TASK_FACTS`; most datasets say nothing.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    targets: npt.NDArray[np.generic]
    masks: npt.NDArray[np.generic] | None = None
    splits: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    packed: bool = False
    spans: npt.NDArray[np.float64] | None = None
    task: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, classes = len(self.keys), len(self.labels)
        if n == 0:
            raise DataError("The dataset holds no clips. Check its path and the split.")
        if len(set(self.keys)) != n:
            raise DataError(
                f"The dataset names {_first_duplicate(self.keys)!r} twice; every clip needs a name of its own."
            )
        if classes == 0 or len(set(self.labels)) != classes:
            raise DataError("The dataset needs at least one class, and every class a name of its own.")
        strange = [name for name in (*self.keys, *self.labels) if not name.isascii() and not _is_text(name)]
        if strange:
            raise DataError(f"{strange[0]!r} is a name in another encoding than UTF-8. Rename the file or folder.")
        columns = (classes + 7) // 8 if self.packed else classes
        if self.targets.shape != (n, columns):
            raise DataError(
                f"Targets have shape {list(self.targets.shape)}; {[n, columns]} belongs to {n} clips and {classes} "
                "classes."
            )
        if self.masks is not None and self.masks.shape != (n, classes):
            raise DataError(f"Masks have shape {list(self.masks.shape)}; it must be {[n, classes]}.")
        if not self.packed and not np.isfinite(self.targets.astype(np.float32)).all():
            raise DataError("The dataset's targets hold values that are not finite.")
        if self.spans is not None and self.spans.shape != (n, 2):
            raise DataError(f"Spans have shape {list(self.spans.shape)}; it must be {[n, 2]}.")
        for name in ("splits", "folds"):
            if len(getattr(self, name)) not in (0, n):
                raise DataError(f"{name} has {len(getattr(self, name))} entries for {n} clips.")

    def take(self, indices: Sequence[int]) -> Catalog:
        """Return the catalog of some of the clips."""
        rows = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(
            self,
            keys=tuple(self.keys[i] for i in rows),
            targets=self.targets[rows],
            masks=None if self.masks is None else self.masks[rows],
            splits=tuple(self.splits[i] for i in rows) if self.splits else (),
            folds=tuple(self.folds[i] for i in rows) if self.folds else (),
            spans=None if self.spans is None else self.spans[rows],
        )

    def target_rows(self, rows: slice | npt.NDArray[np.int64]) -> Floats:
        """Return the targets of some clips as float32 [rows, C]."""
        chosen = self.targets[rows]
        if self.packed:
            chosen = np.unpackbits(chosen.astype(np.uint8), axis=1, count=len(self.labels))
        return chosen.astype(np.float32)

    def mask_rows(self, rows: slice | npt.NDArray[np.int64]) -> Floats:
        """Return the masks of some clips as float32 [rows, C]."""
        if self.masks is None:
            return np.ones((len(self.targets[rows]), len(self.labels)), dtype=np.float32)
        return self.masks[rows].astype(np.float32)


class Decoded(Protocol):
    """Waveforms that are decoded already, by position in the whole catalog."""

    def read(self, i: int, cut: Cut | None = None) -> tuple[Floats, int] | str:
        """Return waveform [N], passed through `cut`, and fingerprint, or why there is none."""
        ...


class Source(Dataset["Clip | BadClip"]):
    """A map-style dataset of clips, decoded and resampled on access, in the process that accesses them.

    A clip that cannot be decoded comes as `BadClip` with the reason.
    """

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
        self._long: set[str] = set()  # recordings that were found to be cut

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Clip | BadClip:
        if not -len(self) <= i < len(self):
            raise IndexError(f"There is no clip {i} among {len(self)}.")
        return self.clip(range(len(self))[i])

    def clip(self, i: int, cut: Cut | None = None, content: bytes | Exception | None = None) -> Clip | BadClip:
        """Return clip `i`, its waveform passed through `cut` (which takes 16-bit samples as well, where they are
        decoded already).

        `content` is what its store gave, if that was asked before.
        """
        read = self.read(i, cut, content)
        if isinstance(read, BadClip):
            return read
        waveform, mark = read
        row = slice(i, i + 1)
        return Clip(self.keys[i], waveform, self.catalog.target_rows(row)[0], self.catalog.mask_rows(row)[0], mark)

    def read(
        self, i: int, cut: Cut | None = None, content: bytes | Exception | None = None
    ) -> tuple[Floats, int] | BadClip:
        """Return waveform [N] and fingerprint of clip `i`, or why there is none (arguments as for `clip`)."""
        if self.decoded is not None:
            read = self.decoded.read(int(self.indices[i]), cut)
            return BadClip(self.keys[i], read) if isinstance(read, str) else read
        try:
            place = int(self.indices[i])
            found = self.store.read(place) if content is None else content
            if isinstance(found, Exception):
                raise found
            waveform = decode(found, self.sample_rate, self.max_seconds, self._span(i))
            if len(waveform) >= int(self.max_seconds * self.sample_rate):
                self._note_length(self.keys[i])
            return waveform if cut is None else cut(waveform), self._mark(place, found)
        except (AudioError, DataError, OSError) as error:
            return BadClip(self.keys[i], (str(error) or type(error).__name__).rstrip("."))

    def whole(self, i: int, content: bytes | Exception | None = None) -> tuple[Iterable[Floats], int]:
        """Return the whole waveform of clip `i`, however long, as blocks [n], and its fingerprint.

        Raises:
            AudioError, DataError, OSError: if the clip cannot be read; from the blocks, where the damage is.
        """
        from dymn.audio import reading

        if self.decoded is not None:
            read = self.decoded.read(int(self.indices[i]))
            if isinstance(read, str):
                raise DataError(read)
            if len(read[0]) < int(self.max_seconds * self.sample_rate):  # else the end may be missing
                return [read[0]], read[1]
        place = int(self.indices[i])
        found = self.store.read(place) if content is None else content
        if isinstance(found, Exception):
            raise found
        return within(reading.stream(_Named(found), self.sample_rate), self.sample_rate, self._span(i)), self._mark(
            place, found
        )

    def _note_length(self, key: str) -> None:
        if key not in self._long:
            self._long.add(key)
            logger.warning(
                "%s is longer than %g s; only its beginning is used. Cut it into clips.", key, self.max_seconds
            )

    def _span(self, i: int) -> Span | None:
        if self.catalog.spans is None:
            return None
        start, end = self.catalog.spans[i].tolist()
        return start, end

    def _mark(self, place: int, content: bytes) -> int:
        return fingerprint(content) if self.store.marks is None else int(self.store.marks[place])

    def read_many(self, indices: Sequence[int]) -> dict[int, bytes | Exception]:
        """Return what the files of some clips hold, for `clip`, or why there is nothing.

        Read in the order in which they lie.
        """
        place = {int(self.indices[i]): i for i in indices}
        return {place[where]: content for where, content in self.store.read_many(list(place))}

    @property
    def streams(self) -> bool:
        """Whether clips lie in shards that are to be read from front to back."""
        return self.store.parts is not None and self.decoded is None

    @property
    def parts(self) -> npt.NDArray[np.int64] | None:
        """Number of the shard of each clip [N]; None where each has a file of its own, or may be read in any order."""
        return None if self.store.parts is None else self.store.parts[self.indices]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Encoded bytes of each clip [N], -1 where that is not known."""
        return np.asarray(self.store.sizes(), dtype=np.int64)[self.indices]

    @property
    def targets(self) -> Floats:
        """Annotation of all clips [N, C], made on each call (4 bytes a value: 4 GB for the whole of AudioSet)."""
        return self.catalog.target_rows(slice(None))

    @property
    def masks(self) -> Floats:
        """Which annotations count [N, C], made on each call."""
        return self.catalog.mask_rows(slice(None))

    @functools.cached_property
    def digest(self) -> str:
        """A SHA-256 over names, classes, annotations and sizes of all clips, in order: the same on every machine."""
        sizes = self.store.sizes()
        parts = [*self.labels, *self.keys, *(str(sizes[i]) for i in self.indices)]
        digest = hashlib.sha256("\0".join(parts).encode())
        digest.update(np.ascontiguousarray(self.catalog.targets).tobytes())
        digest.update(b"" if self.catalog.masks is None else np.ascontiguousarray(self.catalog.masks).tobytes())
        return digest.hexdigest()

    def stamp(self) -> str:
        """A SHA-256 that also changes when any file of the dataset is written again."""
        return hashlib.sha256("\0".join([self.digest, *self.store.stamps()]).encode()).hexdigest()

    def where(self, indices: Sequence[int]) -> Source:
        """Return the source of some of its clips, by position."""
        if len(indices) == 0:
            raise DataError(f"No clip of {self.name or 'the dataset'} is left. Check split and fold.")
        return self._same(self.indices[np.asarray(indices, dtype=np.int64)].tolist(), self.decoded)

    def at(self, sample_rate: int) -> Source:
        """Return the same source, its waveforms at another sample rate in Hz.

        What was decoded for this one does not count.
        """
        if sample_rate == self.sample_rate:
            return self
        full = self._same(self.indices.tolist(), None)
        full.sample_rate = sample_rate
        return full

    def where_all(self) -> Source:
        """Return the source of the whole dataset that this one is a part of."""
        return self._same(None, self.decoded)

    def with_decoded(self, decoded: Decoded) -> Source:
        """Return the same source, which takes its waveforms from `decoded`."""
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


def within(blocks: Iterable[Floats], sample_rate: int, span: Span | None) -> Iterator[Floats]:
    """Yield what lies within a span of a waveform that comes in blocks [n]; nothing beyond it is asked for.

    Raises:
        AudioError: if the waveform ends before the span begins.
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
        raise AudioError(f"The file ends after {at / sample_rate:.2f} s, before the clip begins at {span[0]:g} s.")


def decode(content: bytes, sample_rate: int, max_seconds: float = MAX_SECONDS, span: Span | None = None) -> Floats:
    """Decode an audio file, or a span of it, to mono float32 [N].

    What is longer than `max_seconds` is cut, without decoding the rest.

    Raises:
        AudioError: if it cannot be decoded or holds no sound.
    """
    from dymn.audio import reading

    limit = int(max_seconds * sample_rate)
    blocks: list[Floats] = []
    length = 0
    for block in within(reading.stream(_Named(content), sample_rate), sample_rate, span):
        blocks.append(block)
        length += len(block)
        if length >= limit:
            break
    if length == 0:
        raise AudioError("The file holds no samples.")
    return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[:limit]


def fingerprint(content: bytes) -> int:
    """Return a 63-bit digest of encoded bytes, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1 | 1


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _first_duplicate(names: Sequence[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
