"""An index of sounds on disk: the embeddings of windows, and a graph that finds the most similar ones.

An index is a folder. `embeddings.journal` holds the embeddings (see `dymn.inference.journal`), so that only new and
changed recordings are computed; the graph (HNSW, of the library USearch) and the table of its windows are made from
them. `index.json` names both and is replaced last, so that an end at any moment leaves the old index or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import check
from dymn.errors import AudioError, ConfigError, DataError, MissingExtraError
from dymn.inference.embedding import Embedding
from dymn.inference.journal import Journal
from dymn.inference.runs import Kind
from dymn.system.arrays import Floats
from dymn.system.files import atomic_write, digest_of, open_regular, read_bounded

EXTRA = "search"
POINTER, EMBEDDINGS, FORMAT = "index.json", "embeddings", 2
MAX_SIZE = 2**16  # values of an embedding
MAX_POINTER = 2**20
REPLACEMENTS = 4
"""How often an index may be replaced while it is opened."""
PARAMETERS = ("window", "hop", "fill", "layers")  # of the windows, which a query needs
EXACT = 50_000
"""Up to so many windows are all compared, which takes some milliseconds."""
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 64, 128
"""Of the graph: neighbours of a node, and candidates kept while a node is added and while the nearest are searched."""
BATCH = 2**14


class Hit(NamedTuple):
    """A window that was found: its recording, start and end in seconds, and cosine similarity, at most 1."""

    recording: str
    start: float
    end: float
    score: float


def stored(size: int) -> Kind[Embedding]:
    """Return how the windows of a recording are kept in an index: spans, and unit vectors in half precision."""
    kind = _row(size)

    def pack(found: Embedding) -> bytes:
        rows = np.empty(len(found.windows), kind)
        rows["span"], rows["vector"] = found.spans, unit(found.windows)
        return rows.tobytes()

    def unpack(name: str, seconds: float, packed: bytes) -> Embedding:
        rows = np.frombuffer(packed, kind)
        return Embedding(name, seconds, windows=rows["vector"].astype(np.float32), spans=rows["span"])

    return Kind(pack, unpack, Embedding)


def _row(size: int) -> np.dtype[Any]:
    return np.dtype([("span", "<f8", (2,)), ("vector", "<f2", (size,))])


def unit(vectors: Floats) -> Floats:
    """Return vectors [N, D] of length 1; a vector of zeros stays one."""
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled.astype(np.float32)


def new_graph(size: int) -> Any:
    """Return an empty graph of vectors of `size` values, or raise a `MissingExtraError`."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise MissingExtraError("An index", EXTRA) from error
    return Index(
        ndim=size,
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )


@dataclass
class WindowTable:
    """The windows of an index.

    Attributes:
        recordings: absolute paths, in the order in which they were added.
        digests: of what is kept of each recording.
        firsts: the key of each recording's first window; those of the others follow.
        spans: start and end of the windows of each recording in seconds, [W, 2] each.
    """

    recordings: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    spans: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.spans))

    def append(self, recording: str, digest: str, first: int, spans: npt.NDArray[np.float64]) -> None:
        """Add a recording, whose first key must be above all others."""
        self.recordings.append(recording)
        self.digests.append(digest)
        self.firsts.append(first)
        self.spans.append(spans)

    def rows(self) -> Iterator[tuple[str, str, int, npt.NDArray[np.float64]]]:
        """Yield the recordings as `append` takes them."""
        return zip(self.recordings, self.digests, self.firsts, self.spans, strict=True)

    def window(self, key: int) -> tuple[str, float, float]:
        """Return recording, start and end of a window, or raise a `DataError` if there is none."""
        place = int(np.searchsorted(self.firsts, key, side="right")) - 1
        if place < 0 or key - self.firsts[place] >= len(self.spans[place]):
            raise DataError(
                f"The index has no window {key}: its graph and its table differ. Create it again with --fresh."
            )
        start, end = self.spans[place][key - self.firsts[place]].tolist()
        return self.recordings[place], start, end

    def keys(self, place: int) -> npt.NDArray[np.uint64]:
        """Return the keys of the windows of a recording, by its place."""
        return np.arange(self.firsts[place], self.firsts[place] + len(self.spans[place]), dtype=np.uint64)


