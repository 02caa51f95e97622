"""Mean of the weights of several trainings of the same network (Wortsman et al., "Model soups", 2022).

    python benchmarks/average.py runs/a runs/b runs/c --output mean.safetensors
    python benchmarks/average.py 0.3=mean.safetensors 0.7=runs/d/best.safetensors --output both.safetensors

Each path is a checkpoint, or the folder of a finished or interrupted run of `dymn train`. The weights of a run are
those of its last step, also where it averages them over its steps (`optim.ema`). A number before the path is its share;
shares are divided by their sum.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dymn import load_model
from dymn.models import pretrained
from dymn.models.mobilenet import MobileNet
from dymn.training.prepare import LAST_FILE
from dymn.training.state import load_state
from dymn.weights.format import BEST_FILE


class Part(NamedTuple):
    """A checkpoint, or the folder of a run, with its share of the mean."""

    share: float
    path: Path


def part(argument: str) -> Part:
    """Return the part that `PATH` or `SHARE=PATH` names."""
    share, equals, path = argument.partition("=")
    try:
        value = float(share) if equals else 1.0
    except ValueError:
        return Part(1.0, Path(argument))
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"the share of {path} is {share}; it must be above 0")
    return Part(value, Path(path if equals else argument))


def weights_of(path: Path) -> tuple[MobileNet, dict[str, Tensor]]:
    """Return the network of a checkpoint or run, and its weights."""
    if path.is_dir():
        return load_model(path / LAST_FILE).eval(), load_state(path / "state.pt").model
    model = load_model(path).eval()
    return model, model.state_dict()


def name_of(path: Path) -> str:
    """Return the name of a run or, outside of runs, of a file."""
    return path.parent.name if path.name in (BEST_FILE, LAST_FILE) else path.name


def mean_of(parts: list[Part]) -> MobileNet:
    """Return the network whose weights and statistics are the means of those of several trainings.

    Raises:
        DymnError: if a path is neither a checkpoint nor a run.
        SystemExit: if the networks differ.
    """
    models, states = zip(*(weights_of(path) for _, path in parts), strict=True)
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes) or any(model.config != models[0].config for model in models):
        raise SystemExit("The weights are of different networks; means exist only for the same network.")
    total = sum(share for share, _ in parts)
    shares = torch.tensor([share / total for share, _ in parts], dtype=torch.float64)
    means = {
        name: torch.tensordot(shares, torch.stack([state[name].double() for state in states]), dims=1).to(value.dtype)
        for name, value in states[0].items()
    }
    model: MobileNet = models[0]
    model.load_state_dict(means)
    mixed = [{"name": name_of(path), "share": round(share / total, 4)} for share, path in parts]
    model.card = dataclasses.replace(model.card, metrics={}, provenance={"mean_of": mixed})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", type=part, metavar="[SHARE=]PATH")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    options = parser.parse_args()
    pretrained.save(mean_of(options.parts), options.output)
    print(f"{options.output}: the mean of {len(options.parts)} networks")


if __name__ == "__main__":
    main()
