"""Progress of a training run in a terminal: a bar for the current epoch, a line for each completed one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import typer

from dymn.commands.progress import display
from dymn.training.report import Record, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

FIGURES = ("accuracy", "mAP", "roc_auc", "d_prime", "f1", "top1_agreement", "teacher_mAP", "distillation")
SHARES = ("accuracy", "top1_agreement")
WIDTH = 11


class EpochTable(Reporter):
    """Writes to standard error; shows a bar on terminals only."""

    def __init__(self, quiet: bool = False, title: str = "") -> None:
        self.quiet = quiet
        self.title = title
        self.epochs = 0
        self.columns: list[str] = []
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def start(self, epochs: int, epochs_done: int, steps: int) -> None:
        """Show the bar."""
        self.epochs = epochs
        self.note(f"{self.title}{epochs - epochs_done} of {epochs} epochs to go, {steps} batches each.")
        columns = ("{task.description}", "BarColumn", "MofNCompleteColumn", "left", "TimeRemainingColumn")
        self.progress = display(self.quiet or epochs_done == epochs, *columns)
        if self.progress is not None:
            self.task = self.progress.add_task(f"epoch {epochs_done + 1}", total=steps)
            self.progress.start()

    def note(self, text: str) -> None:
        """Write a line."""
        if not self.quiet:
            self._write(f"dymn: {text}")

    def batch(self, loss: float) -> None:
        """Move the bar on."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, advance=1)

    def epoch(self, record: Record) -> None:
        """Write a line of the table, and its header before the first."""
        if self.quiet:
            return
        if not self.columns:
            self.columns = [
                "loss",
                *(f"val_{name}" for name in FIGURES if f"val_{name}" in record),
                "lr",
                "clips_per_second",
                "seconds",
            ]
            self._write("  ".join(["epoch".rjust(7), *(title(column).rjust(WIDTH) for column in self.columns)]))
        number = f"{record['epoch']}/{self.epochs}".rjust(7)
        self._write("  ".join([number, *(cell(column, record.get(column)).rjust(WIDTH) for column in self.columns)]))
        if self.progress is not None and self.task is not None:
            self.progress.reset(self.task, description=f"epoch {record['epoch'] + 1}")

    def finish(self, result: Record) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar, also when a run ends with an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _write(self, line: str) -> None:
        if self.progress is not None:
            self.progress.console.print(line, markup=False, highlight=False)
        else:
            typer.echo(line, err=True)


def title(column: str) -> str:
    """Return the title of a column."""
    return {"clips_per_second": "clips/s", "seconds": "time", "lr": "rate"}.get(
        column, column.replace("_", " ").replace("top1 ", "")
    )


def cell(column: str, value: Any) -> str:
    """Return a number as the table shows it."""
    if not isinstance(value, (int, float)):
        return ""
    if column == "seconds":
        return duration(value)
    if column == "lr":
        return f"{value:.2e}"
    if column == "clips_per_second":
        return f"{value:.1f}"
    return figure(column, value)


def figure(name: str, value: float) -> str:
    """Return a figure of a result: a share in per cent, anything else with four digits after the point."""
    is_share = re.match(rf"(val_|test_)?({'|'.join(SHARES)})(_by_device|_last_\d+|\.|$)", name)
    return f"{100 * value:.2f} %" if is_share else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return "12.0 s", "3:05" or "2:03:05"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