@dataclass(frozen=True)
class SoundIndex:
    """An index that is open for searching.

    Attributes:
        path: of the graph.
        model: the name of the model, or its path; `digest` is the SHA-256 of its file.
        parameters: how recordings were cut, as JSON types.
        size: number of values of an embedding, D.
    """

    path: Path
    model: str
    digest: str
    parameters: dict[str, Any]
    size: int
    table: WindowTable
    graph: Any = field(repr=False)

    def search(self, vector: Floats, count: int) -> list[Hit]:
        """Return the `count` windows that are most similar to a vector [D], best first."""
        exact = len(self.table) <= EXACT
        found = self.graph.search(unit(vector), min(count, len(self.table)), exact=exact)
        pairs = zip(found.keys.tolist(), found.distances.tolist(), strict=True)
        return [Hit(*self.table.window(key), 1 - distance) for key, distance in pairs]

    def vectors(self, keys: npt.NDArray[np.uint64]) -> Floats:
        """Return the unit vectors [N, D] of windows by their keys."""
        return np.asarray(self.graph.get(keys, dtype="f32"), np.float32).reshape(len(keys), self.size)


def open_index(folder: Path) -> SoundIndex:
    """Open an index; its graph is read from the disk as it is searched.

    `dymn index` may replace the index meanwhile, which removes the files that were named before. So what seems damaged
    is opened again as long as other files are named.

    Raises:
        ConfigError: if there is none.
        DataError: if it is damaged.
        MissingExtraError: if USearch is not installed.
    """
    pointer = _pointer(folder)
    for _ in range(REPLACEMENTS):
        with contextlib.suppress(DataError):
            return _open(folder, pointer)
        before, pointer = pointer, _pointer(folder)
        if pointer == before:
            break
    return _open(folder, pointer)


def _pointer(folder: Path) -> bytes:
    try:
        return read_bounded(folder / POINTER, MAX_POINTER)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no index at {folder}. Create one with: dymn index FOLDER -o {folder}") from error
    except OSError as error:
        raise _damaged(folder, str(error)) from error


def _open(folder: Path, pointer: bytes) -> SoundIndex:
    """Open the files that a pointer names."""
    try:
        about = json.loads(pointer)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, str(error)) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _damaged(folder, f"{POINTER} is of another version")
    try:
        size = int(about["size"])
        if not 0 < size <= MAX_SIZE:
            raise ValueError(f"its embeddings have {size} values")
        graph = new_graph(size)
        path, windows = (folder / Path(about[name]).name for name in ("graph", "table"))
        for file, name in ((path, "graph_digest"), (windows, "table_digest")):
            if _digest(file) != about[name]:  # the library trusts the file that it maps
                raise ValueError(f"{file.name} was changed")
        table = _read_table(windows)
        graph.view(os.fspath(path))
        parameters = {name: about["parameters"][name] for name in PARAMETERS} | about["parameters"]
        found = SoundIndex(path, about["model"], about["digest"], parameters, size, table, graph)
        has = len(graph)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, zipfile.BadZipFile) as error:
        raise _damaged(folder, str(error)) from error
    if has != len(table) or graph.ndim != size:
        raise _damaged(folder, f"the graph has {has:,} windows, the table {len(table):,}")
    return found


