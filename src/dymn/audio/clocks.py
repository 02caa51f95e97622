"""Absolute start times of recordings, from GUANO, AudioMoth's comment, bext, or the file name.

Only the header of the file is read. Time zones are kept; a time without one is the recorder's local time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from dymn.audio.content import Content
from dymn.audio.notes import NO_CLOCK, Notes
from dymn.audio.sources import display, is_stdin, opened
from dymn.errors import visible

AGREE_SECONDS = 2.0
"""Clocks that differ by more contradict each other: names and comments have whole seconds."""
_MOST_CHUNKS, _MOST_BYTES = 1000, 2**16

_ZONE = r"(?P<zone>Z|[+-]\d\d:?\d\d)?"
_ISO = re.compile(
    r"(?P<Y>\d{4})-(?P<M>\d\d)-(?P<D>\d\d)[T ](?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)(?:[.,](?P<f>\d{1,6}))?\s*" + _ZONE
)
_AUDIOMOTH = re.compile(
    r"Recorded at (?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)(?:\.(?P<f>\d{1,6}))? (?P<D>\d\d)/(?P<M>\d\d)/(?P<Y>\d{4}) "
    r"\((?P<zone>UTC(?:[+-]\d{1,2}(?::\d\d)?)?)\)"
)
_BEXT = re.compile(r"(?P<Y>\d{4}).(?P<M>\d\d).(?P<D>\d\d)(?P<h>\d\d).(?P<m>\d\d).(?P<s>\d\d)")
_NAMES = (
    re.compile(
        r"(?<!\d)(?P<Y>(?:19|20)\d\d)([-_.]?)(?P<M>\d\d)\2(?P<D>\d\d)[-_T. ]{0,2}"
        r"(?P<h>\d\d)([-_.:]?)(?P<m>\d\d)\6(?P<s>\d\d)(?:\.(?P<f>\d{1,6}))?" + _ZONE + r"(?!\d)"
    ),
    re.compile(r"\.(?P<Y>\d\d)(?P<M>\d\d)(?P<D>\d\d)(?P<h>\d\d)(?P<m>\d\d)(?P<s>\d\d)(?!\d)"),  # of hydrophones
)


class Begin(NamedTuple):
    """When a recording began, and the source: "GUANO", "AudioMoth comment", "bext" or "file name"."""

    time: datetime
    source: str

    def at(self, seconds: float) -> str:
        """Return the time so many seconds later in ISO 8601, with the time zone if it is known."""
        return (self.time + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def begin_of(source: Any, notes: Notes) -> Begin | None:
    """Return when a recording began, or None.

    Notes state that there is no clock, that two differ, or that one gives a time that does not exist.

    Args:
        source: a path or a binary file object, whose position is restored; others have no clock.
        notes: where notes are added.

    Raises:
        AudioError: if the file cannot be opened.
    """
    found = [*_in_header(source, notes), *_in_name(source, notes)]
    if not found:
        notes.add(NO_CLOCK)
        return None
    first = found[0]
    for other in found[1:]:
        if not _agree(first.time, other.time):
            notes.add(
                f"its start times differ: {first.time.isoformat(' ')} from its {first.source}, which is used, and "
                f"{other.time.isoformat(' ')} from its {other.source}."
            )
    return first


def _in_header(source: Any, notes: Notes) -> Iterator[Begin]:
    is_path = isinstance(source, (str, os.PathLike))
    if is_stdin(source) or not (is_path or (hasattr(source, "seek") and hasattr(source, "tell"))):
        return
    if is_path and not os.path.isfile(source):
        return
    place = None if is_path else source.tell()
    try:
        with opened(source) as content:
            texts = _texts(content)
    finally:
        if place is not None:
            source.seek(place)
    for name, pattern in (("GUANO", _ISO), ("AudioMoth comment", _AUDIOMOTH), ("bext", _BEXT)):
        match = pattern.search(texts.get(name, ""))
        if match is None:
            continue
        time = _time(match)
        if time:
            yield Begin(time, name)
        else:
            _report_impossible(match, name, notes)


def _in_name(source: Any, notes: Notes) -> Iterator[Begin]:
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "")
    stem = os.path.basename(display(name)) if isinstance(name, (str, os.PathLike)) and name else ""
    matches = [match for pattern in _NAMES for match in pattern.finditer(stem)]
    for match in matches:
        if time := _time(match):
            yield Begin(time, "file name")
            return
    for match in matches:
        _report_impossible(match, "file name", notes)


def _report_impossible(match: re.Match[str], name: str, notes: Notes) -> None:
    if int(match["M"]) == int(match["D"]) == 0:  # a field that was left empty
        return
    notes.add(f'the start time in its {name} does not exist and is ignored: "{visible(match[0])}".')


def _texts(content: Content) -> dict[str, str]:
    """Return the texts in a WAV file that may hold a time, by the names of their sources."""
    found: dict[str, str] = {}
    head = content.at(0, 12)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return found
    place, count = 12, 0
    while count < _MOST_CHUNKS and len(head := content.at(place, 8)) == 8:
        size = int.from_bytes(head[4:], "little")
        data = content.at(place + 8, min(size, _MOST_BYTES)) if head[:4] in (b"guan", b"LIST", b"bext") else b""
        if head[:4] == b"guan":
            found["GUANO"] = _line(data.decode("utf-8", "replace"), "Timestamp:")
        elif head[:4] == b"LIST" and b"Recorded at" in data:
            found["AudioMoth comment"] = data.decode("latin-1")
        elif head[:4] == b"bext":
            found["bext"] = data[320:338].decode("latin-1")
        if head[:4] == b"data" and size == 0xFFFFFFFF:  # its length, and what follows, is elsewhere
            break
        place, count = place + 8 + size + size % 2, count + 1
    return found


def _line(text: str, key: str) -> str:
    return next((line for line in text.splitlines() if line.strip().startswith(key)), "")


def _time(match: re.Match[str]) -> datetime | None:
    """Return the time of a match, None if there is no such day or hour."""
    parts = match.groupdict()
    year = int(parts["Y"]) + (2000 if len(parts["Y"]) == 2 else 0)
    fraction = int((parts.get("f") or "0").ljust(6, "0"))
    try:
        month, day, hour, minute, second = (int(parts[name]) for name in "MDhms")
        return datetime(year, month, day, hour, minute, second, fraction, _zone(parts.get("zone")))
    except ValueError:
        return None


def _zone(text: str | None) -> timezone | None:
    if not text:
        return None
    match = re.search(r"([+-])(\d{1,2}):?(\d\d)?$", text)
    if match is None:
        return timezone.utc
    offset = timedelta(hours=int(match[2]), minutes=int(match[3] or 0))
    return timezone(-offset if match[1] == "-" else offset)


def _agree(first: datetime, second: datetime) -> bool:
    """Whether two clocks agree; one without a time zone may be in local time or UTC."""
    if (first.tzinfo is None) == (second.tzinfo is None):
        return abs((first - second).total_seconds()) <= AGREE_SECONDS
    aware, plain = (first, second) if second.tzinfo is None else (second, first)
    readings = (aware.replace(tzinfo=None), aware.astimezone(timezone.utc).replace(tzinfo=None))
    return any(abs((reading - plain).total_seconds()) <= AGREE_SECONDS for reading in readings)
