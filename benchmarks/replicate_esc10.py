"""Distillation, pre-training and dynamic parts add up (Table IV in miniature, on ESC-10).

    python benchmarks/replicate_esc10.py run --esc10 ESC10 --teacher mn04_as --weights results --out results/esc10
    python benchmarks/replicate_esc10.py report results/esc10 --page docs/replication.md

The plan was written before the first run and is not changed afterwards.

**Cells.** {MN, DyMN} x {labels, labels and teacher} x {random weights, weights of experiment A of `replicate.py`},
width 0.2. Three runs, each from another seed of A. Five folds: 8 cells x 5 folds x 3 runs.

**Teacher.** `mn04_as`, fine-tuned on the training part of each fold by the recipe `esc10` (10 epochs), online: it hears
the mixtures that the student hears.

**Training.** The recipe `esc10`, the same for all cells: 40 epochs, learning rate 1e-3, batches of 16, mixup, roll,
gain. Lambda of eq. 8 is 0.1 with a teacher, as in the paper. The temperature anneals from 30 to 1 over six epochs for
random weights and is 1 for A's. The last epoch counts; nothing is chosen on the test fold.

**Measures.** Accuracy over all 400 clips, each heard by the network that did not learn from its fold. Exact McNemar
tests over the clips for each pair of cells that differ in one respect, for each run, and a paired bootstrap over clips
of the accuracy averaged over runs. A factor helps if the interval excludes zero.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replicate_figures import Interval, paired_bootstrap

FOLDS = (1, 2, 3, 4, 5)
EPOCHS, RATE, TAU, TAU_EPOCHS, LAMBDA = 40, 1e-3, 30.0, 6, 0.1
NETWORKS = {"mn": "MN", "dymn": "DyMN"}
TEACHING = {"labels": "labels", "teacher": "labels and teacher"}
WEIGHTS = {"random": "random", "trained": "pre-trained"}
TITLE = "Table IV: distillation, pre-training and dynamic parts"
PLANNED_RUNS, LINE = 3, 118
PLAN_FILE = "plan.json"
BEGIN, END = "<!-- Table IV: begin -->", "<!-- Table IV: end -->"
INTRODUCTION = """
Networks of width {width:g} are trained on ESC-10 in five folds, {runs} for each combination of settings, for {epochs}
epochs per fold. The teacher is `{teacher}`, fine-tuned on the training clips of each fold; it is online and receives
the same mixtures. *Pre-trained* networks start from the final weights of the networks of claim A, that is, they were
already distilled from the same `{teacher}` on other audio; in the paper, they start from ImageNet weights, and the
task is AudioSet. DyMNs with random weights anneal the temperature. Accuracy is that over all 400 clips, each classified
by the network that was not trained on its fold{each}.
"""
COMPARISON = """
The next table shows the effect of each factor with the other two fixed: the difference in accuracy in percentage
points, with the 95 % interval of a paired bootstrap over clips, and the p-value of McNemar's exact test{each}. A
factor helps or harms if the interval excludes zero. These are twelve comparisons, without correction for their number,
and the intervals do not cover chance in training.
"""
COMMANDS = """
<!-- not run: it takes hours -->
```console
$ python benchmarks/replicate_esc10.py run --esc10 ESC10 --teacher mn04_as --weights results --out results/esc10
$ python benchmarks/replicate_esc10.py report results/esc10
```
"""


class Cell(NamedTuple):
    """One way to train."""

    network: str
    teaching: str
    weights: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "-".join(self)

    @property
    def title(self) -> str:
        """The name in tables."""
        return f"{NETWORKS[self.network]}, {TEACHING[self.teaching]}, {WEIGHTS[self.weights]}"


CELLS = [Cell(*parts) for parts in product(NETWORKS, TEACHING, WEIGHTS)]
FACTORS = {  # the second value is to be better
    "dynamic parts": ("network", "mn", "dymn"),
    "teacher": ("teaching", "labels", "teacher"),
    "pre-training": ("weights", "random", "trained"),
}


HELPS = {"dynamic parts": "dynamic parts help", "teacher": "the teacher helps", "pre-training": "pre-training helps"}


def pairs(factor: str) -> Iterator[tuple[Cell, Cell]]:
    """Return the pairs of cells that differ in a factor alone: without, with."""
    field, low, high = FACTORS[factor]
    for cell in CELLS:
        if getattr(cell, field) == low:
            yield cell, cell._replace(**{field: high})


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Return the two-sided exact p of McNemar's test, from which clips [N] each network has right."""
    wins, losses = int((second & ~first).sum()), int((first & ~second).sum())
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def run(options: argparse.Namespace) -> None:
    """Train and measure what is missing."""
    import torch

    torch.set_num_threads(options.threads)
    check_plan(options)
    for number in range(options.runs):
        for fold in options.folds:
            teacher = fine_tuned_teacher(options, fold)
            for cell in CELLS:
                answer_of(options, cell, number, fold, teacher)


