"""Segments: results extracted from the recordings, as one file per passage in a folder per label, with an index.

The samples are those of the recording, with its rate and channels.
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from dymn.audio.stored import StoredAudio, StoredBlock, stored
from dymn.errors import AudioError, ConfigError
from dymn.inference.formats.layout import Span
from dymn.system.files import atomic_write, csv_text

LONGEST = 160
"""The most bytes of a label or a recording's name in the name of a file, which has at most 255 on most systems."""
INDEX, UNFINISHED = "index.csv", ".index.csv.part"
SHORTEST = 0.01
"""A rest of at most so many seconds after a change of the sample rate is left out; times are rounded to samples."""
COLUMNS = (
    "path",
    "label",
    "score",
    "recording",
    "recording_start",
    "recording_end",
    "sample_rate",
    "channels",
)


class FoundSegment(NamedTuple):
    """A passage of a recording that is cut out: the name and the path of the recording, and the passage."""

    recording: str
    path: str
    span: Span


class SegmentCutter:
    """The passages of a run to cut out: the best of each label.

    Attributes:
        folder: to write to.
        per_label: how many of each label, 0 for all.
        partial: whether damaged recordings are read as far as they can be.
    """

    def __init__(self, folder: Path, per_label: int, partial: bool = False, replaces: bool = False) -> None:
        """Raise a `ConfigError` unless the folder is new, empty, left by an interrupted run, or may be replaced.

        Only a folder of segments can be replaced, if `replaces`, and only the files that its index lists are removed.
        """
        self.folder, self.per_label, self.partial = folder, per_label, partial
        own = (folder / UNFINISHED).exists() or (replaces and self._has_index())
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not own)):
            raise ConfigError(f"--segments {folder} exists and is not empty. Give a new folder, or remove this one.")
        self._best: defaultdict[str, list[tuple[float, int, FoundSegment]]] = defaultdict(list)
        self._order = itertools.count()

    def see(self, recording: str, spans: Iterable[Span], path: str | None = None) -> None:
        """Take the passages of a recording into account; at equal scores, the first ones are kept.

        Args:
            recording: its name.
            spans: the passages.
            path: of the recording; by default, its name.
        """
        for span in spans:
            segment = FoundSegment(recording, path or recording, span)
            best, item = self._best[span.label], (span.score, -next(self._order), segment)
            if self.per_label and len(best) >= self.per_label:
                heapq.heappushpop(best, item)
            else:
                heapq.heappush(best, item)

    def cut(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[AudioError]:
        """Write the files and the index, and return what could not be cut.

        A file appears when it is complete. What an earlier run has left is removed first.
        """
        import soundfile

        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / UNFINISHED
        self._clear(unfinished)
        chosen: defaultdict[str, list[FoundSegment]] = defaultdict(list)
        for best in self._best.values():
            for _, _, segment in sorted(best, reverse=True):
                chosen[segment.path].append(segment)
        used: set[str] = set()
        rows: list[list[str]] = []
        errors: list[AudioError] = []
        with unfinished.open("a", encoding="utf-8") as begun:

            def name(segment: FoundSegment, ending: str) -> str:
                path = _free(_path(segment), ending, used)
                begun.write(csv_text([[path]]))
                begun.flush()
                return path

            for done, (source, segments) in enumerate(chosen.items()):
                progress(done, len(chosen))
                try:
                    with stored(source, partial=self.partial) as sound:
                        rows.extend(_cut(sound, self.folder, segments, name))
                except AudioError as error:
                    errors.append(error)
                except (OSError, soundfile.SoundFileError) as error:
                    why = getattr(error, "strerror", None) or error
                    errors.append(
                        AudioError(
                            f"{segments[0].recording}: its segments cannot be extracted: {why}. Check the disk of "
                            f"{self.folder}."
                        )
                    )
        rows.sort(key=lambda row: (row[1], -float(row[2]), row[0]))
        with atomic_write(self.folder / INDEX) as file:
            file.write(csv_text([COLUMNS, *rows]).encode("utf-8", "backslashreplace"))
        unfinished.unlink()
        return errors

    def _has_index(self) -> bool:
        """Whether the index of a complete run is there."""
        try:
            with (self.folder / INDEX).open(newline="", encoding="utf-8", errors="replace") as lines:
                return [*csv.reader(lines)][:1] == [list(COLUMNS)]
        except (OSError, csv.Error):
            return False

    def _clear(self, unfinished: Path) -> None:
        """Remove the files that an interrupted run began, and those of a complete one that is replaced."""
        if self._has_index():
            index = self.folder / INDEX
            with index.open(newline="", encoding="utf-8", errors="replace") as lines:
                paths = [row[:1] for row in csv.reader(lines)]
            with unfinished.open("a", encoding="utf-8") as begun:  # from here on, the same command completes the run
                begun.write("\n" + csv_text(paths))  # a kill may have left a line without its end
            index.unlink()
        if unfinished.exists():
            with unfinished.open(newline="", encoding="utf-8") as lines:
                for row in csv.reader(lines):
                    path = self.folder / row[0] if row else self.folder
                    if path.is_file() and path.resolve().parent.parent == self.folder.resolve():
                        path.unlink()
            unfinished.unlink()


class _Writer:
    """A segment that is being written, from the block in which it starts on."""

    def __init__(self, sound: StoredAudio, path: Path, segment: FoundSegment, block: StoredBlock) -> None:
        import soundfile

        self.segment, self.written = segment, 0
        self.rate, self.channels, self.begin = block.rate, block.samples.shape[1], block.begin
        first, self.last = block.range(segment.span.start, segment.span.end)
        self.first = max(0, first)
        self._stack = ExitStack()
        file = self._stack.enter_context(atomic_write(path))
        kind = {"format": sound.container, "subtype": sound.subtype}
        self._sound: Any = soundfile.SoundFile(file, "w", self.rate, self.channels, **kind)

    def write(self, block: StoredBlock) -> None:
        """Write what belongs to the segment of a block of the same rate and channels."""
        part = block.part(self.first, self.last)
        self._sound.write(part)
        self.written += len(part)

    def close(self, error: BaseException | None = None) -> None:
        """Complete the file, or after an error remove it."""
        self._sound.close()
        self._stack.__exit__(type(error) if error else None, error, None)


def _cut(
    sound: StoredAudio, folder: Path, segments: Sequence[FoundSegment], name: Callable[[FoundSegment, str], str]
) -> Iterator[list[str]]:
    """Cut segments of one recording in one pass, and yield the row of the index of each file that is complete.

    Where the sample rate of the recording or the number of its channels changes, a segment continues in another file.
    """
    waiting = sorted(segments, key=lambda one: (one.span.start, one.span.end), reverse=True)
    writers: dict[str, _Writer] = {}
    begin = 0.0

    def closed(paths: list[str]) -> Iterator[list[str]]:
        for path in paths:
            done = writers.pop(path)
            done.close()
            span, first = done.segment.span, done.first
            about = [span.label, f"{span.score:.6f}", done.segment.recording]
            times = (done.begin + place / done.rate for place in (first, first + done.written))
            yield [path, *about, *(f"{time:.6f}" for time in times), str(done.rate), str(done.channels)]

    try:
        for block in sound.blocks([(one.span.start, one.span.end) for one in segments]):
            if block.begin != begin:
                begin = block.begin
                waiting += [one.segment for one in writers.values() if one.segment.span.end > begin + SHORTEST]
                yield from closed(list(writers))
            while waiting and block.range(waiting[-1].span.start, math.inf)[0] < block.end:
                segment = waiting.pop()
                path = name(segment, f".{sound.container.lower()}")
                writers[path] = _Writer(sound, folder / path, segment, block)
            for writer in writers.values():
                writer.write(block)
            yield from closed([path for path, writer in writers.items() if writer.last <= block.end])
        yield from closed(list(writers))
    except BaseException as error:
        for writer in writers.values():
            with contextlib.suppress(BaseException):
                writer.close(error)
        raise


def _path(segment: FoundSegment) -> str:
    """Return the folder and the name of a segment's file, without its ending."""
    span = segment.span
    stem = _bytes(_safe(Path(segment.recording).stem)[-80:])[-LONGEST:].decode("utf-8", "ignore")
    label = _bytes(_safe(span.label)[:80])[:LONGEST].decode("utf-8", "ignore")
    return f"{label}/{span.score:.3f}_{stem}_{span.start:.3f}-{span.end:.3f}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _safe(text: str) -> str:
    """Return text with what a file name may not have on some system replaced."""
    return re.sub(r"[^\w ,.()'+&=-]+", "_", text).strip(" .") or "_"


def _free(path: str, ending: str, used: set[str]) -> str:
    number, name = 1, f"{path}{ending}"
    while name.casefold() in used:
        number += 1
        name = f"{path}-{number}{ending}"
    used.add(name.casefold())
    return name
