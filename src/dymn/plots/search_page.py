"""The results of a search as one self-contained HTML file, most similar first, each with a player."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dymn.audio.stored import passage
from dymn.errors import AudioError
from dymn.plots.html import render, short_sound_uri

PAGE_RATE = 24_000
"""The sample rate of sounds in a page, in Hz."""


class Shown(NamedTuple):
    """A sound in a page: the path of its recording, the name to show, its place in seconds, and its similarity."""

    path: str
    name: str
    start: float
    end: float
    score: float | None = None


def search_page(query: Shown, found: Sequence[Shown], about: str) -> str:
    """Return the text of the page; a sound that cannot be read any more has no player, but the reason."""
    return render("search", {"query": _entry(query), "found": [_entry(one) for one in found], "about": about})


def _entry(shown: Shown) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": shown.name, "start": shown.start, "end": shown.end, "score": shown.score}
    audio, why = sound(shown, PAGE_RATE)
    return entry | {"audio": audio, "why": why}


def sound(shown: Shown, rate: int, seconds: float = 60.0) -> tuple[str, str]:
    """Return at most so many seconds of a sound as a data URI, or "" and why there is none."""
    try:
        return short_sound_uri(passage(shown.path, shown.start, min(shown.end, shown.start + seconds), rate), rate), ""
    except AudioError as error:
        return "", str(error).replace(shown.path, shown.name)
