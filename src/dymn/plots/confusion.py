"""Confusion matrices as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dymn.plots.style import FAINT, INK, SHARE, new_figure, save_figure

MOST_NUMBERED = 30


def plot_confusion(labels: Sequence[str], counts: npt.NDArray[np.int64], path: str | Path, by: str = "") -> None:
    """Draw a confusion matrix into a PNG, PDF or SVG file, chosen by its ending.

    Args:
        labels: of the classes.
        counts: of clips by true class (rows) and answer (columns) [C, C]; the colours are shares of the class.
        path: of the picture.
        by: who answers, for the title.

    Errors are those of `dymn.plots.style.save_figure`.
    """
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    n, clips = len(labels), int(counts.sum())
    side = 3.0 + 0.42 * min(n, MOST_NUMBERED)
    figure = new_figure(side + 1.2, side, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SHARE, vmin=0, vmax=1)
    axes.set_xticks(range(n), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=10)
    axes.set_yticks(range(n), labels, fontsize=10)
    axes.set_xlabel("answer", fontsize=11)
    axes.set_ylabel("class", fontsize=11)
    if n <= MOST_NUMBERED:
        for row in range(n):
            for column in range(n):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.55 else INK
                    axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    axes.spines[:].set_color(FAINT)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    title = f"{int(counts.trace()) / max(clips, 1):.2%} of {clips} clips" + (f", by {by}" if by else "")
    axes.set_title(title, fontsize=11, loc="left", color=INK)
    save_figure(figure, path, dpi=160)
