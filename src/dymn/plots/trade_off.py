"""mAP against multiply-adds and against parameters (Figs. 4 and 5).

The plots show the paper's results at the costs that dymn counts, and the published results of other networks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dymn.models import paper
from dymn.models.published import OTHERS
from dymn.plots.style import BLUE, FAINT, INK, RED, new_figure, save_figure
from dymn.profiling.counting import count
from dymn.profiling.networks import Network
from dymn.profiling.report import MILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Family(NamedTuple):
    """Networks that differ in width alone, and how they are drawn (colours of Okabe and Ito)."""

    name: str
    rows: tuple[str, ...]
    colour: str
    marker: str
    size: float
    above: bool


FAMILIES = (
    Family("DyMN", ("DyMN-S", "DyMN-M", "DyMN-L"), RED, "*", 17, above=True),
    Family(
        "MobileNet, by width α",
        tuple(f"MN (α = {width})" for width in ("0.4", "0.5", "1.0", "2.0", "3.0", "4.0")),
        BLUE,
        "o",
        8,
        above=False,
    ),
)

OTHER = "#7a7a7a"
LEFT = ((-7, -3), "right")
PLACES = dict.fromkeys(("CED-Small", "CED-Tiny", "ConvNeXt", "ResNet38", "Wavegram-Logmel"), LEFT) | {
    "PaSST-S": ((7, -9), "left")
}
"""Places of names that would overlap with something else, in points from their marks."""


def plot_trade_off(path: str | Path, model: Network | None = None) -> None:
    """Draw both figures side by side into a .png, .pdf or .svg file, with a line at the cost of `model`.

    `model` is as in `dymn.profiling.resolve`; errors are those of `dymn.plots.style.save_figure`.
    """
    figure = new_figure(12, 5, layout="constrained")
    _draw(figure, model)
    save_figure(figure, path, dpi=160)


def _draw(figure: Figure, model: Network | None) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    marked: dict[str, Network] = {"DyMN (α = 0.6)": dataclasses.replace(paper.DYMN, width=0.6)}
    if model is not None:
        marked[str(model) if isinstance(model, (str, Path)) else "this network"] = model
    for axes, quantity, title in (
        (left, "macs", "Multiply-adds for 10 s (millions)"),
        (right, "parameters", "Parameters (millions)"),
    ):
        _draw_others(axes, quantity)
        for family in FAMILIES:
            _draw_family(axes, family, quantity)
        for name, network in marked.items():
            _draw_mark(axes, name, getattr(count(network), quantity) / MILLION)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.7, high * 1.7)
        axes.set_xlabel(title, fontsize=12)
        axes.grid(True, which="major", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_ylim(42.2, 50.4)
    left.set_ylabel("mAP on AudioSet (published)", fontsize=12)
    left.legend(loc="upper right", frameon=False, fontsize=11)
    title = "Published mAP at the cost that dymn counts; open circles are printed costs, and grey are others' networks"
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", color=INK)


def _draw_others(axes: Axes, quantity: str) -> None:
    """Draw networks of others, CNNs as circles and Transformers as crosses, where their cost is published."""
    for marker, is_transformer in (("o", False), ("X", True)):
        rows = [row for row in OTHERS if row.is_transformer == is_transformer and getattr(row, quantity)]
        costs = [getattr(row, quantity) for row in rows]
        label = "Transformers of others" if is_transformer else "CNNs of others"
        axes.plot(costs, [row.map for row in rows], marker, color=OTHER, markersize=6.5, label=label)
        for row, x in zip(rows, costs, strict=True):
            place, aligned = PLACES.get(row.name, ((7, -3), "left"))
            axes.annotate(
                row.name, (x, row.map), place, textcoords="offset points", ha=aligned, color=OTHER, fontsize=8.5
            )


def _draw_family(axes: Axes, family: Family, quantity: str) -> None:
    rows = [paper.TABLE_II[name] for name in family.rows]
    ours = [getattr(count(row.variant), quantity) / MILLION for row in rows]
    printed: list[Any] = [getattr(row, quantity) for row in rows]
    scores: list[Any] = [row.map for row in rows]
    mark: dict[str, Any] = {"color": family.colour, "marker": family.marker, "markersize": family.size}
    axes.plot(ours, scores, linewidth=1.6, label=family.name, **mark)
    ring: dict[str, Any] = {"marker": "o", "markersize": family.size + 5, "markerfacecolor": "none"}
    axes.plot(printed, scores, linestyle="none", color=INK, markeredgewidth=0.8, **ring)
    for row, x, y in zip(rows, ours, scores, strict=True):
        label = row.name if family.above else row.name.removeprefix("MN (α = ").removesuffix(")")
        place, aligned = ((-2, 13), "right") if family.above else ((7, -15), "left")
        axes.annotate(label, (x, y), place, textcoords="offset points", ha=aligned, color=family.colour, fontsize=10.5)


def _draw_mark(axes: Axes, name: str, x: float) -> None:
    axes.axvline(x, ymax=0.09, color=INK, linewidth=1.2)
    axes.annotate(
        f"{name}\n{x:,.3g} M", (x, 42.25), (5, 0), textcoords="offset points", color=INK, fontsize=9.5, va="bottom"
    )
