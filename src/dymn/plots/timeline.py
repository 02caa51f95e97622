"""Timeline plots of recordings as PNG, SVG or PDF: the spectrogram, and below it the labels over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.plots.overview import Overview
from dymn.plots.style import (
    FAINT,
    INK,
    PROBABILITY,
    SOFT,
    draw_spectrogram,
    new_figure,
    save_figure,
    shortened,
    time_ticks,
    time_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABEL = 26
MAX_TITLE = 70
ROW_INCHES = 0.36


def save_picture(seen: Overview, path: str | Path, dpi: int = 120) -> None:
    """Draw a recording to a .png, .pdf or .svg file.

    Raises:
        ConfigError: if matplotlib cannot write such a file.
        MissingExtraError: if matplotlib is not installed.
    """
    save_figure(draw(seen), path, dpi)


def draw(seen: Overview) -> Figure:
    """Return the picture as a matplotlib figure."""
    rows = ROW_INCHES * len(seen.labels)
    height = 0.95 + 2.6 + 0.3 + rows + 0.75
    figure = new_figure(12, height)

    def panel(top: float, tall: float, left: float = 3.3, wide: float = 7.8) -> Axes:
        return figure.add_axes((left / 12, 1 - (top + tall) / height, wide / 12, tall / height))

    title: dict[str, Any] = {"color": INK, "va": "center", "parse_math": False}
    figure.text(0.25 / 12, 1 - 0.34 / height, shortened(seen.name, MAX_TITLE), fontsize=17, fontweight="bold", **title)
    figure.text(0.25 / 12, 1 - 0.68 / height, seen.about, fontsize=12, **title | {"color": SOFT})
    _spectrogram(panel(0.95, 2.6), seen)
    labels = panel(0.95 + 2.6 + 0.3, rows)
    image = _labels(labels, seen)
    bar = figure.colorbar(image, cax=panel(0.95 + 2.6 + 0.3, rows, left=11.25, wide=0.13), ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=11, colors=SOFT)
    bar.ax.set_title("prob.", fontsize=11, color=SOFT, pad=6)
    return figure


def _spectrogram(axes: Axes, seen: Overview) -> None:
    draw_spectrogram(axes, seen.log_mel, seen.front_end, seen.seconds)
    _time_axis(axes, seen, named=False)


def _labels(axes: Axes, seen: Overview) -> Any:
    k = len(seen.labels)
    extent = (0, seen.seconds, k, 0)
    image = axes.imshow(
        seen.scores, aspect="auto", cmap=PROBABILITY, vmin=0, vmax=1, extent=extent, interpolation="nearest"
    )
    axes.hlines(np.arange(1, k), 0, seen.seconds, color="white", linewidth=2)
    axes.set_yticks(np.arange(k) + 0.5, [""] * k)
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 12}
    for i, (label, peak) in enumerate(zip(seen.labels, seen.peaks, strict=True)):
        axes.annotate(shortened(label, MAX_LABEL), (0, i + 0.5), (-38, 0), color=INK, parse_math=False, **place)
        axes.annotate(f"{peak:.2f}", (0, i + 0.5), (-6, 0), color=SOFT, **place)
    _time_axis(axes, seen, named=True)
    return image


def _time_axis(axes: Axes, seen: Overview, named: bool) -> None:
    places, texts = zip(*time_ticks(seen.seconds), strict=True)
    axes.set_xlim(0, seen.seconds)
    axes.set_xticks(places, texts if named else [""] * len(places))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=4, labelsize=12, colors=SOFT, color=FAINT)
    axes.tick_params(axis="y", length=0, labelsize=11)
    if named:
        axes.set_xlabel(time_unit(seen.seconds), fontsize=12, color=SOFT)
