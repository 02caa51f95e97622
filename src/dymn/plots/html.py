"""Self-contained HTML pages: one template with style and drawing functions, the data of a page, and its audio."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.config import FrontEndConfig
from dymn.plots.style import frequency_ticks, loudness_range
from dymn.system.arrays import Array
from dymn.system.files import atomic_write

BASE = "base.html"


def render(name: str, data: Mapping[str, Any]) -> str:
    """Return the text of a page that needs no other file.

    Args:
        name: of the page's parts, `NAME.css`, `NAME.html` (its body) and `NAME.js` in `dymn.plots.pages`, which the
            template `base.html` encloses.
        data: what the script reads, as JSON has it.
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    page = _part(BASE)
    for place, ending in (("style", "css"), ("body", "html"), ("script", "js")):
        page = page.replace(f"{{{{{place}}}}}", _part(f"{name}.{ending}"))
    return page.replace("{{data}}", text.replace("<", "\\u003c"))  # no name or label can end the script element


def write_page(path: str | Path, text: str) -> None:
    """Write the text of a page to a file."""
    with atomic_write(path) as file:
        file.write(text.encode())


def _part(file: str) -> str:
    return resources.files("dymn.plots").joinpath("pages", file).read_text(encoding="utf-8")


def spectrogram(log_mel: Array, front_end: FrontEndConfig) -> dict[str, Any]:
    """Return a log-mel spectrogram [n_mels, columns] and its frequency axis as a page draws them."""
    low, high = loudness_range(log_mel)
    positions, names = frequency_ticks(front_end)
    return {
        "logMel": matrix((log_mel - low) / (high - low)),
        "kilohertz": [[position / len(log_mel), name] for position, name in zip(positions, names, strict=True)],
    }


def matrix(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Return values in [0, 1] of shape [rows, columns] in 255 steps, encoded for a page."""
    steps = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return {
        "rows": steps.shape[0],
        "columns": steps.shape[1],
        "data": base64.b64encode(steps.tobytes()).decode("ascii"),
    }


def data_uri(kind: str, data: bytes) -> str:
    """Return bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def short_sound_uri(waveform: Array, sample_rate: int) -> str:
    """Return a short waveform [N] as a data URI: MP3 where libsndfile writes it, else 16-bit WAV."""
    import soundfile

    if "MP3" not in soundfile.available_formats():
        return wav_uri(waveform, sample_rate)
    out = io.BytesIO()
    soundfile.write(out, np.clip(waveform, -1, 1), sample_rate, format="MP3")
    return data_uri("audio/mpeg", out.getvalue())


def wav_uri(waveform: Array, sample_rate: int) -> str:
    """Return a waveform [N] as a data URI of a WAV file with 16-bit samples."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return data_uri("audio/wav", out.getvalue())
