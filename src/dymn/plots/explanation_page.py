"""The decisions of a dynamic network as one HTML page that needs nothing else: with the sound, and with each block to look into."""

from __future__ import annotations

import base64
import io
import json
import wave
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.explain.arrays import POSITIONS, Array, BlockDecisions, Explanation
from dymn.plots.explanation import KERNEL_COLOURS, attention_scale, frequency_ticks, function_zoom, kernel_zoom, likeliest
from dymn.system.files import atomic_write

PLACE = "{{explanation}}"


def save_page(explanation: Explanation, path: str | Path) -> None:
    """Write an explanation as one HTML file, with the recording in it."""
    with atomic_write(Path(path)) as file:
        file.write(page(explanation).encode())


def page(explanation: Explanation) -> str:
    """Return an explanation as the text of an HTML page."""
    template = resources.files("dymn.plots").joinpath("explanation.html").read_text(encoding="utf-8")
    data = json.dumps(_data(explanation), ensure_ascii=True, separators=(",", ":"))
    return template.replace(PLACE, data.replace("<", "\\u003c"))


def _data(explanation: Explanation) -> dict[str, Any]:
    places, names = frequency_ticks(explanation.front_end)
    low, high = (float(value) for value in np.percentile(explanation.log_mel, [2, 99.7]))
    return {
        "name": explanation.name,
        "model": explanation.model,
        "seconds": explanation.seconds,
        "window": explanation.window,
        "audio": "data:audio/wav;base64," + _text(_wav(explanation.waveform, explanation.front_end.sample_rate)),
        "logMel": _bytes((explanation.log_mel - low) / max(high - low, 1e-6)),
        "kilohertz": [[place / len(explanation.log_mel), name] for place, name in zip(places, names, strict=True)],
        "labels": explanation.labels,
        "found": [f"{label} {score:.2f}" for label, score in likeliest(explanation)],
        "times": _rounded(explanation.times),
        "timeline": _bytes(explanation.timeline.T),
        "positions": POSITIONS,
        "colours": KERNEL_COLOURS,
        "scale": round(attention_scale(explanation), 5),
        "kernelZoom": kernel_zoom(explanation),
        "blocks": [_block(block) for block in explanation.blocks],
    }


def _block(block: BlockDecisions) -> dict[str, Any]:
    return {
        "number": block.number,
        "zoom": function_zoom(block),
        "kernels": {position: _rounded(values) for position, values in block.kernels.items()},
        "slopes": {position: _rounded(values) for position, values in block.slopes.items()},
        "intercepts": {position: _rounded(values) for position, values in block.intercepts.items()},
        "frequency": None if block.frequency is None else _bytes(block.frequency),
        "time": None if block.time is None else _bytes(block.time),
    }


def _bytes(values: Array) -> dict[str, Any]:
    """Return a matrix [rows, columns] of values from 0 to 1 in 255 steps."""
    steps = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return {"rows": steps.shape[0], "columns": steps.shape[1], "data": _text(steps.tobytes())}


def _rounded(values: npt.NDArray[Any]) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _wav(waveform: Array, sample_rate: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()
