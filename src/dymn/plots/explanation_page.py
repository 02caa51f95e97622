"""The decisions of a dynamic network as one self-contained HTML page, with the audio and the details of each block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.explain.arrays import POSITIONS, BlockDecisions, Explanation
from dymn.plots.explanation import KERNEL_COLOURS, attention_scale, function_zoom, kernel_zoom, likeliest
from dymn.plots.html import matrix, render, spectrogram, wav_uri, write_page


def save_page(explanation: Explanation, path: str | Path) -> None:
    """Write an explanation as one HTML file that includes the recording."""
    write_page(path, page(explanation))


def page(explanation: Explanation) -> str:
    """Return an explanation as the text of an HTML page."""
    return render("explanation", _data(explanation))


def _data(explanation: Explanation) -> dict[str, Any]:
    return {
        "name": explanation.name,
        "model": explanation.model,
        "seconds": explanation.seconds,
        "window": explanation.window,
        "audio": wav_uri(explanation.waveform, explanation.front_end.sample_rate),
        **spectrogram(explanation.log_mel, explanation.front_end),
        "labels": explanation.labels,
        "found": [f"{label} {score:.2f}" for label, score in likeliest(explanation)],
        "times": _rounded(explanation.times),
        "timeline": matrix(explanation.timeline.T),
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
        "frequency": None if block.frequency is None else matrix(block.frequency),
        "time": None if block.time is None else matrix(block.time),
    }


def _rounded(values: npt.NDArray[Any]) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()
