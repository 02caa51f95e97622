"""A recording at a glance as one HTML file that needs nothing else: with the sound, and a line that follows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dymn.inference.segments import blocks
from dymn.plots.html import data_uri, matrix, render, spectrogram, wav_uri
from dymn.plots.overview import Overview
from dymn.plots.style import time_ticks, time_unit
from dymn.system.files import atomic_write

if TYPE_CHECKING:
    from dymn.inference.segments import AudioLike

MAX_AUDIO = 24 * 2**20
"""The most bytes of sound in a page; a recording that takes more has a page without a player."""
PLAYED = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".webm": "audio/webm",
}
"""The recordings that browsers play as they are; the others are put in as 16-bit WAV."""


def save_page(seen: Overview, source: AudioLike, path: str | Path, max_audio: int = MAX_AUDIO) -> None:
    """Write a recording as one HTML file, with its sound in it if that takes at most `max_audio` bytes.

    Args:
        seen: what `overview` said of the recording.
        source: the recording; an array has to be at the front end's sample rate.
        path: of the page.
        max_audio: the most bytes of sound.

    Raises:
        AudioError: if the recording cannot be read.
    """
    text = page(seen, audio_uri(seen, source, max_audio))
    with atomic_write(path) as file:
        file.write(text.encode())


def page(seen: Overview, audio: str) -> str:
    """Return the text of the page; `audio` is a data URI, or empty."""
    data = {
        "name": seen.name,
        "about": seen.about,
        "seconds": round(seen.seconds, 3),
        "audio": audio,
        **spectrogram(seen.log_mel, seen.front_end),
        "ticks": time_ticks(seen.seconds),
        "unit": time_unit(seen.seconds),
        "labels": seen.labels,
        "peaks": [f"{peak:.2f}" for peak in seen.peaks],
        "scores": matrix(seen.scores),
    }
    return render("timeline", data)


def audio_uri(seen: Overview, source: AudioLike, max_audio: int) -> str:
    """Return a recording as a data URI: the file itself if browsers play it, else 16-bit WAV.

    Empty if it is too large.
    """
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and path.suffix.lower() in PLAYED and path.stat().st_size <= max_audio:
        return data_uri(PLAYED[path.suffix.lower()], path.read_bytes())
    rate = seen.front_end.sample_rate
    if 2 * rate * seen.seconds > max_audio:
        return ""
    return wav_uri(np.concatenate(list(blocks(source, rate, rate))), rate)
