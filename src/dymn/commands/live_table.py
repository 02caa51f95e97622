"""The windows of live audio on standard output: lines, JSON, or a table that is updated in place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from dymn.inference.stream import Heard


def display(
    show: Callable[[dict[str, Any]], None] | None, title: str, top_k: int, zero: Callable[[], float] | None
) -> AbstractContextManager[Any]:
    """Return a context whose function passes JSON types to `show` or, without it, prints a line or updates a table."""
    if show is not None:
        return nullcontext(lambda answer: show(window_fields(answer, zero)))
    if not sys.stdout.isatty():
        return nullcontext(show_line)
    return LiveTable(title, top_k)


def window_fields(answer: Heard, zero: Callable[[], float] | None) -> dict[str, Any]:
    """Return an answer as JSON types, with the time of its start on the wall clock if second 0 has one."""
    from dymn.live.messages import iso

    tags = [{"label": tag.label, "score": round(tag.score, 6)} for tag in answer.window.tags]
    start, end = (round(seconds, 3) for seconds in answer.window[:2])
    fields: dict[str, Any] = {"start": start, "end": end, "tags": tags, "dropped": round(answer.dropped, 3)}
    return fields if zero is None else fields | {"time": iso(zero() + start)}


def show_line(answer: Heard) -> None:
    """Write an answer as a line of text."""
    from dymn.inference.formats.text import clock

    found = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in answer.window.tags)
    typer.echo(f"{clock(answer.window.start)} – {clock(answer.window.end)}  {found or '–'}")


class LiveTable:
    """A table in the terminal that each answer changes."""

    def __init__(self, title: str, top_k: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title, self._top_k = title, top_k
        self._live = Live(console=Console(), auto_refresh=False, transient=False)

    def __enter__(self) -> Any:
        self._live.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, answer: Heard) -> None:
        """Put an answer in place of the one before."""
        self._live.update(self.table(answer), refresh=True)

    def table(self, answer: Heard) -> Any:
        """Return an answer as a table of rich, as high for few labels as for many."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        from dymn.inference.formats.text import bar, clock

        dropped = f"   {answer.dropped:.1f} s dropped" if answer.dropped else ""
        caption = f"{clock(answer.window.end)}{dropped}"
        table = Table(
            title=Text(self._title),
            caption=Text(caption),
            title_justify="left",
            caption_justify="left",
            box=SIMPLE,
            min_width=60,
        )
        table.add_column("score", justify="right", width=5)
        table.add_column("", width=20, style="cyan")
        table.add_column("label", ratio=1, no_wrap=True)
        for tag in answer.window.tags:
            table.add_row(f"{tag.score:.2f}", bar(tag.score), Text(tag.label))
        for _ in range(self._top_k - len(answer.window.tags)):
            table.add_row("", "", "")
        return table
