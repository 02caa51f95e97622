"""The records of a run: a line of JSON per epoch, curves as PNG, and experiment trackers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dymn.system.extras import needing
from dymn.system.files import atomic_write, json_values

Record = dict[str, Any]


class Reporter:
    """Receives the progress of a run and does nothing with it; subclasses override what they show."""

    def start(self, epochs: int, epochs_done: int, steps: int) -> None:
        """Training begins: how many epochs there are, how many are done, and how many batches each has."""

    def note(self, text: str) -> None:
        """Say something once."""

    def batch(self, loss: float) -> None:
        """One more batch is done."""

    def epoch(self, record: Record) -> None:
        """One more epoch is done."""

    def finish(self, result: Record) -> None:
        """The run is done."""


class Tracker(Reporter):
    """TensorBoard or Weights & Biases."""

    def __init__(self, kind: str, folder: Path, config: Record, name: str) -> None:
        self.kind = kind
        with needing(f"run.trackers = [{kind!r}]", kind):
            if kind == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self.writer: Any = SummaryWriter(str(folder / "tensorboard"))
            else:
                import wandb

                # a run that continues is the same run there
                mark = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
                self.writer = wandb.init(
                    project="dymn", name=name or None, dir=str(folder), config=config, id=mark, resume="allow"
                )

    def epoch(self, record: Record) -> None:
        """Log the numbers of an epoch."""
        self._log(record, record["epoch"])

    def finish(self, result: Record) -> None:
        """Log the result and close the log."""
        self._log(result, result["epochs"])
        if self.kind == "wandb":
            self.writer.finish()
        else:
            self.writer.close()

    def _log(self, record: Record, step: int) -> None:
        numbers = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        if self.kind == "wandb":
            self.writer.log(numbers, step=step)
            return
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)


def write_history(path: Path, history: list[Record]) -> None:
    """Write one line of JSON an epoch."""
    with atomic_write(path) as file:
        file.write("".join(json.dumps(json_values(record), allow_nan=False) + "\n" for record in history).encode())


def write_json(path: Path, values: Record) -> None:
    """Write readable JSON."""
    with atomic_write(path) as file:
        file.write((json.dumps(json_values(values), indent=1, default=str, allow_nan=False) + "\n").encode())


def plot_curves(path: Path, history: list[Record], metric: str) -> None:
    """Draw loss, validation figure and learning rate by epoch, or raise a `MissingExtraError`."""
    with needing("Drawing curves", "plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    epochs = [record["epoch"] for record in history]
    panels = [("loss", "training loss"), ("label_loss", "label loss"), ("teacher_loss", "distillation loss")]
    panels += [(f"val_{metric}", f"validation {metric}"), (f"test_{metric}", f"test {metric}"), ("lr", "learning rate")]
    shown = [(key, title) for key, title in panels if any(key in record for record in history)]
    figure = Figure(figsize=(4.0 * len(shown), 3.2), layout="constrained")
    for i, (key, title) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        points = [(epoch, record[key]) for epoch, record in zip(epochs, history, strict=True) if key in record]
        axes.plot(*zip(*points, strict=True), color="#0072B2", marker="o" if len(points) < 30 else "", markersize=3)
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
