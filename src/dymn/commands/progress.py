"""Progress bars on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from dymn.errors import visible

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


class Bar:
    """A progress bar on standard error, or nothing where nobody would see one."""

    def __init__(self, progress: Progress | None, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total) if progress is not None else None

    @property
    def visible(self) -> bool:
        """Whether there is anything to see, and so any sense in working out how far things are."""
        return self._progress is not None

    def update(self, done: float, text: str) -> None:
        """Say how much of the total is done, and what is being worked on."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, description=visible(text))

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the bar is on the screen only while the next one is awaited, so that they can be printed."""
        iterator = iter(items)
        while True:
            if self._progress is not None:
                self._progress.start()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                if self._progress is not None:
                    self._progress.stop()
            yield item


@contextmanager
def download_bar(quiet: bool = False) -> Iterator[Callable[[int, int | None], None] | None]:
    """Give a function that shows on standard error how many bytes of a download are there; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("Download"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
    task = progress.add_task("", total=None)

    def show(done: int, total: int | None) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()


def progress_bar(total: float, quiet: bool = False) -> Bar:
    """Make a progress bar for standard error; one without a display if `quiet` or standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        return Bar(None, total)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Bar(Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False), total)


@contextmanager
def counting_bar(text: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function that shows on standard error how many things of how many are done; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
    task = progress.add_task("", total=None)

    def show(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()


class RateBar:
    """How many recordings of how many are done, how many a second, and how long it will take; on standard error.

    In a terminal it is a bar. Elsewhere, such as in the log of a job, it is a line every `LINE_SECONDS`.
    """

    LINE_SECONDS = 60.0

    def __init__(self, total: int, done: int, progress: Progress | None, quiet: bool) -> None:
        self._total, self._done, self._first = total, done, done
        self._progress, self._quiet = progress, quiet
        self._task = progress.add_task("", total=total, completed=done, rate="") if progress is not None else None
        self._begun = self._said = time.monotonic()

    @property
    def at(self) -> Callable[[str, float], None] | None:
        """To be called with the name of a recording and how many seconds of it are done; None where nobody would see that."""
        return None if self._progress is None else self._at

    def _at(self, name: str, seconds: float) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{visible(Path(name).name)} {seconds:.0f} s")

    def advance(self, name: str) -> None:
        """Say that a recording is done."""
        self._done += 1
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._begun, 1e-3)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, description=visible(Path(name).name), rate=f"{rate:.1f}/s")
        elif not self._quiet and now - self._said >= self.LINE_SECONDS:
            self._said = now
            share, left = self._done / max(1, self._total), round((self._total - self._done) / rate)
            self.say(f"dymn: {self._done:,} of {self._total:,} ({share:.1%}), {rate:.1f} a second, {timedelta(seconds=left)} left")

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)


@contextmanager
def rate_bar(total: int, done: int, quiet: bool = False) -> Iterator[RateBar]:
    """Show how recordings come along, of which some are done already; only failures if `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield RateBar(total, done, None, quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        yield RateBar(total, done, progress, quiet)
