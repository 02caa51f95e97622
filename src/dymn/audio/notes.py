"""Notes about recordings that were read, such as a wrong header, the selected track, or skipped damage."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from dymn.audio.content import Content
from dymn.errors import AudioError

logger = logging.getLogger(__name__)

_MOST_LOGGED = 10_000
_MOST_TAIL = 8192
_logged: set[tuple[str, str]] = set()
_shared: dict[str, list[str]] | None = None
"""Within `shared_at_end`, the recordings of each note that many may have."""
_lacking: frozenset[str] = frozenset()
"""Options for reading that the command does not have."""
_lock = threading.Lock()

NO_CLOCK = "its start time is unknown: no GUANO metadata, AudioMoth comment or bext chunk, and no time in its name."
SHARED = frozenset([NO_CLOCK])
"""Notes that may be on all recordings of a run."""

SLACK_SECONDS = 0.25
"""How much of a recording may be missing without an error, because codecs pad and trim."""


@dataclass
class Notes:
    """The notes on one recording, complete once all of it is read.

    Attributes:
        lines: sentences without the name of the recording, each once.
        partial: whether a part of the recording is missing because of damage.
        channel: the number of the only channel that is read, None if all are mixed.
    """

    lines: list[str] = field(default_factory=list)
    partial: bool = False
    channel: int | None = None
    _plain: dict[str, str] = field(default_factory=dict)

    def add(self, note: str, advice: str = "") -> None:
        """Add a line, unless it is there: a note, and an option of the command line that helps."""
        line = f"{note} {advice}".rstrip()
        if line not in self.lines:
            self.lines.append(line)
            self._plain[line] = note

    def log(self, name: str, *, advice: bool = True) -> None:
        """Log the notes as warnings: each once in a process, however often the recording is read."""
        for line in (
            self.lines if advice and "gain" not in _lacking else [self._plain.get(line, line) for line in self.lines]
        ):
            with _lock:
                names = None if _shared is None or line not in SHARED else _shared.setdefault(line, [])
                if names is not None:
                    names.append(name)
                    continue
            if (name, line) not in _logged:
                if len(_logged) >= _MOST_LOGGED:
                    _logged.clear()
                _logged.add((name, line))
                logger.warning("%s: %s", name, line)


@contextlib.contextmanager
def without_advice(*options: str) -> Iterator[None]:
    """Do not propose options that a command lacks: "gain", with the other settings for reading, and "partial"."""
    global _lacking
    before, _lacking = _lacking, frozenset(options)
    try:
        yield
    finally:
        _lacking = before


@contextlib.contextmanager
def shared_at_end() -> Iterator[None]:
    """Log notes that many recordings may have at the end, once: the first name and how many others there are."""
    global _shared
    _shared = {}
    try:
        yield
    finally:
        found, _shared = _shared, None
        for line, names in found.items():
            distinct = sorted(set(names))  # recordings are read side by side, in no fixed order
            more = len(distinct) - 1
            others = f" and {more:,} other recording{'s' if more > 1 else ''}" if more else ""
            logger.warning("%s%s: %s", distinct[0], others, line)


class Report:
    """Receives notes, which are kept, and damage, which is an error unless partial recordings are allowed.

    Attributes:
        name: of the recording, for messages.
        notes: those so far.
        partial: whether damage is skipped instead of being an error.
        track: the number of the audio track to decode, from 1; None is the default one.
        tracks: number of audio tracks, if a decoder has determined it.
    """

    def __init__(self, name: str, notes: Notes | None = None, partial: bool = False, track: int | None = None) -> None:
        self.name = name
        self.notes = Notes() if notes is None else notes
        self.partial = partial
        self.track = track
        self.tracks = 1

    def check_track(self) -> None:
        """Raise an AudioError if the track does not exist."""
        if self.track is not None and self.track > self.tracks:
            has = "one audio track" if self.tracks == 1 else f"{self.tracks} audio tracks"
            raise AudioError(f"{self.name} has {has}; there is no track {self.track}. Select another one with --track.")

    def note(self, line: str, advice: str = "") -> None:
        """Keep a note, and an option of the command line that helps."""
        self.notes.add(line, advice)

    def damage(self, after: float | None, of: float | None, why: str, cause: BaseException | None = None) -> None:
        """Report a missing part: after so many seconds, of so many that there should be.

        Raises:
            AudioError: unless partial recordings are allowed.
        """
        where = ("" if after is None else f" after {duration(after)}") + ("" if of is None else f" of {duration(of)}")
        if not self.partial:
            option = "" if "partial" in _lacking else ", read the intact parts with --partial,"
            raise AudioError(
                f"{self.name} is truncated or damaged{where}: {why}. Get a complete copy{option} or convert it with: "
                "ffmpeg -i IN OUT.wav"
            ) from cause
        self.notes.partial = True
        self.note(f"partial: truncated or damaged{where}: {why}.")

    def check_length(self, there: float, promised: float | None, slack: float = SLACK_SECONDS) -> None:
        """Compare the seconds that were decoded with those that a header promises.

        Raises:
            AudioError: if more than `slack` seconds are missing, unless partial recordings are allowed; and if
                nothing is there.
        """
        if promised is not None and promised - there > slack:
            self.damage(there, promised, "its end is missing")
        if there == 0:
            raise AudioError(f"{self.name} contains no samples. Record or copy it again.")


def duration(seconds: float) -> str:
    """Return seconds as text for messages.

    Example:
        >>> duration(2.5), duration(7200)
        ('2.50 s', '2.0 h')
    """
    return f"{seconds:.2f} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def report_tail(content: Content, end: int, report: Report) -> None:
    """Note what is behind the last frame, unless it is little, a tag or padding."""
    tail = content.size - end
    if tail > _MOST_TAIL and any(content.at(end, _MOST_TAIL)):
        report.note(f"{tail} bytes after its last frame are not frames and are ignored.")


def report_lost(lost: int, bytes_per_second: float, report: Report) -> None:
    """Report bytes between frames that belong to none: damage if there are many, else a note."""
    if lost:
        why = f"{lost} bytes between its frames are not frames"
        if lost / bytes_per_second > SLACK_SECONDS:
            report.damage(None, None, why)
        else:
            report.note(f"{why}.")