def check_plan(options: argparse.Namespace) -> None:
    """Write down what decides the results, where that is not done.

    Raises:
        SystemExit: if the folder holds results of another plan, or the weights of experiment A have another width.
    """
    from dymn.system.files import atomic_write
    from dymn.weights import open_checkpoint

    out, weights = Path(options.out), json.loads((Path(options.weights) / "plan.json").read_text(encoding="utf-8"))
    if weights["mark"]["width"] != options.width:
        raise SystemExit(f"--width is {options.width}, but {options.weights} has width {weights['mark']['width']}.")
    teacher = open_checkpoint(options.teacher)
    plan = {"epochs": options.epochs, "width": options.width, "rate": RATE, "lambda": LAMBDA}
    plan |= {"tau": TAU, "tau_epochs": TAU_EPOCHS, "teacher": teacher.card.name, "teacher_sha256": teacher.digest}
    plan["weights"] = weights["mark"]
    path = out / PLAN_FILE
    if path.exists():
        if (old := json.loads(path.read_text(encoding="utf-8"))) != plan:
            names = ", ".join(sorted(name for name in old.keys() | plan.keys() if old.get(name) != plan.get(name)))
            raise SystemExit(f"{out} holds results of another plan: {names} changed. Choose another folder.")
        return
    if any(out.glob("run*")):
        raise SystemExit(f"{out} contains results but no {PLAN_FILE}. Choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(plan).encode())


def answer_of(options: argparse.Namespace, cell: Cell, number: int, fold: int, teacher: Path) -> None:
    """Train the network of a cell for a fold and write which test clips it has right."""
    from dymn import load_model
    from dymn.evaluation.assess import assess
    from dymn.training import train

    out = Path(options.out) / f"run{number}" / cell.name / f"fold{fold}"
    done = out.with_suffix(".json")
    if done.exists():
        return
    changes: dict[str, Any] = {"optim.lr": RATE, "schedule.epochs": options.epochs}
    changes |= {"schedule.ramp_start": options.epochs * 0.3, "schedule.ramp_length": options.epochs * 0.6}
    if cell.weights == "trained":
        changes["model.name"] = str(trained_weights(options, cell.network, number))
    else:
        width = {"model.name": f"{cell.network}04", "model.settings": {"width": options.width}}
        changes |= width | (
            {"schedule.tau_start": TAU, "schedule.tau_epochs": TAU_EPOCHS} if cell.network == "dymn" else {}
        )
    if cell.teaching == "teacher":
        changes |= {"teacher.models": [str(teacher)], "teacher.label_weight": LAMBDA}
    result = train(settings(options, fold, number, out, changes))
    found = assess(load_model(result["checkpoint"]), options.esc10, kind="esc10", split="test", fold=fold)
    right = found.scores.probabilities.argmax(axis=1) == found.scores.targets.argmax(axis=1)
    answers = dict(zip(found.scores.keys, right.tolist(), strict=True))
    part = done.with_suffix(".part")
    part.write_text(json.dumps({"right": answers, "seconds": result["train_seconds"]}), encoding="utf-8")
    os.replace(part, done)
    print(f"run {number}, fold {fold}, {cell.title}: {100 * np.mean(right):.1f} %", flush=True)


def settings(options: argparse.Namespace, fold: int, number: int, out: Path, changes: dict[str, Any]) -> Any:
    """Return the recipe `esc10` for a fold with some changes."""
    from dymn.training.recipe import load_recipe

    basis = {
        "data.path": options.esc10,
        "data.fold": fold,
        "data.test": "",
        "data.cache": str(Path(options.out) / "cache"),
    }
    basis |= {"run.out": str(out), "run.seed": 100 * number + fold, "run.device": options.device}
    return load_recipe("esc10").replace(basis | changes)


def fine_tuned_teacher(options: argparse.Namespace, fold: int) -> Path:
    """Return the teacher's checkpoint for a fold, trained where it does not exist."""
    from dymn.training import train

    out = Path(options.out) / "teacher" / f"fold{fold}"
    result = train(settings(options, fold, 0, out, {"model.name": options.teacher}))
    return Path(result["checkpoint"])


def trained_weights(options: argparse.Namespace, network: str, number: int) -> Path:
    """Write the final weights of experiment A as a checkpoint, and return its path."""
    import torch

    from dymn.config import ModelCard
    from dymn.models import pretrained
    from dymn.models.mobilenet import MobileNet
    from dymn.weights.labels import audioset_labels
    from replicate import ARMS

    path = Path(options.out) / "weights" / f"{network}-seed{number}.safetensors"
    if not path.exists():
        plan = json.loads((Path(options.weights) / "plan.json").read_text(encoding="utf-8"))
        config = ARMS[network].variant(plan["mark"]["width"]).config()
        with np.load(Path(options.weights) / f"{network}-seed{number}.npz", allow_pickle=False) as file:
            state = {
                name.removeprefix("weights."): torch.from_numpy(file[name].astype(np.float32))
                for name in file.files
                if name.startswith("weights.")
            }
        model = MobileNet.skeleton(config).fill(state).eval()
        model.card = ModelCard(name=f"{network}-seed{number}", labels=tuple(audioset_labels()))
        path.parent.mkdir(parents=True, exist_ok=True)
        pretrained.save(model, path)
    return path


def read(folder: Path) -> tuple[dict[Cell, npt.NDArray[np.bool_]], float]:
    """Return which clips each cell has right, [runs, N], of the runs that are whole, and the hours of all training.

    Raises:
        SystemExit: if no run is whole.
    """
    rows: dict[Cell, list[list[bool]]] = {cell: [] for cell in CELLS}
    results = [path / "result.json" for path in (folder / "teacher").glob("fold*")]
    seconds = sum(json.loads(path.read_text(encoding="utf-8"))["train_seconds"] for path in results if path.exists())
    for place in sorted(folder.glob("run*")):
        files = {cell: [place / cell.name / f"fold{fold}.json" for fold in FOLDS] for cell in CELLS}
        if not all(path.exists() for paths in files.values() for path in paths):
            continue
        for cell, paths in files.items():
            found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            answers = {key: value for fold in found for key, value in fold["right"].items()}
            rows[cell].append([answers[key] for key in sorted(answers)])
            seconds += sum(fold["seconds"] for fold in found)
    if not rows[CELLS[0]]:
        raise SystemExit(f"{folder} holds no run of which all cells and folds are finished.")
    return {cell: np.array(values) for cell, values in rows.items()}, seconds / 3600


def effects(right: dict[Cell, npt.NDArray[np.bool_]]) -> list[tuple[str, Cell, Cell, Interval, list[float]]]:
    """Return for each pair of cells that differ in one factor: the difference of accuracy and McNemar's p by run."""
    found = []
    for factor in FACTORS:
        for low, high in pairs(factor):
            difference = (right[high].astype(float) - right[low]).mean(axis=0)
            tests = [mcnemar(a, b) for a, b in zip(right[low], right[high], strict=True)]
            found.append((factor, low, high, paired_bootstrap(difference), tests))
    return found


def text_of(right: dict[Cell, npt.NDArray[np.bool_]], hours: float, plan: dict[str, Any]) -> str:
    """Return the section of the page."""
    runs = len(right[CELLS[0]])
    each = "" if runs == 1 else ", as the mean over the runs and, in parentheses, that of each run"
    values = plan | {"runs": "once" if runs == 1 else f"{runs} times", "each": each}
    lines = [f"## {TITLE}", ""]
    if runs < PLANNED_RUNS:
        lines += [f"These are results of {runs} of the {PLANNED_RUNS} planned runs.", ""]
    lines += [wrapped(INTRODUCTION.format(**values)), "", "| | accuracy |", "| --- | --- |"]
    for cell, rows in right.items():
        found = [f"{100 * value:.2f}" for value in rows.mean(axis=1)]
        spread = f" ({', '.join(found)})" if runs > 1 else ""
        lines.append(f"| {cell.title} | {100 * rows.mean():.2f} %{spread} |")
    lines += ["", wrapped(COMPARISON.format(each="" if runs == 1 else " for each run")), ""]
    lines += ["| factor | for | difference | p | verdict |", "| --- | --- | --- | --- | --- |"]
    for factor, low, _, interval, tests in effects(right):
        rest = low.title.split(", ")
        place = ", ".join({"dynamic parts": rest[1:], "teacher": [rest[0], rest[2]], "pre-training": rest[:2]}[factor])
        difference = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in interval)).replace("-", "\u2212")
        verdict = "helps" if interval.low > 0 else "harms" if interval.high < 0 else "not decided"
        lines.append(f"| {factor} | {place} | {difference} | {', '.join(map(shown_p, tests))} | {verdict} |")
    lines += ["", f"Training took {hours:.1f} hours, including the teachers."]
    return "\n".join(lines) + "\n" + COMMANDS


