"""The decisions of a dynamic network as one picture, aligned with the axes of the spectrogram.

The log-mel spectrogram is in the middle. Below it, on the same time axis, are the tags and the channel-time attention
of every block; next to it, on the same frequency axis, is the channel-frequency attention. Then follow the kernel
shares of each convolution and, at the bottom, the activation function of each channel (Dy-ReLU). Colours are safe for
colour-blind readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.explain.arrays import POSITIONS, BlockDecisions, Explanation
from dymn.plots.style import (
    BLUE,
    DEVIATION,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PINK,
    RED,
    SKY,
    SOFT,
    draw_spectrogram,
    frequency_ticks,
    new_figure,
    save_figure,
    shortened,
)
from dymn.system.arrays import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

KERNEL_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
FIRST_MAP, SECOND_MAP = RED, BLUE
HEADING: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "color": INK}
MAX_LABEL = 23
MAX_LINES = 120  # functions drawn in one block
ZOOMS = (20, 10, 5, 2)  # factors of enlarged differences; the picture states the factor


def save_picture(explanation: Explanation, path: str | Path, dpi: int = 120) -> None:
    """Draw an explanation to a .png, .pdf or .svg file, by default with 1920 x 1200 pixels.

    Raises:
        ConfigError: if matplotlib cannot write such a file.
        MissingExtraError: if matplotlib is not installed.
    """
    save_figure(draw(explanation), path, dpi)


def draw(explanation: Explanation) -> Figure:
    """Return the picture as a matplotlib figure."""
    figure = new_figure(16, 10)
    ratios = {"height_ratios": (5.6, 2.3, 3.2), "width_ratios": (10, 3, 4.2)}
    grid = figure.add_gridspec(
        3, 3, left=0.168, right=0.978, top=0.872, bottom=0.268, hspace=0.27, wspace=0.1, **ratios
    )
    _title(figure, explanation)
    _spectrogram(figure.add_subplot(grid[0, 0]), explanation)
    _tags(figure.add_subplot(grid[1, 0]), explanation)
    _time_attention(figure.add_subplot(grid[2, 0]), explanation)
    _frequency_attention(figure.add_subplot(grid[0, 1]), explanation)
    _legend(figure.add_subplot(grid[1:, 1]), explanation)
    _kernels(figure, grid, explanation)
    _functions(figure, explanation)
    return figure


def _title(figure: Figure, explanation: Explanation) -> None:
    figure.text(
        0.022, 0.955, explanation.name, fontsize=21, fontweight="bold", color=INK, va="center", parse_math=False
    )
    found = ",  ".join(f"{label} {score:.2f}" for label, score in likeliest(explanation))
    text = f"{found}      {explanation.model}, {explanation.seconds:.1f} s"
    figure.text(0.022, 0.918, text, fontsize=13, color=SOFT, va="center", parse_math=False)


def likeliest(explanation: Explanation, n: int = 3) -> list[tuple[str, float]]:
    """Return the labels with the highest probability for the whole passage, and these probabilities."""
    return [
        (explanation.labels[i], float(explanation.scores[i]))
        for i in np.argsort(-explanation.scores, kind="stable")[:n]
    ]


def _spectrogram(axes: Axes, explanation: Explanation) -> None:
    draw_spectrogram(axes, explanation.log_mel, explanation.front_end, explanation.seconds)
    axes.set_title("Log-mel spectrogram", loc="left", pad=7, **HEADING)
    _plain(axes, x_labels=False)


def _tags(axes: Axes, explanation: Explanation) -> None:
    k = len(explanation.labels)
    edges = np.concatenate([[0], explanation.times, [explanation.seconds]])
    peaks = explanation.timeline.max(axis=0)
    for i, label in enumerate(explanation.labels):
        base = k - 1 - i
        values = np.concatenate([explanation.timeline[:1, i], explanation.timeline[:, i], explanation.timeline[-1:, i]])
        axes.fill_between(
            edges, base, base + 0.88 * values / max(peaks.max(), 1e-6), color=FIRST_MAP, linewidth=0, alpha=0.85
        )
        axes.axhline(base, color=FAINT, linewidth=0.8)
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center"}
        text = f"{shortened(label, MAX_LABEL)}  {peaks[i]:.2f}"
        axes.annotate(text, (0, base + 0.4), (-8, 0), fontsize=11, color=INK, parse_math=False, **place)
    axes.set_xlim(0, explanation.seconds)
    axes.set_ylim(0, k)
    axes.set_yticks([])
    title = f"Tags in windows of {explanation.window:g} s (peak next to each name)"
    axes.set_title(title, loc="left", pad=7, **HEADING)
    _plain(axes, x_labels=False)


def _time_attention(axes: Axes, explanation: Explanation) -> None:
    axes.set_title("Channel-time attention of each block", loc="left", pad=7, **HEADING)
    rows = deviations([block.time for block in explanation.blocks], explanation.log_mel.shape[1])
    _plain(axes, x_labels=True)
    axes.set_xlim(0, explanation.seconds)
    axes.set_xlabel("seconds", fontsize=11, color=SOFT)
    if rows is None:
        _absent(axes, "This network has no channel-time attention.")
        return
    n = len(rows)
    _deviations(axes, rows, attention_scale(explanation), (0, explanation.seconds, n + 0.5, 0.5))
    axes.hlines(np.arange(1.5, n), 0, explanation.seconds, color="white", linewidth=0.8)
    axes.set_yticks(_block_ticks(n))
    axes.set_ylabel("block", fontsize=11, color=SOFT)


def _frequency_attention(axes: Axes, explanation: Explanation) -> None:
    axes.set_title("Frequency attention", loc="left", pad=7, **HEADING)
    n_mels = len(explanation.log_mel)
    rows = deviations([block.frequency for block in explanation.blocks], n_mels)
    _plain(axes, x_labels=True)
    axes.set_ylim(0, n_mels)
    axes.set_yticks(frequency_ticks(explanation.front_end)[0], [])
    if rows is None:
        axes.set_xticks([])
        _absent(axes, "This network has no\nchannel-frequency attention.")
        return
    n = len(rows)
    _deviations(axes, rows.T, attention_scale(explanation), (0.5, n + 0.5, 0, n_mels), origin="lower")
    axes.vlines(np.arange(1.5, n), 0, n_mels, color="white", linewidth=0.8)
    axes.set_xticks(_block_ticks(n))
    axes.set_xlabel("block", fontsize=11, color=SOFT)


def _deviations(axes: Axes, rows: Array, scale: float, extent: tuple[float, ...], **image: Any) -> None:
    image |= {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    axes.imshow(rows, cmap=DEVIATION, vmin=-scale, vmax=scale, **image)


def _legend(axes: Axes, explanation: Explanation) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    scale = attention_scale(explanation)
    if scale > 0:
        bar = axes.inset_axes((0.0, 0.64, 1.0, 0.06))
        bar.imshow(np.linspace(-1, 1, 256)[None], aspect="auto", cmap=DEVIATION, extent=(-scale, scale, 0, 1))
        bar.set_yticks([])
        bar.set_xticks([-scale, 0, scale], [f"−{scale:.2g}", "0", f"+{scale:.2g}"])
        bar.tick_params(length=3, labelsize=10, colors=SOFT)
        bar.spines[:].set_visible(False)
        for x, aligned, word in ((0.0, "left", "less"), (0.5, "center", "attention"), (1.0, "right", "more")):
            axes.text(x, 0.75, word, ha=aligned, va="bottom", fontsize=11, color=INK)
        text = "mean weight of a block's channels,\nagainst its mean over the clip"
        axes.text(0.5, 0.49, text, ha="center", va="top", fontsize=10, color=SOFT, linespacing=1.4)
    n_kernels = max((len(shares) for block in explanation.blocks for shares in block.kernels.values()), default=0)
    for k in range(n_kernels):
        left = k / n_kernels
        colour = KERNEL_COLOURS[k % len(KERNEL_COLOURS)]
        axes.fill_between([left + 0.01, left + 1 / n_kernels - 0.01], 0.085, 0.155, color=colour, linewidth=0)
        axes.text(left + 0.5 / n_kernels, 0.06, f"{k + 1}", ha="center", va="top", fontsize=10, color=SOFT)
    if n_kernels:
        zoom = kernel_zoom(explanation)
        text = f"kernels (differences ×{zoom})" if zoom > 1 else "kernels"
        axes.text(0.5, 0.18, text, ha="center", va="bottom", fontsize=11, color=INK)


def _kernels(figure: Figure, grid: GridSpec, explanation: Explanation) -> None:
    cells = grid[:, 2].subgridspec(1, 3, wspace=0.12)
    n = len(explanation.blocks)
    zoom = kernel_zoom(explanation)
    for i, position in enumerate(POSITIONS):
        axes = figure.add_subplot(cells[0, i])
        if i == 0:
            axes.set_title("Kernel shares", loc="left", pad=7, **HEADING)
        axes.set_xlim(0, 1)
        axes.set_ylim(n + 0.6, 0.4)
        axes.set_yticks(_block_ticks(n) if i == 0 else [])
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=10, colors=SOFT)
        axes.set_xlabel(position, fontsize=11, color=INK)
        for block in explanation.blocks:
            _mixture(axes, block, position, zoom)


def _mixture(axes: Axes, block: BlockDecisions, position: str, zoom: int) -> None:
    shares = block.kernels.get(position)
    if shares is None:
        axes.barh(block.number, 1, height=0.76, color="white", edgecolor=FAINT, linewidth=0.8, hatch="////")
        return
    shares = 1 / len(shares) + zoom * (shares - 1 / len(shares))
    left = np.concatenate([[0], np.cumsum(shares)[:-1]])
    colours = [KERNEL_COLOURS[k % len(KERNEL_COLOURS)] for k in range(len(shares))]
    bars: dict[str, Any] = {"height": 0.76, "edgecolor": "white", "linewidth": 0.6}
    axes.barh(np.full(len(shares), block.number), shares, left=left, color=colours, **bars)


def _functions(figure: Figure, explanation: Explanation) -> None:
    n = len(explanation.blocks)
    grid = figure.add_gridspec(1, n, left=0.022, right=0.978, top=0.165, bottom=0.045, wspace=0.18)
    text = "Dy-ReLU of each channel (dashed: ReLU, orange: mean, ×: differences enlarged)"
    figure.text(0.022, 0.187, text, va="center", **HEADING)
    x = np.linspace(-2, 2, 81, dtype=np.float32)
    for i, block in enumerate(explanation.blocks):
        axes = figure.add_subplot(grid[0, i])
        axes.set_xlim(-2, 2)
        axes.set_ylim(-1, 3)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(FAINT)
        zoom = function_zoom(block)
        axes.set_xlabel(
            ("block " if i == 0 else "") + f"{block.number}" + f"  ×{zoom}" * (zoom > 1), fontsize=10.5, color=SOFT
        )
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        for position in block.slopes:
            curves = functions(block, position, x)
            curves = np.maximum(x, 0) + zoom * (curves - np.maximum(x, 0))
            shown = curves[np.linspace(0, len(curves) - 1, min(len(curves), MAX_LINES)).astype(int)]
            axes.plot(x, shown.T, color=SECOND_MAP, linewidth=0.6, alpha=max(0.06, min(0.5, 12 / len(shown))))
            axes.plot(x, curves.mean(axis=0), color=FIRST_MAP, linewidth=1.8)
        if block.slopes:
            axes.plot(x, np.maximum(x, 0), color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        else:
            _absent(axes, "static")


def deviations(attention: list[Array | None], length: int) -> Array | None:
    """Return the deviation of each block's attention, averaged over channels, from its mean along the axis.

    The result is [blocks, length], with zeros for blocks without attention, or None if no block has attention.
    """
    if all(values is None for values in attention):
        return None
    rows = np.zeros((len(attention), length), np.float32)
    for row, values in zip(rows, attention, strict=True):
        if values is not None:
            mean = values.mean(axis=0)
            row[:] = (mean - mean.mean())[np.arange(length) * len(mean) // length]
    return rows


def attention_scale(explanation: Explanation) -> float:
    """Return the deviation of the strongest colour, equal in both directions and axes; 0 without attention."""
    n_mels, n_frames = explanation.log_mel.shape
    both = (
        deviations([block.time for block in explanation.blocks], n_frames),
        deviations([block.frequency for block in explanation.blocks], n_mels),
    )
    found = [np.abs(rows).ravel() for rows in both if rows is not None]
    return max(float(np.percentile(np.concatenate(found), 96)), 1e-3) if found else 0.0


def functions(block: BlockDecisions, position: str, x: Array) -> Array:
    """Return the Dy-ReLU of each channel at the points x [n] as an array [C, n]."""
    slopes, intercepts = block.slopes[position], block.intercepts[position]
    curves: Array = (slopes[:, :, None] * x + intercepts[:, :, None]).max(axis=1)
    return curves


def kernel_zoom(explanation: Explanation) -> int:
    """Return the largest factor for the differences from equal kernel shares with which all of them still fit."""
    shares = [values for block in explanation.blocks for values in block.kernels.values()]
    least = min((float((len(values) * (values - 1 / len(values))).min()) for values in shares), default=-1.0)
    return next((zoom for zoom in ZOOMS if zoom * least > -0.9), 1)


def function_zoom(block: BlockDecisions) -> int:
    """Return by how much a block's differences from the ReLU can be enlarged so that nearly all of them still fit."""
    if not block.slopes:
        return 1
    x = np.array([-2, 0, 2], np.float32)
    differences = np.concatenate(
        [np.abs(functions(block, position, x) - np.maximum(x, 0)).ravel() for position in block.slopes]
    )
    largest = float(np.percentile(differences, 98))
    return next((zoom for zoom in ZOOMS if zoom * largest < 1), 1)


def _block_ticks(n: int) -> list[int]:
    return [1, *range(5, n + 1, 5)]


def _plain(axes: Axes, x_labels: bool) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=3, labelsize=10, colors=SOFT, labelbottom=x_labels)


def _absent(axes: Axes, text: str) -> None:
    axes.tick_params(left=False, labelleft=False)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=SOFT)
