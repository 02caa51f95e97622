"""Which classes are taken for which: the confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path

from dymn.config import check
from dymn.evaluation.probe import Probed
from dymn.plots.style import FAINT, INK, SHARE, new_figure, save_figure

MOST_NUMBERED = 30


def plot_confusion(found: Probed, path: str | Path) -> None:
    """Draw the confusion matrix, its rows being the classes and its colours their shares, into a file, its ending being
    PNG, PDF or SVG.

    Raises:
        ConfigError: if clips have several labels, or matplotlib cannot write such a file.
        MissingExtraError: if matplotlib is not installed.
    """
    check(found.confusion is not None, "Clips with several labels have no confusion matrix.")
    counts = found.confusion
    assert counts is not None
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    n = len(found.labels)
    side = 3.0 + 0.42 * min(n, MOST_NUMBERED)
    figure = new_figure(side + 1.2, side, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SHARE, vmin=0, vmax=1)
    axes.set_xticks(range(n), found.labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=10)
    axes.set_yticks(range(n), found.labels, fontsize=10)
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
    axes.set_title(
        f"{found.mean:.2%} of {int(counts.sum())} clips, by a linear model", fontsize=11, loc="left", color=INK
    )
    save_figure(figure, path, dpi=160)