def shown_p(value: float) -> str:
    """Return a p-value as the table shows it."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def wrapped(text: str) -> str:
    """Return a paragraph in lines of the page's length."""
    return textwrap.fill(" ".join(text.split()), LINE, break_long_words=False, break_on_hyphens=False)


def write_report(options: argparse.Namespace) -> None:
    """Put the section into the page, at its end or in the place of an earlier one."""
    folder, page = Path(options.out), Path(options.page)
    if not (folder / PLAN_FILE).exists():
        raise SystemExit(f"{folder} holds no {PLAN_FILE}, which `run` writes.")
    right, hours = read(folder)
    plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    section = f"{BEGIN}\n\n{text_of(right, hours, plan)}\n{END}"
    old = page.read_text(encoding="utf-8") if page.exists() else "# Replication\n"
    page.write_text(with_section(old, section), encoding="utf-8")


def section_of(page: str) -> str:
    """Return the section of a page with its marks, or nothing.

    Raises:
        SystemExit: if the page has one mark without the other.
    """
    begin = page.find(BEGIN)
    end = page.find(END, max(begin, 0))
    if (begin < 0) != (end < 0):
        raise SystemExit(f"The page has one of the marks {BEGIN} and {END}. Restore the other, or remove it.")
    return page[begin : end + len(END)] if begin >= 0 else ""


