"""Reliability diagrams, before and after calibration."""

from __future__ import annotations

from pathlib import Path

from dymn.evaluation.calibration import Reliability
from dymn.plots.style import BLUE, FAINT, INK, ORANGE, SOFT, new_figure, save_figure


def plot_reliability(
    before: Reliability, after: Reliability, path: str | Path, truth: str = "share that comes true"
) -> None:
    """Draw the share of positives by probability (axis label `truth`), above the number of probabilities.

    Errors are those of `dymn.plots.style.save_figure`.
    """
    figure = new_figure(6.2, 6.6, layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
    for found, name, colour in ((before, "before", ORANGE), (after, "after", BLUE)):
        label = f"{name}: calibration error {found.error:.2g}"
        axes.plot(found.predicted, found.true, "o-", color=colour, label=label, markersize=6, linewidth=1.6)
        counts.plot(found.predicted, found.counts, "o-", color=colour, markersize=4, linewidth=1.2)
    axes.set_ylabel(truth, fontsize=12, color=SOFT)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=12, loc="best", labelcolor=INK)
    counts.set_yscale("log")
    counts.set_ylabel("how many", fontsize=12, color=SOFT)
    counts.set_xlabel("probability", fontsize=12, color=SOFT)
    counts.set_xlim(-0.02, 1.02)
    for one in (axes, counts):
        one.grid(color=FAINT)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
