"""The page of `replicate.py`.

Tables with intervals, learning curves, mAP against multiply-adds, from the result files.
"""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replicate import ARMS, EXPERIMENTS
from replicate_esc10 import TITLE, anchor_of, section_of, summary_of, with_section
from replicate_figures import HEARD, Interval, average_precision, clip_excess, paired_bootstrap, precision_bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, BLUE, RED, GREY = "#222222", "#d9d9d9", "#0072B2", "#D55E00", "#8a8a8a"
COLOURS = {"dymn": RED, "mn": "#56B4E9", "mn_equal": BLUE, "mn_wider": "#004466", "mn_static": "#CC79A7"}
COLOURS |= {"no_dyconv": "#009E73", "no_dyrelu": "#E69F00", "no_ca": "#8a8a8a"}
COLOURS |= {"dymn_hard": "#B8860B", "mn_hard": "#9ecae1", "dymn_tau1": "#54278f"}
PAPER = {  # mAP on AudioSet: Table II at the widths of the run, Table V at width 1
    0.4: {"dymn": 45.0, "mn": 43.0, "mn_wider": 44.2},
    "V": {
        "dymn": 47.5,
        "mn": 45.8,
        "mn_static": 44.4,
        "no_dyconv": 47.2,
        "no_dyrelu": 46.9,
        "no_ca": 46.9,
        "dymn_tau1": 47.4,
    },
}
PRECISION_DRAWS = 1000
PLANNED_SEEDS = 3
LISTED = 3  # comparisons of a claim that are listed at the top of the page
CEILING = 12.0  # of the drawn excess, a little above the prior's; runaway clips lift early means far above
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 10)
MILLI = 1e3
DERAILED = 0.1  # an excess ten times that of the prior: the network's activations have run away on this clip


INTRODUCTION = """
This page reports small replications of the paper's claims and shows how to repeat them. Networks start from random
weights, unless stated otherwise, and are trained on openly licensed audio. The number in a network's name is its width.
The networks, the data, the metrics and the decision rule were fixed before the first run; they are documented at the
top of `benchmarks/replicate.py` and, for Table IV, of `benchmarks/replicate_esc10.py`.
"""
MEASURES = """
*Excess* is the binary cross-entropy minus the teacher's own entropy, averaged over 527 classes, in thousandths (lower
is better). For *mAP*, a class is positive if the teacher's probability is above 0.3. *Top-1* is the share of clips for
which network and teacher agree on the most probable class. Each value is the mean over seeds, followed by the values of
the seeds in parentheses. A *runaway* clip has an excess above {derailed:.0f}: a network's activations explode on it. A
constant prediction of the teacher's mean logits, the starting point of every network, has an excess of {floor:.2f}.
"""
EQUAL_COST = """
{name} is the narrowest MN that needs at least as many multiply-adds as {dymn}. Channel numbers are multiples of 8,
which is why it needs {more:.0f} % more.
"""
MECHANISM = """
The next table describes the kernel weights at the beginning, in the middle and at the end of training, averaged over
seeds. Entropy is averaged over clips and layers, in units of log K for K kernels, so that 1 means that all kernels have
the same weight for every clip. A kernel counts as unused if its mean weight is below a fifth of an even share.
"""
DIFFERENCES = """
The next table compares pairs of networks: the difference in excess, in thousandths, with 95 % intervals of a paired
bootstrap over clips and over the software packages that the clips come from; the relative difference in geometric mean
excess; and the difference in mAP. A negative excess or ratio and a positive mAP favour the first network. *Seeds ahead*
counts the seeds in which the first network has the lower excess. The intervals cover the choice of clips, not chance in
training, for which the seeds are shown.
"""
VERDICT = "There is a verdict only if the {deciding} excludes zero."
EQUAL = """
The temperature of DyMN is annealed from 30 to 1; "temperature 1" is a DyMN with a temperature of 1 from the start. In
the paper, this makes almost no difference (0.1 mAP). The verdict is therefore "as in the paper" if the first interval
includes zero.
"""
RUNAWAY = """
Where a line leaves the left plot at the top, a few runaway clips dominate the mean.
"""
LIMITS = """
The paper trains on two million AudioSet clips for 200 epochs, starts from ImageNet weights and uses an ensemble of
Transformers as the teacher. Here, a small MN is the teacher, each network is trained on a small fraction of that number
of examples, and all networks share one learning rate. The results apply to these conditions only.
"""


