"""Questions about passages of recordings as one HTML file: listen, answer by keyboard, save the answers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dymn.audio.stored import passage
from dymn.config import FrontEndConfig
from dymn.native.log_mel import array_log_mel
from dymn.plots.html import render, spectrogram, wav_uri, write_page
from dymn.plots.style import time_ticks

PLAYED_RATE = 16_000
"""The sample rate of the sound in the page, in Hz: half a minute of listening takes a megabyte."""
COLUMNS = 250


def save_review(
    questions: Sequence[tuple[str, float, float, str, float, float]], front_end: FrontEndConfig, model: str, path: Path
) -> None:
    """Write a page with the sound and the spectrogram of each question in it.

    Args:
        questions: those of `dymn.fitting.review.Doubt`: path, start and end in seconds, label, score, threshold.
        front_end: of the model, for the spectrograms.
        model: its name.
        path: of the page.

    Raises:
        AudioError: if a recording cannot be read again.
    """
    shown = [_shown(question, front_end) for question in questions]
    write_page(path, render("review", {"model": model, "questions": shown}))


def _shown(question: tuple[str, float, float, str, float, float], front_end: FrontEndConfig) -> dict[str, Any]:
    path, start, end, label, score, threshold = question
    samples = passage(path, start, end, front_end.sample_rate)
    log_mel = array_log_mel(front_end)(samples)[0]
    step = max(1, math.ceil(log_mel.shape[1] / COLUMNS))
    return {
        "path": path,
        "name": Path(path).name,
        "start": round(start, 3),
        "end": round(end, 3),
        "label": label,
        "score": round(score, 3),
        "threshold": round(threshold, 3),
        "seconds": end - start,
        "audio": wav_uri(passage(path, start, end, PLAYED_RATE), PLAYED_RATE),
        "ticks": time_ticks(end - start),
        **spectrogram(log_mel[:, ::step], front_end),
    }
