"""Resumable runs over many recordings, which can be interrupted at any time; each recording is computed once.

Results go to a `Journal` as they come, and from there to the output, which is written when all are there. So the output
depends on the journal alone, not on how often the run was interrupted.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Generic

import numpy as np

from dymn.audio.clocks import Begin
from dymn.audio.settings import Channel
from dymn.errors import AudioError, DataError
from dymn.inference.embedding import Embedding
from dymn.inference.events import Event, EventRecording
from dymn.inference.files import Recording
from dymn.inference.formats.layout import R
from dymn.inference.journal import Journal, Task, stamp
from dymn.inference.selection import Tag, WindowTags
from dymn.inference.windows import RecordingInfo, is_last, source_name

FAILED = 1 << 63
"""Marks the length of an error among the results of channels."""


@dataclass(frozen=True)
class Kind(Generic[R]):
    """How results of a kind are stored in a journal.

    Attributes:
        pack: from a result to bytes, which hold all of it that is written to the output, but for its channel.
        unpack: from name, seconds and those bytes to a result that is written in the same way.
        result: the class of results.
        holds_windows: whether `pack` keeps the tags of windows.
    """

    pack: Callable[[R], bytes]
    unpack: Callable[[str, float, bytes], R]
    result: type[R]
    holds_windows: bool = False


def compute(
    journal: Journal,
    kind: Kind[R],
    work: Callable[[Iterator[Path]], Iterator[R]],
    done: Callable[[R], None] = lambda result: None,
) -> None:
    """Compute the recordings that a journal lists and has no result of.

    Args:
        journal: with a list of recordings.
        kind: of the results.
        work: yields one result a path, or one for each of its channels, in their order, such as `Tagger.tag_files`.
        done: called with each result once it is in the journal.

    Raises:
        BaseException: what `work` raises; all results up to then are kept.
    """
    begun: deque[Task] = deque()
    parts: list[R] = []

    def paths() -> Generator[Path, None, None]:
        for task in journal.to_do():
            begun.append(task)
            yield task.name

    source = paths()
    with closing(source):
        for result in work(source):
            parts.append(result)
            if not is_last(result):
                continue
            task = begun.popleft()
            if any(part.error is None for part in parts) and stamp(task.name) != task.stamp:
                changed = AudioError(
                    f"{result.name} changed while it was read. Start the command again when it is complete."
                )
                parts = [kind.result(result.name, error=changed)]
            error = next((str(part.error) for part in parts if part.error is not None), None)
            if parts[0].channel is not None:
                journal.put(task, max(part.seconds for part in parts), _framed(kind, parts), error)
            else:
                journal.put(task, parts[0].seconds, kind.pack(parts[0]) if error is None else None, error)
            for part in parts:
                done(part)
            parts = []


def _framed(kind: Kind[R], parts: Iterable[R]) -> bytes:
    """Return the results of channels as one, each after its length; that of an error is marked."""
    framed = []
    for part in parts:
        failed = part.error is not None
        packed = str(part.error).encode("utf-8", "surrogatepass") if failed else kind.pack(part)
        framed.append(struct.pack(">Q", len(packed) | FAILED * failed) + packed)
    return b"".join(framed)


def _unframed(kind: Kind[R], name: str, seconds: float, packed: bytes) -> list[R]:
    parts, place = [], 0
    while place < len(packed):
        (mark,) = struct.unpack_from(">Q", packed, place)
        start, place = place + 8, place + 8 + mark % FAILED
        part = packed[start:place]
        if mark & FAILED:
            parts.append(kind.result(name, error=AudioError(part.decode("utf-8", "surrogatepass"))))
        else:
            parts.append(kind.unpack(name, seconds, part))
    return [replace(part, channel=Channel(number, len(parts))) for number, part in enumerate(parts, 1)]


def results(journal: Journal, kind: Kind[R], each: bool = False) -> Iterator[R]:
    """Yield the results of all recordings that a journal lists, in their order; `each` if of each of their channels.

    Raises:
        DataError: if one is missing, damaged, or not what a run stores.
    """
    for done in journal.results():
        name = source_name(done.name)
        if done.result is None:
            yield kind.result(name, error=AudioError(done.error or ""))
            continue
        try:
            parts = (
                _unframed(kind, name, done.seconds, done.result)
                if each
                else [kind.unpack(name, done.seconds, done.result)]
            )
            unpacked = [replace(part, path=os.fspath(done.name)) for part in parts]
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError, struct.error) as error:
            raise DataError(
                f"{journal.path} is damaged: the result of {name} is not valid. --fresh starts over."
            ) from error
        yield from unpacked


def tags(windows: bool) -> Kind[Recording]:
    """Return how tags are stored: those of recordings, and with `windows` those of their windows."""

    def pack(found: Recording) -> bytes:
        whole = [(tag.label, tag.score) for tag in found.tags]
        timeline = found.timeline if windows else ()
        parts = [(window.start, window.end, [(tag.label, tag.score) for tag in window.tags]) for window in timeline]
        return _packed([whole, parts, _info_of(found)])

    def unpack(name: str, seconds: float, packed: bytes) -> Recording:
        whole, parts, info = _unpacked(packed)
        timeline = [
            WindowTags(float(start), float(end), _tags(pairs, float(start), float(end))) for start, end, pairs in parts
        ]
        tags = _tags(whole, 0.0, seconds)
        return Recording(name, seconds, tags, timeline, **_restored(*info))

    return Kind(pack, unpack, Recording, windows)


def _tags(pairs: Iterable[tuple[str, float]], start: float, end: float) -> list[Tag]:
    return [Tag(str(label), float(score), start, end) for label, score in pairs]


def events() -> Kind[EventRecording]:
    """Return how events are stored."""

    def unpack(name: str, seconds: float, packed: bytes) -> EventRecording:
        found, info = _unpacked(packed)
        events = [Event(str(label), float(start), float(end), float(score)) for label, start, end, score in found]
        return EventRecording(name, seconds, events, **_restored(*info))

    def pack(found: EventRecording) -> bytes:
        return _packed([list(found.events), _info_of(found)])

    return Kind(pack, unpack, EventRecording)


def _info_of(found: RecordingInfo) -> list[Any]:
    begin = found.begin
    when = None if begin is None else [begin.time.isoformat(), begin.source]
    return [found.notes, found.partial, when, found.read_channel]


def _restored(notes: Iterable[str], partial: bool, begin: list[str] | None, read_channel: int | None) -> dict[str, Any]:
    """Return the fields of `RecordingInfo`, but for the channel."""
    when = None if begin is None else Begin(datetime.fromisoformat(begin[0]), str(begin[1]))
    number = None if read_channel is None else int(read_channel)
    return {"notes": tuple(map(str, notes)), "partial": bool(partial), "begin": when, "read_channel": number}


def _packed(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _unpacked(packed: bytes) -> Any:
    return json.loads(packed.decode("utf-8", "surrogatepass"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a score")


def embeddings(per_window: bool, size: int) -> Kind[Embedding]:
    """Return how embeddings of `size` values are stored: those of recordings, or with `per_window` of windows."""
    kind = np.dtype([("span", "<f8", (2,)), ("vector", "<f4", (size,))])

    def pack(found: Embedding) -> bytes:
        about = _packed(_info_of(found))
        rows = np.empty(len(found.windows) if per_window else 1, kind)
        rows["span"] = found.spans if per_window else (0.0, found.seconds)
        rows["vector"] = found.windows if per_window else found.vector
        return about + b"\0" + rows.tobytes()

    def unpack(name: str, seconds: float, packed: bytes) -> Embedding:
        end = packed.index(b"\0")
        info = _restored(*_unpacked(packed[:end]))
        rows = np.frombuffer(packed, kind, offset=end + 1)
        found = Embedding(name, seconds, **info)
        if per_window:
            return replace(found, windows=rows["vector"], spans=rows["span"])
        return replace(found, vector=rows["vector"][0])

    return Kind(pack, unpack, Embedding)
