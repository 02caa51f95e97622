"""Further training of the last blocks of a student, on stored outputs of its earlier blocks.

    python benchmarks/late_blocks.py store CORPORA --draws runs/a/draws.npy --model runs/a/best.safetensors \
        --output maps
    python benchmarks/late_blocks.py train maps --model runs/a/best.safetensors --output b.safetensors

This is similar to `dymn train` with `optim.freeze`, `optim.freeze_norms` and `teacher.head`, but each augmented crop is
computed once, in compiled code, and can be used several times. Both commands can run at the same time on two cores:
`train` waits for the first batches, and prefers those that it has used least. Each prints its crops per second.

`store` draws and augments clips as the recipe `dymn04_open` does, but in batches of 32, and 35 % of the crops end
early. `--set augment.cross=0.5`, for example, changes a setting of the augmentation. `--draws` is a file that a run
with `data.sampling=teacher` and the same corpora has written. For each batch, the student's map after block `--freeze`
and the teacher's maps after blocks 12 and 15, its embedding and its logits are stored in half precision: 90 kB for a
crop of seven seconds, 12 GB for 4,000 batches.

`train` minimises the binary cross-entropy plus `--weight` times the distances of the embeddings and of both maps, each
relative to the teacher's variance. The head is a copy of the teacher's and, like the statistics of batch norm, not
trained. The learning rate rises for 100 steps, then falls linearly to 1 %. The weights are averaged over steps and
written every 500. The order of the batches depends on when they were stored, so two runs of `train` beside a running
`store` differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from dymn import load_model
from dymn.data import Loader
from dymn.errors import ConfigError, DymnError
from dymn.evaluation.teachers import same_blocks
from dymn.models import pretrained
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.runtime.accelerate import NativeNetwork
from dymn.system.files import atomic_write
from dymn.training import load_recipe
from dymn.training.inputs import open_inputs, training_loader
from dymn.training.parts import freeze, parts
from dymn.training.recipe import parse_assignment
from dymn.training.resolve import resolve
from dymn.training.step import Share, Step, block_distance

BATCH = 32
SHOWN = (12, 15)  # blocks of the teacher, counted from 1
FIRST = 30  # batches that training waits for
PATIENCE = 600.0  # seconds without a new batch
REPORT, SAVE, WARM_UP = 100, 500, 100  # steps
SUFFIX = ".safetensors"
FLOOR = 0.01  # of the learning rate


class Stored(NamedTuple):
    """A batch: a map of the student, maps, embedding and logits of the teacher."""

    own: Tensor  # [B, C, F', T']
    maps: list[Tensor]
    embedding: Tensor  # [B, D]
    logits: Tensor  # [B, classes]

    def save(self, path: Path, origin: Mapping[str, str]) -> None:
        """Write the batch in half precision, with the `origin_of` it."""
        tensors = {"own": self.own, "embedding": self.embedding, "logits": self.logits}
        tensors |= {f"map{i}": each for i, each in zip(SHOWN, self.maps, strict=True)}
        halves = {name: value.half() for name, value in tensors.items()}
        with atomic_write(path) as file:
            file.write(safetensors.torch.save(halves, dict(origin)))

    @classmethod
    def load(cls, path: Path, origin: Mapping[str, str]) -> Stored:
        """Read a batch in single precision.

        Raises:
            ConfigError: if it was stored with other networks, or with another number of frozen blocks.
        """
        with safetensors.safe_open(path, "pt") as file:
            if file.metadata() != origin:
                raise ConfigError(f"{path} was stored with another --model, --teacher or --freeze.")
            found = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        return cls(found["own"], [found[f"map{i}"] for i in SHOWN], found["embedding"], found["logits"])


def origin_of(student: MobileNet, teacher: MobileNet, n_frozen: int) -> dict[str, str]:
    """Return what the stored numbers depend on: digests of the frozen part of the student and of the teacher."""

    def digest(tensors: Mapping[str, Tensor]) -> str:
        found = hashlib.sha256()
        for name, value in sorted(tensors.items()):
            found.update(name.encode() + value.cpu().numpy().tobytes())
        return found.hexdigest()

    frozen = torch.nn.ModuleList(parts(student)[: n_frozen + 1]).state_dict()
    return {"freeze": str(n_frozen), "student": digest(frozen), "teacher": digest(teacher.state_dict())}


def store(options: argparse.Namespace) -> None:
    """Store batches of augmented crops."""
    teacher, student = networks(options)
    front_end = LogMel(teacher.card.front_end)
    loader, step = crops(options, front_end)
    taught, own = (NativeNetwork(network).compiled for network in (teacher, student))
    origin = origin_of(student, teacher, options.freeze)
    options.output.mkdir(parents=True, exist_ok=True)
    n, began = 0, time.monotonic()
    for i, batch in enumerate(loader.epoch(0), 1):
        with torch.no_grad():
            log_mel = step.inputs(batch, np.random.default_rng((options.seed, i)))[0].numpy()
        embedding, maps = taught.embed_blocks(log_mel, torch.get_num_threads(), SHOWN)
        _, mine = own.embed_blocks(log_mel, torch.get_num_threads(), (options.freeze,))
        arrays = mine[options.freeze], *maps.values(), embedding, taught.logits(embedding)
        first, *shown, vector, logits = map(torch.from_numpy, arrays)
        Stored(first, shown, vector, logits).save(options.output / f"{options.seed:09d}_{i:09d}{SUFFIX}", origin)
        n += len(log_mel)
        if i % REPORT == 0:
            print(f"{i} batches, {n / (time.monotonic() - began):.1f} crops a second", flush=True)


def networks(options: argparse.Namespace) -> tuple[MobileNet, MobileNet]:
    """Return the teacher and the student, in evaluation mode."""
    teacher, student = (load_model(name).eval() for name in (options.teacher, options.model))
    if not same_blocks(teacher, student) or len(student.blocks) != SHOWN[-1]:
        raise ConfigError("The blocks of --model and --teacher must have the same channels and strides.")
    return teacher, student


def crops(options: argparse.Namespace, front_end: LogMel) -> tuple[Loader, Step]:
    """Return what draws clips and what augments them."""
    changes: dict[str, Any] = {
        "data.path": str(options.corpora),
        "data.val": "",
        "data.cache": options.cache,
        "data.draws": BATCH * options.batches,
        "optim.batch_size": BATCH,
        "augment.padding": 0.35,
        "run.seed": options.seed,
    }
    for key, value in map(parse_assignment, options.changes):
        if not key.startswith("augment."):
            raise ConfigError(f"--set changes {key}; only settings of the augmentation can be changed (augment.…).")
        changes[key] = value
    config, data = resolve(load_recipe("dymn04_open").replace(changes))
    inputs = open_inputs(config, data, front_end.config.sample_rate)
    draws = np.load(options.draws, allow_pickle=False)
    if len(draws) != len(inputs.train):
        raise ConfigError(
            f"{options.draws} is for {len(draws)} clips, but {options.corpora} has {len(inputs.train)}. Use the "
            "draws.npy of a run with the same corpora."
        )
    loader = training_loader(inputs, config, 0, 1, False, None, draws)
    return loader, Step(config, inputs.task.loss, front_end, None, 1.0, Share())


class Batches:
    """The stored batches of a folder, the least used first, otherwise in random order."""

    def __init__(self, folder: Path, origin: Mapping[str, str], seed: int) -> None:
        self.folder, self.origin, self.random = folder, origin, random.Random(seed)
        self.uses: Counter[str] = Counter()

    def draw(self) -> Stored:
        """Return one of the least used batches."""
        names = [path.name for path in self._paths()]
        fewest = min(self.uses[name] for name in names)
        name = self.random.choice([name for name in names if self.uses[name] == fewest])
        self.uses[name] += 1
        return Stored.load(self.folder / name, self.origin)

    def spread(self) -> float:
        """Wait for the first batches, and return the variance of the teacher's embedding in them."""
        found, since = self._paths(), time.monotonic()
        while len(found) < FIRST:
            if time.monotonic() - since > PATIENCE:
                raise ConfigError(f"{self.folder} has {len(found)} batches; training begins with {FIRST}.")
            time.sleep(min(1.0, PATIENCE))
            known, found = len(found), self._paths()
            if len(found) > known:
                since = time.monotonic()
        embeddings = [Stored.load(path, self.origin).embedding for path in found[:FIRST]]
        return float(torch.cat(embeddings).var(dim=0).mean())

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}"))


