"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

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
            self._progress.update(self._task, completed=done, description=text)

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
