"""Which classes are taken for which: the confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path

from dymn.config import check
from dymn.errors import ConfigError, MissingExtraError
from dymn.evaluation.probe import Probed
from dymn.system.files import atomic_write

INK, FAINT = "#222222", "#d9d9d9"
MOST_NUMBERED = 30


def plot_confusion(found: Probed, path: str | Path) -> None:
    """Draw the confusion matrix, its rows being the classes and its colours their shares, into a file, its ending being PNG, PDF or SVG.

    Raises:
        ConfigError: if clips have several labels, or matplotlib cannot write such a file.
        MissingExtraError: if matplotlib is not installed.
    """
    check(found.confusion is not None, "Clips with several labels have no confusion matrix.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing", "plot") from error
    counts = found.confusion
    assert counts is not None
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    n = len(found.labels)
    side = 3.0 + 0.42 * min(n, MOST_NUMBERED)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
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
    axes.set_title(f"{found.mean:.2%} of {int(counts.sum())} clips, by a linear model", fontsize=11, loc="left", color=INK)
    try:
        with atomic_write(path) as file:
            figure.savefig(file, dpi=160, format=Path(path).suffix[1:])
    except ValueError as error:
        raise ConfigError(f"The picture {path} cannot be written: {error}. Give a name that ends in .png, .pdf or .svg.") from error