def losses(student: MobileNet, batch: Stored, n_frozen: int, spread: float) -> dict[str, Tensor]:
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
        "embedding": functional.mse_loss(embedding, batch.embedding) / spread,
        "maps": torch.stack(distances).mean(),
    }


def train(options: argparse.Namespace) -> None:
    """Train the last blocks, and write the averaged weights every few hundred steps."""
    teacher, student = networks(options)
    student.head.load_state_dict(teacher.head.state_dict())
    freeze(student.train(), options.freeze, head=True, norms=True)
    average = torch.optim.swa_utils.AveragedModel(
        student,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema),  # type: ignore[no-untyped-call]
    )
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
    batches = Batches(options.maps, origin_of(student, teacher, options.freeze), options.seed)
    spread = batches.spread()
    sums: defaultdict[str, float] = defaultdict(float)
    n, began = 0, time.monotonic()
    for step in range(1, options.steps + 1):
        batch = batches.draw()
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, step / WARM_UP) * max(FLOOR, 1 - step / options.steps)
        terms = losses(student, batch, options.freeze, spread)
        optimizer.zero_grad(set_to_none=True)
        (terms["excess"] + options.weight * (terms["embedding"] + terms["maps"])).backward()
        optimizer.step()
        average.update_parameters(student)
        n += len(batch.own)
        for name, term in terms.items():
            sums[name] += float(term.detach()) / REPORT
        if step % REPORT == 0:
            means = ", ".join(f"{name} {value:.5f}" for name, value in sums.items())
            rate = n / (time.monotonic() - began)
            print(f"{step} steps, {len(batches.uses)} batches, {rate:.1f} crops a second: {means}", flush=True)
            sums.clear()
        if step % SAVE == 0 or step == options.steps:
            made = {"steps": step, "crops": n, "batches": len(batches.uses), "learning_rate": options.lr}
            save(cast(MobileNet, average.module), made, options)