class Results(NamedTuple):
    """What the finished seeds of a run left: arrays by network and seed."""

    plan: dict[str, Any]
    seeds: dict[str, list[int]]  # by network
    keys: list[str]
    teacher: npt.NDArray[np.float32]  # logits [N, C]
    prior: npt.NDArray[np.float32]  # logits [C]
    logits: dict[str, list[npt.NDArray[np.float32]]]  # by network, then seed, each [N, C]
    excess: dict[str, npt.NDArray[np.float64]]  # by network, [seeds, N]
    curves: dict[str, list[list[dict[str, float]]]]  # by network, then seed
    weights: dict[str, list[dict[str, npt.NDArray[np.float16]]]]
    kernels: dict[str, list[list[dict[str, float]]]]  # by network, then seed: by per cent of the run
    seconds: list[float]  # of each process's run: a seed's networks together
    unfinished: list[str]
    complete: bool  # whether only finished seeds are in it

    def of(self, arms: Sequence[str]) -> Results:
        """Return the results of some networks for the seeds that all of them have."""
        common = set.intersection(*(set(self.seeds[arm]) for arm in arms))
        at = {arm: [i for i, seed in enumerate(self.seeds[arm]) if seed in common] for arm in arms}
        return self._replace(
            seeds={arm: sorted(common) for arm in arms},
            excess={arm: self.excess[arm][at[arm]] for arm in arms},
            **{
                name: {arm: [getattr(self, name)[arm][i] for i in at[arm]] for arm in arms}
                for name in ("logits", "curves", "weights", "kernels")
            },
        )

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """What the teacher hears [N, C]."""
        return 1 / (1 + np.exp(-self.teacher)) > HEARD

    def title(self, arm: str) -> str:
        """Return what a network is called on the page."""
        return ARMS[arm].titled(self.plan["networks"][arm]["width"])


class Contrast(NamedTuple):
    """How much better the first network is than the second; an excess is better when it is lower."""

    first: str
    second: str
    excess: Interval
    by_package: Interval | None
    ratio: Interval  # of the logarithms of the excess
    precision: Interval
    seeds_ahead: int
    measure: str = "excess"
    equal: bool = False

    @property
    def decisive(self) -> Interval:
        """The interval that decides, turned such that values below zero speak for the first network."""
        if self.measure == "excess":
            return self.excess
        return Interval(-self.precision.estimate, -self.precision.high, -self.precision.low)

    @property
    def stands(self) -> bool:
        """Whether the first network is better, beyond chance; or if `equal`, whether no difference shows."""
        return not self.decisive.excludes_zero if self.equal else self.decisive.high < 0


