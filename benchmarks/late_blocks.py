"""Further training of the last blocks of a student, on stored outputs of its earlier blocks.

    python benchmarks/late_blocks.py store CORPORA --model runs/a/best.safetensors --teacher mn04_as --output maps
    python benchmarks/late_blocks.py train maps --model runs/a/best.safetensors --teacher mn04_as --output b.safetensors

`dymn train` with `optim.freeze`, `optim.freeze_norms` and `teacher.head` does the same, but it computes everything
again for each crop: the augmentation, the teacher, and the blocks that do not change. Here, `store` computes them once,
in compiled code, and `train` reads them. Both can run at the same time on two cores; `train` prefers batches that it
has not used, and waits for the first ones. This trains about twice as many crops in an hour as `dymn train` on the same
two cores.

`store` draws and augments clips as the recipe `dymn04_open` does, in batches of 32, and stores for each the student's
map after block `--freeze` and the teacher's maps after blocks 12 and 15, embedding and logits, in half precision (90 kB
for a crop of seven seconds). `train` then minimises the binary cross-entropy plus `--weight` times the distances of the
embeddings and of both maps, each relative to the teacher's variance, with the teacher's head and frozen statistics of
batch norm. The learning rate falls linearly, and the written weights are averaged over steps. The order of the batches
depends on when they were stored, so two trainings during storing differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn import load_model
from dymn.models import pretrained
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.runtime.accelerate import NativeNetwork
from dymn.system.files import atomic_write
from dymn.training import load_recipe
from dymn.training.inputs import open_inputs, training_loader
from dymn.training.parts import freeze
from dymn.training.resolve import resolve
from dymn.training.step import Share, Step, block_distance

BATCH = 32
SHOWN = (12, 15)  # blocks of the teacher, counted from 1
FIRST = 30  # batches that training waits for
REPORT, SAVE = 100, 500  # steps
SUFFIX = ".safetensors"
FLOOR = 0.01  # of the learning rate


class Stored(NamedTuple):
    """A batch: a map of the student, maps, embedding and logits of the teacher."""

    own: Tensor  # [B, C, F', T']
    maps: list[Tensor]
    embedding: Tensor  # [B, D]
    logits: Tensor  # [B, classes]

    def save(self, path: Path) -> None:
        """Write the batch in half precision."""
        tensors = {"own": self.own, "embedding": self.embedding, "logits": self.logits}
        tensors |= {f"map{i}": each for i, each in zip(SHOWN, self.maps, strict=True)}
        with atomic_write(path) as file:
            file.write(safetensors.torch.save({name: value.half() for name, value in tensors.items()}))

    @classmethod
    def load(cls, path: Path) -> Stored:
        """Read a batch in single precision."""
        found = {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
        return cls(found["own"], [found[f"map{i}"] for i in SHOWN], found["embedding"], found["logits"])


def store(options: argparse.Namespace) -> None:
    """Store batches of augmented crops, until there are as many as wanted."""
    changes = {
        "data.path": str(options.corpora),
        "data.val": "",
        "data.cache": options.cache,
        "data.draws": BATCH * options.batches,
        "optim.batch_size": BATCH,
        "augment.padding": 0.35,
        "run.seed": options.seed,
    }
    config, data = resolve(load_recipe("dymn04_open").replace(changes))
    teacher, student = (load_model(name).eval() for name in (options.teacher, options.model))
    front_end = LogMel(teacher.card.front_end)
    inputs = open_inputs(config, data, teacher.card.front_end.sample_rate)
    draws = np.load(options.draws, allow_pickle=False)
    loader = training_loader(inputs, config, 0, 1, False, None, draws)
    step = Step(config, inputs.task.loss, front_end, None, 1.0, Share())
    forms = [NativeNetwork(network) for network in (teacher, student)]
    options.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for i, batch in enumerate(loader.epoch(0), 1):
        with torch.no_grad():
            log_mel, _ = step.inputs(batch, np.random.default_rng((options.seed, i)))
        (output, maps), (_, own) = (form.with_blocks(log_mel) for form in forms)
        stored = Stored(own[options.freeze - 1], [maps[k - 1] for k in SHOWN], output.embedding, output.logits)
        stored.save(options.output / f"{options.seed:04d}_{i:06d}{SUFFIX}")
        if i % REPORT == 0:
            print(f"{i} batches, {i * BATCH / (time.monotonic() - began):.1f} crops a second", flush=True)


class Batches:
    """The stored batches of a folder, the least used first, otherwise in random order."""

    def __init__(self, folder: Path, latest: int, seed: int) -> None:
        self.folder, self.latest, self.random = folder, latest, random.Random(seed)
        self.uses: defaultdict[str, int] = defaultdict(int)

    def draw(self) -> Stored:
        """Return a batch of the latest ones; wait while there are too few."""
        while len(names := sorted(path.name for path in self.folder.glob(f"*{SUFFIX}"))) < FIRST:
            time.sleep(1.0)
        names = names[-self.latest :]
        fewest = min(self.uses[name] for name in names)
        name = self.random.choice([name for name in names if self.uses[name] == fewest])
        self.uses[name] += 1
        return Stored.load(self.folder / name)


def losses(student: MobileNet, batch: Stored, n_frozen: int, scale: float) -> dict[str, Tensor]:
    """Return the terms of the loss: excess of the cross-entropy, distances of embeddings and maps."""
    x, maps = batch.own, []
    for i, block in enumerate(list(student.blocks)[n_frozen:], n_frozen + 1):
        x = block(x)
        if i in SHOWN:
            maps.append(x)
    features = student.last(x)
    embedding = features.mean(dim=(2, 3))
    taught = batch.logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(batch.logits, taught)
    distances = [block_distance(own, other) for own, other in zip(maps, batch.maps, strict=True)]
    return {
        "excess": functional.binary_cross_entropy_with_logits(student.head(features, embedding), taught) - entropy,
        "embedding": functional.mse_loss(embedding, batch.embedding) / scale,
        "maps": torch.stack(distances).mean(),
    }


def train(options: argparse.Namespace) -> None:
    """Train the last blocks, and write the averaged weights every few hundred steps."""
    student, teacher = (load_model(name) for name in (options.model, options.teacher))
    student.head.load_state_dict(teacher.head.state_dict())
    freeze(student.train(), options.freeze, head=True, norms=True)
    average = torch.optim.swa_utils.AveragedModel(
        student,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema),  # type: ignore[no-untyped-call]
    )
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
    batches = Batches(options.maps, options.latest, options.seed)
    sums: defaultdict[str, float] = defaultdict(float)
    scale, began = 0.0, time.monotonic()
    for step in range(1, options.steps + 1):
        batch = batches.draw()
        scale = scale or float(batch.embedding.var(dim=0).mean())
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, step / REPORT) * max(FLOOR, 1 - step / options.steps)
        terms = losses(student, batch, options.freeze, scale)
        optimizer.zero_grad(set_to_none=True)
        (terms["excess"] + options.weight * (terms["embedding"] + terms["maps"])).backward()
        optimizer.step()
        average.update_parameters(student)
        for name, term in terms.items():
            sums[name] += float(term.detach()) / REPORT
        if step % REPORT == 0:
            rate = step * BATCH / (time.monotonic() - began)
            means = ", ".join(f"{name} {value:.5f}" for name, value in sums.items())
            print(f"{step} steps, {rate:.1f} crops a second, {len(batches.uses)} batches: {means}", flush=True)
            sums.clear()
        if step % SAVE == 0 or step == options.steps:
            save(average.module, step, options)


def save(network: nn.Module, step: int, options: argparse.Namespace) -> None:
    """Write the averaged network."""
    assert isinstance(network, MobileNet)
    made = {"start": str(options.model), "teacher": str(options.teacher), "further_crops": step * BATCH}
    network.card = dataclasses.replace(network.card, metrics={}, provenance=made)
    pretrained.save(network, options.output)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    storing, training = commands.add_parser("store"), commands.add_parser("train")
    for command in (storing, training):
        command.add_argument("--model", required=True, help="the student")
        command.add_argument("--teacher", default="mn04_as")
        command.add_argument("--output", required=True, type=Path)
        command.add_argument("--freeze", type=int, default=6, metavar="BLOCKS")
        command.add_argument("--seed", type=int, default=0)
    storing.add_argument("corpora", type=Path)
    storing.add_argument("--draws", required=True, type=Path, help="the draws.npy of a run with the same corpora")
    storing.add_argument("--batches", type=int, default=4000)
    storing.add_argument("--cache", default="", help="folder for decoded clips")
    storing.set_defaults(run=store)
    training.add_argument("maps", type=Path)
    training.add_argument("--steps", type=int, default=4000)
    training.add_argument("--lr", type=float, default=1e-3)
    training.add_argument("--weight", type=float, default=0.5)
    training.add_argument("--ema", type=float, default=0.995)
    training.add_argument("--latest", type=int, default=1600, metavar="BATCHES", help="older ones are not used")
    training.set_defaults(run=train)
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    options.run(options)


if __name__ == "__main__":
    main()