def save(network: MobileNet, made: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the averaged network."""
    origin = {"start": str(options.model), "teacher": str(options.teacher), "freeze": options.freeze}
    network.card = dataclasses.replace(network.card, metrics={}, provenance=origin | dict(made))
    pretrained.save(network, options.output)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    storing, training = commands.add_parser("store"), commands.add_parser("train")
    for command in (storing, training):
        command.add_argument("--model", required=True, help="the student")
        command.add_argument("--teacher", default="mn04_as")
        command.add_argument("--output", required=True, type=Path)
        command.add_argument("--freeze", type=int, default=6, choices=range(1, SHOWN[0]), metavar="BLOCKS")
        command.add_argument("--seed", type=int, default=0)
    storing.add_argument("corpora", type=Path)
    storing.add_argument("--draws", required=True, type=Path, help="how often each clip is drawn")
    storing.add_argument("--batches", type=int, default=4000)
    storing.add_argument("--cache", default="", help="folder for decoded clips")
    storing.add_argument(
        "--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="as in dymn train"
    )
    storing.set_defaults(run=store)
    training.add_argument("maps", type=Path)
    training.add_argument("--steps", type=int, default=4000)
    training.add_argument("--lr", type=float, default=1e-3)
    training.add_argument("--weight", type=float, default=0.5)
    training.add_argument("--ema", type=float, default=0.995)
    training.set_defaults(run=train)
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        options.run(options)
    except DymnError as error:
        raise SystemExit(f"late_blocks: {error}") from error


if __name__ == "__main__":
    main()
