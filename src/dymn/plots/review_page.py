"""Questions about passages of recordings as one HTML file: listen, answer by keyboard, save the answers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from dymn.audio.stored import passage
from dymn.config import FrontEndConfig
from dymn.errors import AudioError, DataError
from dymn.native.log_mel import array_log_mel
from dymn.plots.html import render, spectrogram, wav_uri, write_page
from dymn.plots.style import time_ticks

PLAYED_RATE = 16_000
"""The sample rate of the sound in the page, in Hz: half a minute of listening takes a megabyte."""
COLUMNS = 250

PageQuestion: TypeAlias = tuple[str, float, float, str, float, float]
"""Path, start and end in seconds, label, score and threshold, as in `dymn.fitting.review.Doubt`."""
Q = TypeVar("Q", bound=PageQuestion)


def save_review(
    questions: Sequence[Q], front_end: FrontEndConfig, model: str, path: Path
) -> tuple[list[Q], list[AudioError]]:
    """Write a page with the sound and the spectrogram of each question in it.

    Args:
        questions: those of `dymn.fitting.review.doubts`.
        front_end: of the model, for the spectrograms.
        model: its name.
        path: of the page.

    Returns:
        the questions in the page, and why the recordings of the others cannot be read again, an error for each.

    Raises:
        DataError: if no recording can be read again.
    """
    asked: list[Q] = []
    shown: list[dict[str, Any]] = []
    failed: dict[str, AudioError] = {}
    for question in questions:
        try:
            shown.append(_shown(question, front_end))
            asked.append(question)
        except AudioError as error:
            failed.setdefault(question[0], error)
    errors = list(failed.values())
    if not shown:
        raise DataError(f"No recording can be read again: {errors[0] if errors else 'there is no question'}")
    write_page(path, render("review", {"model": model, "questions": shown}))
    return asked, errors


def _shown(question: PageQuestion, front_end: FrontEndConfig) -> dict[str, Any]:
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