def read(folder: Path, partial: bool = False) -> Results:
    """Read what `replicate.py run` wrote.

    The finished seeds, or if `partial`, all, provided that they came equally far.

    Raises:
        SystemExit: if no seed is finished, or seeds heard other clips or (if `partial`) other numbers of crops.
    """
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    found: dict[str, dict[int, tuple[dict[str, Any], dict[str, Any]]]] = {}
    unfinished, steps = [], set()
    for path in sorted(folder.glob("*-seed*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record = json.loads(str(arrays["record"]))
        if record["steps"] < record["of"]:
            unfinished.append(f"{path.stem} ({100 * record['steps'] / record['of']:.0f} %)")
        if partial or record["steps"] == record["of"]:
            found.setdefault(record["arm"], {})[record["seed"]] = (record, arrays)
            steps.add(record["steps"])
    if len(steps) > 1:
        raise SystemExit(
            f"The seeds in {folder} came unequally far: {', '.join(unfinished)}. Report the finished ones alone."
        )
    if not _reportable(seeds := {arm: sorted(found[arm]) for arm in ARMS if arm in found}):
        raise SystemExit(
            f"{folder} holds no finished seed of all networks of a claim; unfinished: "
            f"{', '.join(unfinished) or 'none'}."
        )
    parts = {arm: [found[arm][seed] for seed in seeds[arm]] for arm in seeds}
    first = next(iter(parts.values()))[0][1]
    if any(list(arrays["keys"]) != list(first["keys"]) for rows in parts.values() for _, arrays in rows):
        raise SystemExit(f"The result files in {folder} are of different held-out clips.")

    def weights(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix("weights."): a for name, a in arrays.items() if name.startswith("weights.")}

    return Results(
        plan=plan,
        seeds=seeds,
        keys=[str(key) for key in first["keys"]],
        teacher=first["teacher"].astype(np.float32),
        prior=first["prior"],
        logits={arm: [arrays["logits"].astype(np.float32) for _, arrays in rows] for arm, rows in parts.items()},
        excess={arm: np.stack([arrays["excess"] for _, arrays in rows]).astype(float) for arm, rows in parts.items()},
        curves={arm: [record["curves"] for record, _ in rows] for arm, rows in parts.items()},
        weights={arm: [weights(arrays) for _, arrays in rows] for arm, rows in parts.items()},
        kernels={arm: [record["kernels"] for record, _ in rows] for arm, rows in parts.items()},
        seconds=[record["seconds"] for rows in parts.values() for record, _ in rows],
        unfinished=unfinished,
        complete=not partial,
    )


def _reportable(seeds: dict[str, list[int]]) -> list[str]:
    """Return the claims of which all networks have a seed in common."""
    return [
        name
        for name, experiment in EXPERIMENTS.items()
        if set.intersection(*(set(seeds.get(arm, ())) for arm in experiment.arms))
    ]


def contrast(
    results: Results,
    first: str,
    second: str,
    packages: Sequence[str] | None,
    draws: int,
    measure: str = "excess",
    equal: bool = False,
) -> Contrast:
    """Compare two networks over the held-out clips, each averaged over seeds."""
    per_seed = results.excess[first] - results.excess[second]  # [seeds, N]
    difference = per_seed.mean(axis=0)
    logarithms = [np.log(results.excess[arm].clip(1e-12)) for arm in (first, second)]
    return Contrast(
        first,
        second,
        paired_bootstrap(difference, None, draws),
        None if packages is None else paired_bootstrap(difference, packages, draws),
        paired_bootstrap((logarithms[0] - logarithms[1]).mean(axis=0), None, draws),
        precision_bootstrap(
            results.logits[first], results.logits[second], results.positive, None, min(draws, PRECISION_DRAWS)
        ),
        int((per_seed.mean(axis=1) < 0).sum()),
        measure,
        equal,
    )


def row_of(results: Results, arm: str) -> dict[str, Any]:
    """Return the measures of a network, each a list over seeds."""
    positive, top = results.positive, results.teacher.argmax(axis=1)
    return {
        **results.plan["networks"][arm],
        "excess": results.excess[arm].mean(axis=1).tolist(),
        "mAP": [float(np.nanmean(average_precision(said, positive))) for said in results.logits[arm]],
        "top1": [float((said.argmax(axis=1) == top).mean()) for said in results.logits[arm]],
        "derailed": (results.excess[arm] > DERAILED).sum(axis=1).tolist(),
    }


def packages_of(keys: Sequence[str], corpus: Path) -> list[str]:
    """Return the package that each clip comes from, by the corpus's `index.csv`."""
    with (corpus / "index.csv").open(newline="", encoding="utf-8") as file:
        sources = {row["key"]: row["source"] for row in csv.DictReader(file)}
    return [sources[key] for key in keys]


def zero_shot_of(results: Results, arms: Sequence[str], esc10: Path) -> dict[str, list[float]]:
    """Return the zero-shot accuracy on ESC-10 of the networks' final weights, by seed.

    Clips repeated to 10 s, as `dymn tag` does.
    """
    import torch

    from dymn import Tagger
    from dymn.config import ModelCard
    from dymn.models.mobilenet import MobileNet
    from dymn.weights.labels import audioset_labels
    from zero_shot import zero_shot

    found: dict[str, list[float]] = {}
    for arm in arms:
        found[arm] = []
        for state in results.weights[arm]:
            config = ARMS[arm].variant(results.plan["mark"]["width"]).config()
            network = (
                MobileNet.skeleton(config).fill({name: torch.from_numpy(value) for name, value in state.items()}).eval()
            )
            network.card = ModelCard(name=arm, labels=tuple(audioset_labels()))
            found[arm].append(float(np.mean(list(zero_shot(Tagger(network, "cpu", 1), esc10, "repeat").values()))))
    return found


def write_report(
    folder: Path, page: Path, images: Path, corpus: Path | None, esc10: Path | None, draws: int, partial: bool = False
) -> None:
    """Write the page, its pictures, and `figures.json` in the folder of the results."""
    results = read(folder, partial)
    packages = packages_of(results.keys, corpus) if corpus else None
    claims = {name: results.of(EXPERIMENTS[name].arms) for name in _reportable(results.seeds)}
    rows = {name: {arm: row_of(part, arm) for arm in part.excess} for name, part in claims.items()}
    contrasts = {
        name: [
            contrast(part, *pair, packages, draws, EXPERIMENTS[name].measure, EXPERIMENTS[name].equal)
            for pair in EXPERIMENTS[name].contrasts
        ]
        for name, part in claims.items()
    }
    stored = folder / "zero_shot.json"
    heard: dict[str, list[float]] = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    for name, part in claims.items():
        if EXPERIMENTS[name].zero_shot:
            if any(len(heard.get(arm, ())) != len(seeds) for arm, seeds in part.seeds.items()) and esc10:
                heard = zero_shot_of(part, EXPERIMENTS[name].arms, esc10)
                stored.write_text(json.dumps(heard, indent=1), encoding="utf-8")
            for arm, seeds in part.seeds.items():
                if len(heard.get(arm, ())) == len(seeds):
                    rows[name][arm]["zero_shot"] = heard[arm]
    figures = {"plan": results.plan, "seconds": results.seconds, "claims": {}}
    for name, part in claims.items():
        figures["claims"][name] = {
            "seeds": next(iter(part.seeds.values())),
            "networks": rows[name],
            "contrasts": [{**c._asdict(), "stands": c.stands} for c in contrasts[name]],
        }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    images.mkdir(parents=True, exist_ok=True)
    draw_curves(results, images / "replication-curves.png")
    shown = "A" if "A" in claims else next(iter(claims))
    draw_trade_off(claims[shown], rows[shown], images / "replication-macs.png")
    if "D" in claims:
        draw_kernels(claims["D"], EXPERIMENTS["D"].arms, images / "replication-kernels.png")
    place = images.relative_to(page.parent) if images.is_relative_to(page.parent) else images
    page.parent.mkdir(parents=True, exist_ok=True)
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    section = section_of(old)
    text = text_of(results, claims, rows, contrasts, place.as_posix(), section)
    page.write_text(with_section(text, section), encoding="utf-8")


def text_of(
    results: Results,
    claims: dict[str, Results],
    rows: dict[str, dict[str, dict[str, Any]]],
    contrasts: dict[str, list[Contrast]],
    images: str,
    table_iv: str = "",
) -> str:
    """Return the page, to which the section `table_iv`, if there is one, is appended."""
    plan = results.plan
    width, (train, held_out) = plan["mark"]["width"], plan["clips"]
    changed = plan["mark"]["changes"]
    floor = clip_excess(np.broadcast_to(results.prior, results.teacher.shape), results.teacher).mean()
    sections, listed, failed = [], [], []
    for name, part in claims.items():
        experiment, seeds = EXPERIMENTS[name], part.seeds[EXPERIMENTS[name].arms[0]]
        sections += [f"## Claim {name}: {experiment.claim}", ""]
        if len(seeds) < PLANNED_SEEDS:
            sections += [f"These are results of {len(seeds)} of the {PLANNED_SEEDS} planned seeds.", ""]
        sections += [*_table(part, experiment.arms, rows[name], name), ""]
        wild = [a for a in experiment.arms if MILLI * np.mean(rows[name][a]["excess"]) > CEILING]
        if wild and (told := _without_runaways(part, experiment.arms, wild)):
            sections += [*_paragraph(told), ""]
        if name == "A":
            more = 100 * (rows[name]["mn_equal"]["macs"] / rows[name]["dymn"]["macs"] - 1)
            note = EQUAL_COST.format(name=results.title("mn_equal"), dymn=results.title("dymn"), more=more)
            sections += [*_paragraph(note), ""]
        deciding = "first interval" if experiment.measure == "excess" else "interval of mAP"
        differences = DIFFERENCES if name == next(iter(claims)) else ""
        rule = EQUAL if experiment.equal else VERDICT.format(deciding=deciding)
        sections += [*_paragraph(f"{differences} {rule}"), ""]
        sections += ["| | excess | over packages | ratio | mAP | seeds ahead | verdict |"]
        sections += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for number, c in enumerate(contrasts[name]):
            title = f"{results.title(c.first)} − {results.title(c.second)}"
            wide = _interval(c.by_package, MILLI) if c.by_package else ""
            cells = [title, _interval(c.excess, MILLI), wide, _ratio(c.ratio), _interval(c.precision)]
            sections.append(f"| {' | '.join(cells)} | {c.seeds_ahead} of {len(seeds)} | {_verdict(c)} |")
            if number < LISTED:
                few = "" if len(seeds) >= PLANNED_SEEDS else f" ({len(seeds)} of {PLANNED_SEEDS} seeds)"
                what = experiment.claim if number < experiment.deciding else "also compared"
                listed.append(f"- Claim {name}, {what}{few}: {_conclusion(c, part)}".replace(") (", "; "))
            if not c.stands:
                failed.append(f"- {title}: {_verdict(c)}.")
        sections.append("")
        if name == "D":
            sections += _mechanism(part, experiment.arms, images)
    if table_iv:
        listed.append(f"- [Table IV](#{anchor_of(TITLE)}), on ESC-10: {summary_of(table_iv)}")
    lines = ["# Replication", "", *_paragraph(INTRODUCTION), ""]
    lines += [f"![mAP against multiply-adds; small dots are seeds]({images}/replication-macs.png)", "", *listed, ""]
    if results.unfinished:
        lines += [
            f"Unfinished{' and left out' if results.complete else ', measured where they stopped'}: "
            f"{', '.join(results.unfinished)}.",
            "",
        ]
    known = sorted(set().union(*results.seeds.values()))
    lines += ["## Conditions", ""]
    lines += _paragraph(
        f"Width {width}; {train:,} training clips and {held_out} held-out clips; crops of 2 s; `mn04_as` as the "
        f"teacher; {plan['presentations']:,} crops in {plan['steps']:,} steps for each network; seeds "
        f"{', '.join(map(str, known))}. {plan['device']}, PyTorch {plan['torch']}; all networks of a seed receive the "
        f"same batches and were trained together in {max(results.seconds) / 3600:.1f} hours or less."
    )
    lines.append("")
    if changed:
        lines += [f"Changed from the plan: {', '.join(f'`{change}`' for change in changed)}.", ""]
    lines += [*_paragraph(MEASURES.format(derailed=MILLI * DERAILED, floor=MILLI * floor)), ""]
    runaway = any(MILLI * point["excess"] > CEILING for seeds in results.curves.values() for c in seeds for point in c)
    command = f"run {' '.join(claims)} --corpus CORPUS --teacher mn04_as --out results --width {width}"
    numbers = f"--seeds {' '.join(map(str, known))} --presentations {plan['presentations']}"
    curves = "Excess and mAP on the held-out clips against the number of training crops, a line for each network"
    lines += [
        *sections,
        "## Learning curves",
        "",
        f"![{curves}]({images}/replication-curves.png)",
        "",
        *([*_paragraph(RUNAWAY), ""] if runaway else []),
        "## Differences from the paper",
        "",
        *(list(dict.fromkeys(failed)) or ["Every comparison above came out as in the paper."]),
        "",
        *_paragraph(LIMITS),
        "",
        "## Commands",
        "",
        "<!-- not run: it takes hours -->",
        "```console",
        f"$ python benchmarks/replicate.py {command} {numbers}",
        "$ python benchmarks/replicate.py report results --corpus CORPUS --esc10 ESC10",
        "```",
        "",
    ]
    return "\n".join(lines)


def draw_curves(results: Results, path: Path) -> None:
    """Draw excess and mAP on the held-out clips by training crops: the mean over seeds, and their range."""
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, (left, right) = _figure(2)
    for arm, seeds in results.curves.items():
        at = [point["presentations"] for point in seeds[0]]
        style = {"color": COLOURS[arm], "label": results.title(arm), "linewidth": 2.2 if arm == "dymn" else 1.5}
        for axes, name, scale in ((left, "excess", MILLI), (right, "mAP", 1.0)):
            values = scale * np.array([[point[name] for point in curve] for curve in seeds])
            axes.plot(at, values.mean(axis=0), **style)
            axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=COLOURS[arm], alpha=0.12, linewidth=0)
    left.set_yscale("log")
    lowest = min(MILLI * point["excess"] for seeds in results.curves.values() for curve in seeds for point in curve)
    left.set_ylim(0.9 * lowest, min(left.get_ylim()[1], CEILING))
    left.yaxis.set_major_locator(FixedLocator(TICKS))
    left.yaxis.set_minor_locator(NullLocator())
    left.yaxis.set_major_formatter("{x:g}")
    left.set_ylabel("Excess cross-entropy (thousandths)")
    right.set_ylabel("mAP against the teacher's decisions")
    for axes in (left, right):
        axes.set_xlabel("Training crops (thousands)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_kernels(results: Results, arms: Sequence[str], path: Path) -> None:
    """Draw entropy and share of unused kernels by training crops: the mean over seeds, and their range."""
    figure, (left, right) = _figure(2)
    for arm in arms:
        at = [point["presentations"] for point in results.kernels[arm][0]]
        for axes, name, scale in ((left, "entropy", 1.0), (right, "unused", 100.0)):
            values = scale * np.array([[point[name] for point in curve] for curve in results.kernels[arm]])
            axes.plot(at, values.mean(axis=0), color=COLOURS[arm], label=results.title(arm), linewidth=2)
            axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=COLOURS[arm], alpha=0.12, linewidth=0)
    left.set_ylabel("Entropy of the kernels' weights (log K)")
    right.set_ylabel("Unused kernels (%)")
    right.set_ylim(-0.5, max(10.0, right.get_ylim()[1]))
    for axes in (left, right):
        axes.set_xlabel("Training crops (thousands)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}")
    right.legend(loc="best", frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_trade_off(results: Results, rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw mAP against multiply-adds as in Fig. 4, each seed a dot."""
    figure, (axes,) = _figure(1)
    line = [arm for arm in ("mn", "mn_equal", "mn_wider") if arm in rows]
    points = {arm: (rows[arm]["macs"] / 1e6, float(np.mean(rows[arm]["mAP"]))) for arm in rows}
    if line:
        axes.plot(
            *zip(*(points[arm] for arm in line), strict=True),
            color=BLUE,
            marker="o",
            markersize=7,
            label="MN, by width",
        )
    for arm, (x, y) in points.items():
        seeds = rows[arm]["mAP"]
        colour = BLUE if arm in line else RED if arm == "dymn" else GREY
        axes.plot([x] * len(seeds), seeds, linestyle="none", marker=".", color=colour, alpha=0.6)
        if arm not in line:
            axes.plot(
                x,
                y,
                linestyle="none",
                marker="*" if arm == "dymn" else "D",
                markersize=15 if arm == "dymn" else 5,
                color=colour,
            )
        offset = (8, 8) if arm == "dymn" else (6, -14)  # away from the line of the MNs
        axes.annotate(results.title(arm), (x, y), offset, textcoords="offset points", color=colour, fontsize=9)
    axes.margins(x=0.25)
    axes.set_xlabel("Multiply-adds for 10 s (millions)")
    axes.set_ylabel("mAP against the teacher's decisions")
    figure.savefig(path, dpi=120)


def _figure(n: int) -> tuple[Any, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * n if n > 1 else 8, 4.4), layout="constrained", facecolor="white")
    rows = figure.subplots(1, n, squeeze=False)[0]
    for axes in rows:
        axes.grid(True, color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(rows)


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def _table(results: Results, arms: Sequence[str], rows: dict[str, dict[str, Any]], name: str) -> list[str]:
    printed = PAPER.get(results.plan["mark"]["width"], {}) if name == "A" else PAPER["V"]
    heard = any("zero_shot" in rows[arm] for arm in arms) and EXPERIMENTS[name].zero_shot
    where = {"A": "Table II, mAP", "D": "Table X, mAP at width 1"}.get(name, "Table V, mAP at width 1")
    titles = ["", "multiply-adds", "parameters", "excess", "runaway clips", "mAP", "top-1"]
    titles += [*(["ESC-10, zero-shot"] if heard else []), *([where] if printed else [])]
    lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] * len(titles))} |"]
    for arm in arms:
        row = rows[arm]
        cells = [results.title(arm), f"{row['macs'] / 1e6:.1f} M", f"{row['parameters'] / 1e6:.2f} M"]
        cells += [_seeds(row["excess"], MILLI, 3), ", ".join(map(str, row["derailed"]))]
        cells += [_seeds(row["mAP"], 1, 3), _seeds(row["top1"], 100, 1, " %")]
        if heard:
            cells.append(_seeds(row["zero_shot"], 100, 1, " %") if "zero_shot" in row else "")
        if printed:
            cells.append(f"{printed[arm]:.1f}" if arm in printed else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mechanism(results: Results, arms: Sequence[str], images: str) -> list[str]:
    lines = [*_paragraph(MECHANISM), "", "| | entropy | unused kernels |", "| --- | --- | --- |"]
    for arm in arms:
        points = [[curve[at] for curve in results.kernels[arm]] for at in (0, len(results.kernels[arm][0]) // 2, -1)]
        means = [{name: float(np.mean([p[name] for p in seeds])) for name in ("entropy", "unused")} for seeds in points]
        cells = [", ".join(f"{mean['entropy']:.3f}" for mean in means)]
        cells.append(", ".join(f"{100 * mean['unused']:.1f} %" for mean in means))
        lines.append(f"| {results.title(arm)} | {' | '.join(cells)} |")
    title = "Entropy of the kernels' weights and share of unused kernels against the number of training crops"
    return [*lines, "", f"![{title}]({images}/replication-kernels.png)", ""]


def _seeds(values: Sequence[float], scale: float, digits: int, unit: str = "") -> str:
    each = ", ".join(f"{scale * value:,.{digits}f}" for value in values)
    mean = f"{scale * float(np.mean(values)):,.{digits}f}{unit}"
    return f"{mean} ({each})" if len(values) > 1 else mean


def _interval(interval: Interval, scale: float = 1.0) -> str:
    estimate, low, high = (scale * value for value in interval)
    return f"{estimate:+,.3f} [{low:+,.3f}, {high:+,.3f}]".replace("-", "−")


def _ratio(interval: Interval) -> str:
    estimate, low, high = (100 * float(np.expm1(value)) for value in interval)
    return f"{estimate:+.1f} % [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def _verdict(c: Contrast) -> str:
    if c.stands:
        return "as in the paper"
    if c.equal:
        return "a difference, unlike in the paper"
    return "opposite to the paper" if c.decisive.excludes_zero else "no decision"


def _without_runaways(part: Results, arms: Sequence[str], wild: Sequence[str]) -> str:
    """Return what the excess would be without the clips that run away in any of the networks, if some do."""
    calm = ~np.any([(part.excess[arm] > DERAILED).any(axis=0) for arm in arms], axis=0)
    if calm.all() or not calm.any():
        return ""
    named = "; ".join(f"{MILLI * part.excess[arm][:, calm].mean():.3f} for {part.title(arm)}" for arm in arms)
    titles = " and ".join(part.title(arm) for arm in wild)
    return f"A few runaway clips dominate the mean excess of {titles}. Averaged over the other clips, it is {named}."


def _conclusion(c: Contrast, results: Results) -> str:
    first, second = results.title(c.first), results.title(c.second)
    if c.equal:
        unused = [100 * float(np.mean([curve[-1]["unused"] for curve in results.kernels[arm]])) for arm in c[:2]]
        score = "the excess does not differ" if c.stands else "the excess differs, unlike in the paper"
        if any((results.excess[arm] > DERAILED).any() for arm in c[:2]):
            score += "; runaway clips dominate the difference"
        shares = f"{unused[0]:.1f} % of the kernels of {first} are unused, and {unused[1]:.1f} % of those of {second}"
        return f"{shares}; {score}."
    interval = f"The 95 % interval of the difference in {'excess' if c.measure == 'excess' else 'mAP'}"
    if c.stands:
        return f"**{first} is better than {second}.** {interval} excludes zero."
    if c.decisive.excludes_zero:
        return f"**{first} is worse than {second}.** {interval} excludes zero."
    return f"**No decision** between {first} and {second}. {interval} includes zero."