def anchor_of(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def summary_of(section: str) -> str:
    """Return in how many comparisons of a section each factor helps, in a sentence."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines()]
    found = []
    for factor in FACTORS:
        verdicts = [row[-1] for row in rows if row[0] == factor]
        harms = f" and harms in {verdicts.count('harms')}" if "harms" in verdicts else ""
        found.append(f"{HELPS[factor]} in {verdicts.count('helps')} of {len(verdicts)} comparisons{harms}")
    return f"{', '.join(found)}. In the others, there is no decision."


def with_section(page: str, section: str) -> str:
    """Return a page with a section in the place of its old one, or at its end; unchanged without a section."""
    if old := section_of(page):
        return page.replace(old, section, 1)
    return f"{page.rstrip()}\n\n{section}\n" if section else page


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(dest="command", required=True)
    work = commands.add_parser("run", help="Train and measure what is missing; a killed run is resumed.")
    work.add_argument("--esc10", required=True, help="The folder of ESC-10.")
    work.add_argument("--teacher", default="mn04_as")
    work.add_argument("--weights", required=True, help="The results of experiment A of replicate.py.")
    work.add_argument("--out", required=True)
    work.add_argument("--width", type=float, default=0.2)
    work.add_argument("--runs", type=int, default=PLANNED_RUNS)
    work.add_argument(
        "--folds", type=int, nargs="+", choices=FOLDS, default=FOLDS, help="Other processes may run the other folds."
    )
    work.add_argument("--epochs", type=int, default=EPOCHS)
    work.add_argument("--device", default="cpu")
    work.add_argument("--threads", type=int, default=1)
    report = commands.add_parser("report", help="Write the section of the page.")
    report.add_argument("out")
    report.add_argument("--page", default="docs/replication.md")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parser().parse_args(arguments)
    (run if options.command == "run" else write_report)(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
