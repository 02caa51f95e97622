"""A recording at a glance as one HTML file that needs nothing else: with the sound, and a line that follows it."""

from __future__ import annotations

import base64
import io
import json
import wave
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.inference.segments import blocks
from dymn.plots.explanation import frequency_ticks
from dymn.plots.overview import Array, Overview, time_ticks, time_unit
from dymn.system.files import atomic_write

if TYPE_CHECKING:
    from dymn.inference.segments import Source

PLACE = "{{recording}}"
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


def save_page(seen: Overview, source: Source, path: str | Path, max_audio: int = MAX_AUDIO) -> None:
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
    template = resources.files("dymn.plots").joinpath("timeline.html").read_text(encoding="utf-8")
    low, high = (float(value) for value in np.percentile(seen.log_mel, [2, 99.7]))
    places, names = frequency_ticks(seen.front_end)
    data = {
        "name": seen.name,
        "about": seen.about,
        "seconds": round(seen.seconds, 3),
        "audio": audio,
        "logMel": _steps((seen.log_mel - low) / max(high - low, 1e-3)),
        "kilohertz": [[place / len(seen.log_mel), name] for place, name in zip(places, names, strict=True)],
        "ticks": time_ticks(seen.seconds),
        "unit": time_unit(seen.seconds),
        "labels": seen.labels,
        "peaks": [f"{peak:.2f}" for peak in seen.peaks],
        "scores": _steps(seen.scores),
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return template.replace(PLACE, text.replace("<", "\\u003c"))  # no name or label can end the script element


def audio_uri(seen: Overview, source: Source, max_audio: int) -> str:
    """Return a recording as a data URI: the file itself if browsers play it, else 16-bit WAV; empty if it is too large."""
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and path.suffix.lower() in PLAYED and path.stat().st_size <= max_audio:
        return _uri(PLAYED[path.suffix.lower()], path.read_bytes())
    rate = seen.front_end.sample_rate
    if 2 * rate * seen.seconds > max_audio:
        return ""
    return _uri("audio/wav", _wav(np.concatenate(list(blocks(source, rate, rate))), rate))


def _wav(waveform: Array, sample_rate: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def _steps(values: Array) -> dict[str, Any]:
    """Return a matrix [rows, columns] of values from 0 to 1 in 255 steps."""
    steps = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return {"rows": steps.shape[0], "columns": steps.shape[1], "data": base64.b64encode(steps.tobytes()).decode("ascii")}


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
