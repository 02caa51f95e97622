"""Mean of the weights at the end of several training runs of the same network (Wortsman et al., "Model soups", 2022).

    python benchmarks/average.py runs/a runs/b runs/c --output mean.safetensors

Each folder is that of a finished or interrupted run of `dymn train`. The weights are those of the last step, also where
the run averages them over its steps (`optim.ema`).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from dymn import load_model
from dymn.models import pretrained
from dymn.models.mobilenet import MobileNet
from dymn.training.state import load_state


def mean_of(folders: list[Path]) -> MobileNet:
    """Return the network whose weights and statistics are the means of those of the runs in some folders.

    Raises:
        DymnError: if a folder contains no run.
        SystemExit: if the networks differ.
    """
    model = load_model(folders[0] / "last.safetensors").eval()
    states = [load_state(folder / "state.pt").model for folder in folders]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise SystemExit("The runs are of different networks; means exist only for the same network.")
    means = {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(value.dtype)
        for name, value in states[0].items()
    }
    model.load_state_dict(means)
    model.card = dataclasses.replace(model.card, metrics={}, provenance={"mean_of": [path.name for path in folders]})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    options = parser.parse_args()
    pretrained.save(mean_of(options.folders), options.output)
    print(f"{options.output}: the mean of {len(options.folders)} runs")


if __name__ == "__main__":
    main()
