"""Messages about live sounds, as JSON types and as lines of text."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from dymn.audio.microphone import Notice
from dymn.audio.network import BURST_SECONDS
from dymn.errors import visible
from dymn.inference.sounds import Sound

Message = dict[str, Any]
"""A message; `event` is its kind, which determines its other fields."""


def iso(timestamp: float) -> str:
    """Return a time of `time.time` in ISO 8601, to a millisecond, with the local offset from UTC."""
    return datetime.fromtimestamp(timestamp).astimezone().isoformat(timespec="milliseconds")


class Messages:
    """Makes messages of sounds and notices.

    Args:
        source: the name of the source.
        zero: returns the wall clock at second 0 of the sound. Each sound keeps the time of its start.
    """

    def __init__(self, source: str, zero: Callable[[], float]) -> None:
        self._source, self._zero = source, zero
        self._begun: dict[str, float] = {}  # by label, on the wall clock
        self._noticed = -math.inf  # the time of the last notice

    def sound(self, sound: Sound) -> Message:
        """Return the message that a sound starts (`start`) or has ended (`end`)."""
        event = sound.event
        if sound.kind == "start":
            self._begun[event.label] = self._zero() + event.start
        begun = self._begun.get(event.label, 0.0)
        message: Message = {
            "event": sound.kind,
            "label": event.label,
            "score": round(event.score, 6),
            "start": round(event.start, 3),
            "time": iso(begun),
        }
        if sound.kind == "end":
            length = event.end - event.start
            message |= {
                "end": round(event.end, 3),
                "duration": round(length, 3),
                "end_time": iso(self._begun.pop(event.label) + length),
            }
        return message | {"source": self._source}

    def notice(self, notice: Notice, seconds: float) -> Message:
        """Return the message that the source is `lost`, is `back`, or has a `gap`, at `seconds` of the audio."""
        time = self._zero() + seconds
        if 0 < self._noticed - time <= BURST_SECONDS:  # a burst has moved second 0, but not the order of notices
            time = self._noticed
        self._noticed = time
        message: Message = {"event": notice.kind, "time": iso(time)}
        if notice.reason:
            message["reason"] = notice.reason
        if notice.kind != "lost":
            message["seconds"] = round(notice.seconds, 3)
        return message | {"source": self._source}


def line(message: Message) -> str:
    """Return a message about a sound as a line of text: time of day, what happened, score, label.

    Times are in hundredths of a second, as `dymn events` prints them.

    Example:
        >>> line({"event": "start", "label": "Dog", "score": 0.81, "time": "2026-05-01T07:30:12.480+02:00"})
        '07:30:12.48  start  0.81  Dog'
    """
    ended = message["event"] == "end"
    clock = message["end_time" if ended else "time"][11:22]
    event = message["event"]
    if event == "saved":
        return f"{clock}  {event:5}        {visible(message['path'])}"
    length = f"  ({message['duration']:.2f} s)" if ended else ""
    return f"{clock}  {event:5}  {message['score']:.2f}  {visible(message['label'])}{length}"


def notice_line(notice: Notice, source: str) -> str:
    """Return what happened to a source as a sentence."""
    if notice.kind == "lost":
        return f"{source} is lost ({visible(notice.reason)}). Trying again."
    if notice.kind == "back":
        return f"{source} is back after {notice.seconds:.1f} s."
    return f"{notice.seconds:.1f} s of {source} are missing ({visible(notice.reason)})."
