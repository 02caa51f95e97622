"""Agreement of a distilled network with its teacher, on the validation clips of the corpora that it was trained on.

    python benchmarks/distilled.py CORPORA --model runs/dymn04_open/best.safetensors dymn04_open
    python benchmarks/distilled.py CORPORA --model runs/x/last.safetensors --calibrate dymn04_open.safetensors

The metrics, for each way to fill short clips:

- `excess`: the binary cross-entropy minus the teacher's own entropy;
- `ratio`: the mean of p_student / p_teacher where the teacher's probability is above 0.5, also split by the number of
  training clips of a corpus in which the teacher detects the class (if its logits are in the index's folder);
- `first`: how often both have the same best label;
- `mAP`: for the classes to which the teacher gives more than 0.3;
- `found`: the share of those classes to which the student also gives more than 0.3.

`--calibrate FILE` fits slope and offset of the logits to the teacher on these clips, for both fillings together, and
writes the network with them, in half precision and with thresholds for --threshold auto and precise. `--offset X` adds
X to the logits instead. The thresholds are relative to the teacher: a class is positive if the teacher gives it more
than 0.3. Training clips are used as well, because few validation clips contain a given class. A class that the teacher
detects in fewer than ten clips gets the thresholds of all classes together. The card names the classes that the teacher
detects in fewer than five training clips. `--plot FILE` draws a reliability diagram against the teacher, before and
after calibration. `--weakest N` names the classes with the lowest ratios.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dymn import load_model
from dymn.data import Loader, PlainSampler, Source, open_source
from dymn.evaluation.calibration import Affine, reliability
from dymn.evaluation.metrics import mean_average_precision
from dymn.fitting.thresholds import BackgroundHours, FalseAlarms, class_thresholds
from dymn.models import pretrained
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.plots.reliability import plot_reliability
from dymn.runtime.accelerate import accelerate
from dymn.system.devices import resolve_device
from dymn.training.calibration import fit_affine

Array = npt.NDArray[np.float32]
HEARD, SURE = 0.3, 0.5
GROUPS = ((0, 1), (1, 5), (5, 15), (15, 50), (50, 1_000_000))
FILLS = ("repeat", "pad")
LEAST = 10  # clips of a class that gets thresholds of its own
THIN = 5  # a class in fewer training clips is named in the card
FEWEST = 3  # clips of a class whose ratio says something


@torch.inference_mode()
def listen(models: list[MobileNet], source: Source, fill: str, seconds: float, device: torch.device) -> list[Array]:
    """Return the probabilities [N, C] of all clips, for each model."""
    loader = Loader(source, PlainSampler(len(source), shuffle=False), 16, seconds=seconds, crop="start", fill=fill)
    front_end = LogMel(models[0].card.front_end).to(device)
    networks = [accelerate(model) if device.type == "cpu" else model for model in models]
    said: list[list[Array]] = [[] for _ in models]
    for batch in loader.epoch(0):
        log_mel = front_end(batch.waveform.to(device))
        for rows, network in zip(said, networks, strict=True):
            rows.append(network(log_mel).logits.float().sigmoid().cpu().numpy())
    return [np.concatenate(rows) for rows in said]


def clips_by_class(path: Path) -> npt.NDArray[np.int64] | None:
    """Return in how many training clips of all corpora in `path` the teacher hears each class [C].

    None where its logits are not there.
    """
    total: npt.NDArray[np.int64] | None = None
    for table in sorted([*path.glob("teacher_logits_*.npy"), *path.glob("*/teacher_logits_*.npy")]):
        with (table.parent / "index.csv").open(newline="", encoding="utf-8") as file:
            training = np.array([row["split"] == "train" for row in csv.DictReader(file)])
        heard = np.load(table)[training].astype(np.float32) > np.log(HEARD / (1 - HEARD))
        total = heard.sum(axis=0) + (0 if total is None else total)
    return total


def excess(student: Array, teacher: Array) -> float:
    """Return the mean binary cross-entropy of a student above the teacher's own entropy."""
    p, q = (np.clip(values.astype(np.float64), 1e-12, 1 - 1e-12) for values in (student, teacher))
    return float((q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean())


def compare(student: Array, teacher: Array, counts: npt.NDArray[np.int64] | None) -> dict[str, Any]:
    """Return the figures of a student beside its teacher."""
    sure, heard = teacher > SURE, teacher > HEARD
    ratio = student / np.maximum(teacher, 1e-12)
    found: dict[str, Any] = {
        "excess": excess(student, teacher),
        "ratio": float(ratio[sure].mean()),
        "first": float((student.argmax(axis=1) == teacher.argmax(axis=1)).mean()),
        "mAP": float(mean_average_precision(student, heard.astype(np.float32))),
        "found": float((student > HEARD)[heard].mean()),
    }
    for low, high in GROUPS if counts is not None else ():
        group = sure & ((counts >= low) & (counts < high))[None]
        name = f"ratio {low}" + ("" if high == low + 1 else "+" if high > 1000 else f"-{high - 1}")
        found[name] = float(ratio[group].mean()) if group.any() else None
    return found


def weakest(student: Array, teacher: Array, labels: Sequence[str], n: int) -> list[str]:
    """Return the n classes with the lowest ratios, of those of which the teacher is sure in at least three clips."""
    sure = teacher > SURE
    counts = sure.sum(axis=0)
    ratios = np.where(sure, student / np.maximum(teacher, 1e-12), 0).sum(axis=0) / np.maximum(counts, 1)
    order = [int(i) for i in np.argsort(ratios) if counts[i] >= FEWEST][:n]
    return [f"{labels[i]} {ratios[i]:.2f} ({counts[i]} clips)" for i in order]


def thresholds(student: Array, teacher: Array, seconds: float) -> dict[str, list[float]]:
    """Return the thresholds of all classes for --threshold auto and precise, relative to the teacher."""
    heard, hours = teacher > HEARD, len(teacher) * seconds / 3600
    common = class_thresholds(
        student.ravel(), heard.ravel(), FalseAlarms([BackgroundHours(~heard.ravel(), hours * heard.shape[1])])
    )[:2]
    found = [
        class_thresholds(scores, there, FalseAlarms([BackgroundHours(~there, hours)]))[:2]
        if there.sum() >= LEAST
        else common
        for scores, there in zip(student.T, heard.T, strict=True)
    ]
    return {name: [round(pair[i], 4) for pair in found] for i, name in enumerate(("auto", "precise"))}


def calibrated(options: argparse.Namespace, model: MobileNet, teacher: MobileNet, said: Array, taught: Array) -> None:
    """Write the model with its logits fitted to the teacher's on validation clips, and with thresholds."""
    fitted = fit_affine(said, taught) if options.offset is None else Affine(1.0, options.offset)
    model.head.scale(*fitted)
    model.card.provenance["calibration"] = fitted._asdict()
    device = next(model.parameters()).device
    parts = [(options.split, fill) for fill in FILLS] + [("train", FILLS[0])]
    heard = []
    for split, fill in parts:
        source = open_source("shards", options.corpora, split, cache=options.cache)
        heard.append(listen([teacher, model], source, fill, options.seconds, device))
    taught, said = (np.concatenate(rows) for rows in zip(*heard, strict=True))
    model.card.provenance["thresholds"] = thresholds(said, taught, options.seconds)
    if (counts := clips_by_class(options.corpora)) is not None:
        thin = [label for label, count in zip(model.card.labels, counts, strict=True) if count < THIN]
        model.card.provenance["thin_classes"] = thin
    pretrained.save(model, options.calibrate, dtype=torch.float16)
    own = int(((taught > HEARD).sum(axis=0) >= LEAST).sum())
    print(
        f"{options.calibrate}: slope {fitted.slope:.4f}, offset {fitted.offset:+.4f}, {own} classes with thresholds\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--model", nargs="+", default=["dymn04_open"])
    parser.add_argument("--teacher", default="mn04_as")
    parser.add_argument("--split", default="val")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cache", help="Folder of decoded clips.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--calibrate", metavar="FILE", type=Path, help="Write the (first) model, calibrated, in half precision."
    )
    parser.add_argument("--offset", metavar="X", type=float, help="With --calibrate: of the logits, in place of a fit.")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="With --calibrate: draw the reliability.")
    parser.add_argument(
        "--weakest", metavar="N", type=int, default=0, help="Name the N classes with the lowest ratios."
    )
    parser.add_argument("--json", type=Path, help="Write the figures to this file too.")
    options = parser.parse_args()
    if options.calibrate is None and (options.offset is not None or options.plot is not None):
        parser.error("--offset and --plot need --calibrate FILE")
    device = resolve_device(options.device)
    models = [load_model(name, device=device).eval() for name in options.model]
    teacher = load_model(options.teacher, device=device).eval()
    source = open_source("shards", options.corpora, options.split, cache=options.cache)
    counts = clips_by_class(options.corpora)
    heard = {fill: listen([teacher, *models], source, fill, options.seconds, device) for fill in FILLS}
    names = list(options.model)
    if options.calibrate is not None:
        taught, said = (np.concatenate([heard[fill][i] for fill in FILLS]) for i in range(2))
        calibrated(options, models[0], teacher, said, taught)
        written = load_model(options.calibrate, device=device).eval()
        names.append(str(options.calibrate))
        for fill in FILLS:
            heard[fill] += listen([written], source, fill, options.seconds, device)
        if options.plot is not None:
            after = np.concatenate([heard[fill][-1] for fill in FILLS])
            plot_reliability(
                reliability(said, taught), reliability(after, taught), options.plot, "the teacher's probability"
            )
    rows = []
    for i, name in enumerate(names, start=1):
        for fill in FILLS:
            rows.append({"model": name, "fill": fill} | compare(heard[fill][i], heard[fill][0], counts))
    print(f"{len(source)} clips, {options.seconds:g} s each\n")
    print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    for row in rows:
        cells = [
            "" if v is None else f"{v:.5f}" if k == "excess" else f"{v:.3f}" if isinstance(v, float) else str(v)
            for k, v in row.items()
        ]
        print("| " + " | ".join(cells) + " |")
    for i, name in enumerate(names, start=1) if options.weakest else ():
        found = weakest(heard[FILLS[0]][i], heard[FILLS[0]][0], teacher.card.labels, options.weakest)
        print(f"\nWeakest classes of {name}: {', '.join(found)}.")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