def check_model(folder: Path, model: str, digest: str) -> None:
    """Raise a `ConfigError` if there is an index of another model."""
    try:
        about = json.loads(read_bounded(folder / POINTER, MAX_POINTER))
        old, before = str(about["model"]), str(about["digest"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return  # none, or a damaged one, which is created again
    check(
        before == digest,
        f"{folder} was created with {old} (digest {before[:12]}…), but {model} has the digest {digest[:12] or 'none'}…."
        " Give the original model as --model, another --output, or --fresh to start over.",
    )


def update(
    journal: Journal,
    folder: Path,
    about: dict[str, Any],
    size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    unlisted: Iterable[str] = (),
) -> WindowTable:
    """Make the graph of an index hold what its journal does, and return the table of its windows.

    Only windows of new and changed recordings are added, and those of recordings that are gone removed.

    Args:
        journal: of the index, complete.
        folder: of the index.
        about: model, digest and parameters, as in `SoundIndex`.
        size: number of values of an embedding.
        progress: called with the recordings that are done and their number.
        unlisted: folders that could not be listed, from the root on; what is below them is not gone.

    Raises:
        AudioError: if no recording could be embedded.
        MissingExtraError: if USearch is not installed.
    """
    graph, before, number = _before(folder, about, size)
    news, gone = _add(graph, before, journal, size, progress)
    again = set(news.recordings)
    for place in list(gone):
        recording = before.recordings[place]
        if recording not in again and any(Path(recording).is_relative_to(folder) for folder in unlisted):
            gone.remove(place)
    table = WindowTable()
    for place, row in enumerate(before.rows()):
        if place in gone:
            graph.remove(before.keys(place))
        else:
            table.append(*row)
    for row in news.rows():
        table.append(*row)
    if not len(table):
        raise AudioError("No recording could be embedded, so there is nothing to index.")
    _write(folder, graph, table, about | {"size": size}, number + 1)
    return table


def _before(folder: Path, about: dict[str, Any], size: int) -> tuple[Any, WindowTable, int]:
    """Return the graph of an index in memory, its table, and its number; new ones if there is none that fits."""
    graph, number = new_graph(size), 0
    with contextlib.suppress(ConfigError, DataError):  # a damaged graph is created again
        old = open_index(folder)
        number = int(re.sub(r"\D", "", old.path.stem))
        if (old.digest, old.parameters, old.size) == (about["digest"], about["parameters"], size):
            graph.load(os.fspath(old.path))
            return graph, old.table, number
    return graph, WindowTable(), number


def _add(
    graph: Any, before: WindowTable, journal: Journal, size: int, progress: Callable[[int, int], None]
) -> tuple[WindowTable, set[int]]:
    """Add to a graph what a table lacks, and return that, and the places in the table of what is not in the journal."""
    total, kind = journal.counts().listed, _row(size)
    gone = {pair: i for i, pair in enumerate(zip(before.recordings, before.digests, strict=True))}
    free = before.firsts[-1] + len(before.spans[-1]) if before.firsts else 0
    news, waiting = WindowTable(), list[Floats]()

    def add() -> None:
        if waiting:
            vectors = np.concatenate(waiting)
            graph.add(np.arange(free - len(vectors), free, dtype=np.uint64), vectors)
            waiting.clear()

    for number, done in enumerate(journal.results()):
        progress(number, total)
        if done.result is None:
            continue
        path, digest = os.path.abspath(done.name), hashlib.blake2b(done.result, digest_size=16).hexdigest()
        if gone.pop((path, digest), None) is None:
            rows = np.frombuffer(done.result, kind)
            news.append(path, digest, free, rows["span"].copy())
            waiting.append(rows["vector"].astype(np.float32))
            free += len(rows)
            if sum(map(len, waiting)) >= BATCH:
                add()
    add()
    return news, set(gone.values())


def _write(folder: Path, graph: Any, table: WindowTable, about: dict[str, Any], number: int) -> None:
    """Write graph and table, then the file that names them, and remove what it no longer names."""
    names = {"graph": f"graph-{number}.usearch", "table": f"table-{number}.npz"}
    with atomic_write(folder / names["graph"]) as file:
        graph.save(file.name)
    counts = np.array([len(spans) for spans in table.spans], np.int64)
    text = json.dumps([table.recordings, table.digests]).encode()  # surrogates are escaped
    with atomic_write(folder / names["table"]) as file:
        np.savez(
            file,
            names=np.frombuffer(text, np.uint8),
            firsts=np.array(table.firsts, np.int64),
            counts=counts,
            spans=np.concatenate(table.spans),
        )
    about = about | {f"{name}_digest": _digest(folder / file) for name, file in names.items()}
    with atomic_write(folder / POINTER) as file:
        file.write(json.dumps({"format": FORMAT, "number": number, **names, **about}, indent=1).encode())
    for path in (*folder.glob("graph-*.usearch"), *folder.glob("table-*.npz")):
        if path.name not in names.values():
            with contextlib.suppress(OSError):  # another process may search it
                path.unlink()


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return digest_of(file)


def _read_table(path: Path) -> WindowTable:
    with np.load(path, allow_pickle=False) as arrays:
        recordings, digests = json.loads(arrays["names"].tobytes())
        firsts, counts, spans = arrays["firsts"], arrays["counts"], arrays["spans"]
    whole = len(recordings) == len(digests) == len(firsts) == len(counts) and spans.shape == (counts.sum(), 2)
    if not whole or (counts < 0).any() or (np.diff(firsts) < counts[:-1]).any() or not np.isfinite(spans).all():
        raise ValueError("its table is incomplete")
    ends = np.cumsum(counts)
    parts = [spans[end - count : end] for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]
    return WindowTable(list(recordings), list(digests), firsts.tolist(), parts)


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"{folder} is not an index, or is damaged: {why}. dymn index --fresh creates it again.")
