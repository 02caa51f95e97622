"""Timelines of recordings as self-contained HTML pages with a player and a cursor that follows the playback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from dymn.inference.windows import blocks, source_name
from dymn.plots.html import data_uri, matrix, render, spectrogram, wav_uri, write_page
from dymn.plots.overview import Overview
from dymn.plots.style import time_ticks, time_unit
from dymn.system.arrays import Floats

if TYPE_CHECKING:
    from dymn.inference.windows import AudioLike

MAX_AUDIO = 24 * 2**20
"""The maximum size of the audio in a page, in bytes; pages of larger recordings have no player."""
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
"""The formats that browsers can play; other recordings are embedded as 16-bit WAV."""


def save_page(seen: Overview, source: AudioLike, path: str | Path, max_audio: int = MAX_AUDIO) -> None:
    """Write a recording as one HTML file, including its audio if this takes at most `max_audio` bytes.

    Args:
        seen: the result of `overview` for the recording.
        source: the recording, a path, an open binary file, or an array at the front end's sample rate.
        path: path of the page.
        max_audio: maximum size of the audio, in bytes.

    Raises:
        AudioError: if the recording cannot be read.
    """
    write_page(path, page(seen, audio_uri(seen, source, max_audio)))


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
    """Return a recording as a data URI (unchanged if browsers can play it, otherwise as WAV); empty if too large."""
    kind = played(source, max_audio)
    if kind and isinstance(source, (str, Path)):
        return data_uri(kind, Path(source).read_bytes())
    if kind:
        file = cast(BinaryIO, source)
        file.seek(0)
        return data_uri(kind, file.read())
    rate = seen.front_end.sample_rate
    if 2 * rate * seen.seconds > max_audio:
        return ""
    return wav_uri(np.concatenate(list(blocks(source, rate, rate))), rate)


def played(source: AudioLike, max_audio: int = MAX_AUDIO) -> str:
    """Return the media type of a file that browsers can play and that is not too large, otherwise an empty string.

    The position of an open file does not change.
    """
    kind = PLAYED.get(Path(source_name(source)).suffix.lower(), "")
    if not kind:
        return ""
    if isinstance(source, (str, Path)):
        size = Path(source).stat().st_size
    else:
        file = cast(BinaryIO, source)
        place = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(place)
    return kind if size <= max_audio else ""


class PageSound:
    """Collects the samples of a recording for a page while it is tagged, so that it is not decoded again."""

    def __init__(self, max_audio: int = MAX_AUDIO) -> None:
        self._left = max_audio // 2
        self._blocks: list[Floats] = []

    def append(self, block: Floats) -> None:
        """Append samples [n]; samples beyond the maximum size are left out."""
        self._left -= len(block)
        if self._left >= 0:
            self._blocks.append(block)

    def samples(self) -> Floats:
        """Return the samples [N]."""
        return np.concatenate([np.empty(0, np.float32), *self._blocks])
