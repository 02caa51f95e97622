"""Progress bars on standard error, shown only in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from dymn.errors import visible

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def display(quiet: bool, *columns: str) -> Progress | None:
    """Return what draws a bar on standard error; None if `quiet` or if standard error is not a terminal.

    Args:
        quiet: whether there is to be none.
        columns: names of classes in `rich.progress`, or texts, which may have fields such as "{task.description}".
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich import progress
    from rich.console import Console

    made: list[Any] = [
        getattr(progress, column)() if column.endswith("Column") else progress.TextColumn(column, markup=False)
        for column in columns
    ]
    return progress.Progress(
        *made, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )


@contextmanager
def _shown(progress: Progress | None) -> Iterator[Callable[[int, int | None], None] | None]:
    """Yield a function that shows progress, as an amount of a total, from its first call on; None without a display."""
    if progress is None:
        yield None
        return
    task = progress.add_task("", total=None)

    def show(done: int, total: int | None) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()


def download_bar(quiet: bool = False) -> Any:
    """Return a context whose function shows how many bytes have arrived; it is None if nobody would see it."""
    return _shown(display(quiet, "Download", "BarColumn", "DownloadColumn", "TransferSpeedColumn"))


def counting_bar(text: str, quiet: bool = False) -> Any:
    """Return a context whose function shows how many items of all are done; it is None if nobody would see it."""
    return _shown(display(quiet, text, "BarColumn", "MofNCompleteColumn", "left", "TimeRemainingColumn"))


class Bar:
    """Recordings done of all recordings, how many a second, and the time that is left.

    In a terminal it is a bar. Elsewhere, such as in the log of a job, it is a line every `LINE_SECONDS`.
    """

    LINE_SECONDS = 60.0

    def __init__(
        self, total: int, done: int = 0, quiet: bool = False, lengths: Mapping[str, float] | None = None
    ) -> None:
        """Prepare the bar.

        Args:
            total: the number of recordings.
            done: of those that are finished already.
            quiet: whether to show failures only.
            lengths: of recordings in seconds, by their names, as far as they are known.
        """
        self._total, self._done, self._first = total, done, done
        self._quiet, self._lengths = quiet, lengths or {}
        self._progress = display(
            quiet,
            "{task.description}",
            "BarColumn",
            "{task.fields[count]}",
            "TimeElapsedColumn",
            "left",
            "TimeRemainingColumn",
        )
        if self._progress is not None:
            self._task = self._progress.add_task("", total=total, completed=done, count=f"{done}/{total}")
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def at(self) -> Callable[[str, float], None] | None:
        """A callback for the name of a recording and the seconds of it that are done; None if nobody would see it."""
        return None if self._progress is None else self._at

    def _at(self, name: str, seconds: float) -> None:
        if self._progress is not None:
            length = self._lengths.get(name)
            done = self._done + (min(1.0, seconds / length) if length else 0.0)
            self._progress.update(self._task, completed=done, description=f"{visible(Path(name).name)} {seconds:.0f} s")

    def advance(self, name: str) -> None:
        """Count a recording as done."""
        self._done += 1
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._begun, 1e-3)
        if self._progress is not None:
            count = f"{self._done}/{self._total} " + (f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
            self._progress.update(self._task, completed=self._done, description=visible(Path(name).name), count=count)
        elif not self._quiet and now - self._said >= self.LINE_SECONDS:
            self._said = now
            pace = f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"
            share, left = self._done / max(1, self._total), round((self._total - self._done) / rate)
            self.say(f"dymn: {self._done:,} of {self._total:,} ({share:.1%}), {pace}, {timedelta(seconds=left)} left")

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the bar is on the screen only while the next one is awaited, so that they can be printed."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)
