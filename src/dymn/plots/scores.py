"""Plots of the scores of held-out windows, with and without the class, and the thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.plots.style import BLUE, FAINT, INK, ORANGE, SOFT, new_figure, save_figure, shortened

ROW, SPREAD = 0.55, 0.16


class ClassScores(NamedTuple):
    """The scores of one class [N], whether it is in each window [N], and its thresholds."""

    label: str
    scores: npt.NDArray[np.floating[Any]]
    positive: npt.NDArray[np.bool_]
    auto: float
    precise: float


def plot_scores(classes: Sequence[ClassScores], path: str | Path) -> None:
    """Draw a row of dots for each class: windows with the class above, others below, and both thresholds.

    Errors are those of `dymn.plots.style.save_figure`.
    """
    figure = new_figure(9, 1.3 + ROW * len(classes), layout="constrained")
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    for row, one in enumerate(classes):
        for rows, colour, above in ((one.positive, BLUE, 0.2), (~one.positive, SOFT, -0.2)):
            heights = row - above + rng.uniform(-SPREAD, SPREAD, int(rows.sum()))
            axes.scatter(one.scores[rows], heights, s=9, color=colour, alpha=0.6, linewidths=0, rasterized=True)
        for threshold, colour in ((one.auto, INK), (one.precise, ORANGE)):
            axes.plot([threshold, threshold], [row - 0.42, row + 0.42], color=colour, linewidth=2)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_yticks(range(len(classes)), [shortened(one.label, 28) for one in classes], fontsize=12)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability of windows that were held out", color=SOFT, fontsize=12)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    handles = [
        axes.scatter([], [], color=BLUE, label="with the class"),
        axes.scatter([], [], color=SOFT, label="without"),
        axes.plot([], [], color=INK, linewidth=2, label="auto")[0],
        axes.plot([], [], color=ORANGE, linewidth=2, label="precise")[0],
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    save_figure(figure, path)
