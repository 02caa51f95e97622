"""Variants of the recipe `dymn02_open`, each trained with the same number of crops, compared on the validation clips.

    python benchmarks/variants.py CORPORA --teacher mn04_as --cache CACHE --output runs/variants
    python benchmarks/variants.py CORPORA --output runs/variants --only "crops of 4 to 10 s" "focal loss"

Each variant is a short run: four epochs of 3,712 crops, of 2 to 4 s if the variant does not say otherwise, from the
narrowed weights of `mn04_as`. The averaged weights after the last epoch are compared with `mn04_as` on the validation
clips, repeated to ten seconds, with the metrics of `distilled.py`. Finished runs are not repeated, and a stopped one
continues. "Another seed" shows which differences are chance.

All variants with the teacher `mn04_as` draw clips by the same weights: those in the `draws.npy` that `--draws` names,
such as that of the full run, or else those that the reference computes, which is then trained first.

Two losses that `dymn train` does not offer are tried here: a focal one, which multiplies the loss of each class by the
difference of the probabilities of student and teacher (after Lin et al., "Focal Loss for Dense Object Detection",
2017), and one in which classes of which the teacher is certain count up to five times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from dymn.system.files import atomic_write
from dymn.training import load_recipe, train
from dymn.training.losses import Targets
from dymn.training.prepare import LAST_FILE

EPOCHS, CROPS = 4, 3712
REFERENCE, DRAWS = "reference", "draws.npy"
BASE: dict[str, Any] = {
    "data.draws": CROPS,
    "data.seconds": 4.0,
    "augment.shortest": 2.0,
    "optim.ema": 0.98,
    "schedule.epochs": EPOCHS,
    "schedule.ramp_start": 1.0,
    "schedule.ramp_length": 3.0,
    "teacher.calibrate": False,
    "run.seed": 1,
}
METRICS = {  # title, name and form
    "distance": ("excess", "{:.5f}"),
    "confidence": ("ratio", "{:.3f}"),
    "same best class": ("first", "{:.1f} %"),
    "mAP": ("mAP", "{:.3f}"),
}

Loss = Callable[[Tensor, Targets, str], Tensor]


def focal_loss(logits: Tensor, targets: Targets, kind: str) -> Tensor:
    """Return the cross-entropy, each class times the difference of the probabilities."""
    difference = (logits.sigmoid() - targets.teacher).abs().detach()
    return (difference * cross_entropies(logits, targets)).mean()


def certain_loss(logits: Tensor, targets: Targets, kind: str) -> Tensor:
    """Return the cross-entropy, each class times 1 to 5, with the teacher's probability."""
    return ((1 + 4 * targets.teacher) * cross_entropies(logits, targets)).mean()


def cross_entropies(logits: Tensor, targets: Targets) -> Tensor:
    """Return the binary cross-entropy [B, C]."""
    return targets.teacher_share[:, None] * functional.softplus(logits) - targets.teacher * logits


class Variant(NamedTuple):
    """What is changed: settings, the loss, or the noise of inherited kernels (`dymn.models.inflate`)."""

    settings: dict[str, Any] = {}
    loss: Loss | None = None
    noise: float | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Change the loss and the noise for a while."""
        from dymn.models import inflate
        from dymn.training import losses

        with (
            patch.object(losses, "teacher_loss", self.loss or losses.teacher_loss),
            patch.object(inflate, "DISTURBANCE", inflate.DISTURBANCE if self.noise is None else self.noise),
        ):
            yield


VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant(),
    "another seed": Variant({"run.seed": 2}),
    "focal loss": Variant(loss=focal_loss),
    "certain classes count more": Variant(loss=certain_loss),
    "teacher sharpened, temperature 0.7": Variant({"teacher.temperature": 0.7}),
    "crops of 4 to 10 s": Variant({"data.seconds": 10.0, "augment.shortest": 4.0}),
    "crops of 3 to 6 s": Variant({"data.seconds": 6.0, "augment.shortest": 3.0}),
    "learning rate 5e-4": Variant({"optim.lr": 5e-4}),
    "learning rate 2e-3": Variant({"optim.lr": 2e-3}),
    "learning rate not lowered": Variant({"schedule.ramp_start": float(EPOCHS)}),
    "average of weights over 10 steps": Variant({"optim.ema": 0.9}),
    "average of weights over 200 steps": Variant({"optim.ema": 0.995}),
    "noise of kernels 0.1": Variant(noise=0.1),
    "noise of kernels 1.0": Variant(noise=1.0),
    "temperature of kernels 30 to 1 over two epochs": Variant({"schedule.tau_start": 30.0, "schedule.tau_epochs": 2}),
    "no mixup": Variant({"augment.wave_mixup": 0.0}),
    "mixup of 60 %": Variant({"augment.wave_mixup": 0.6}),
    "no superposed clips": Variant({"augment.blend": 0.0}),
    "clips drawn uniformly": Variant({"data.sampling": "plain"}),
    "teacher dymn04_open": Variant({"teacher.models": ["dymn04_open"]}),
}


def run(options: argparse.Namespace, name: str) -> None:
    """Train a variant, unless that is done."""
    folder = options.output / name.replace(" ", "_")
    if is_finished(folder):
        return
    variant = VARIANTS[name]
    changes = {"data.path": str(options.corpora), "data.cache": options.cache, "run.out": str(folder)}
    changes |= {"model.inherit": options.teacher, "teacher.models": [options.teacher]}
    config = load_recipe("dymn02_open").replace(changes | BASE | variant.settings)
    if config.teacher.models == (options.teacher,) and config.data.sampling == "teacher":
        if options.draws:
            copy(options.draws, folder / DRAWS)
        elif name != REFERENCE:
            run(options, REFERENCE)
            copy(options.output / REFERENCE / DRAWS, folder / DRAWS)
    with variant.applied():
        train(config)


def copy(source: Path, target: Path) -> None:
    """Copy a file at once, unless it is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            file.write(source.read_bytes())


def is_finished(folder: Path) -> bool:
    """Whether a run has logged its last epoch."""
    path = folder / "log.jsonl"
    return path.exists() and len(path.read_text(encoding="utf-8").splitlines()) >= EPOCHS


def measured(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the metrics of the finished variants on the validation clips, by name."""
    from distilled import compare, listen
    from dymn import load_model
    from dymn.data import open_source

    folders = {name: options.output / name.replace(" ", "_") for name in VARIANTS}
    names = [name for name, folder in folders.items() if is_finished(folder)]
    models = [load_model(folders[name] / LAST_FILE).eval() for name in names]
    source = open_source("shards", options.corpora, "val", cache=options.cache)
    teacher = load_model(options.teacher).eval()
    taught, *said = listen([teacher, *models], source, "repeat", 10.0, torch.device("cpu"))
    return {name: compare(each, taught, None) for name, each in zip(names, said, strict=True)}


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the metrics as a table."""
    lines = [f"| {EPOCHS * CROPS:,} crops | {' | '.join(METRICS)} |", "| --- " * (len(METRICS) + 1) + "|"]
    for name, values in found.items():
        cells = [form.format(values[key] * (100 if "%" in form else 1)) for key, form in METRICS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--teacher", default="mn04_as", help="Name or file of mn04_as.")
    parser.add_argument("--cache", default="", help="Folder of decoded clips.")
    parser.add_argument("--draws", type=Path, metavar="FILE", help="The draws.npy of a run with the teacher mn04_as.")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", default=list(VARIANTS))
    options = parser.parse_args()
    for name in options.only:
        run(options, name)
    print(table(measured(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
