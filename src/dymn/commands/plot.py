"""Pictures and pages of recordings, for `dymn tag --plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dymn.commands.options import note
from dymn.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from dymn.inference.selection import TagSettings
    from dymn.inference.tagger import Tagger

ENDINGS = (".png", ".svg", ".pdf", ".html")
MOST_ROWS = 12


def check_plot(plot: Path, found: Sequence[str | Path]) -> None:
    """Refuse, before any work is done, a picture that cannot be drawn or would overwrite a recording.

    Raises:
        ConfigError: the message says what to give instead.
        MissingExtraError: if matplotlib is not installed.
    """
    from dymn.plots.style import require

    if plot.suffix.lower() != ".html":
        require()
    if any(str(path) == "-" for path in found):
        raise ConfigError("Standard input can be read only once, and --plot reads twice. Write it to a file first.")
    if len(found) > 1:
        if plot.suffix.lower() in ENDINGS or (plot.exists() and not plot.is_dir()):
            raise ConfigError(
                f"There are {len(found)} recordings, and --plot {plot} is one file. Give a folder, for a picture of "
                "each."
            )
        return
    if plot.is_dir():
        return
    if plot.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--plot {plot} has an ending that is not known. Give one of: {', '.join(ENDINGS)}, or a folder that "
            "exists."
        )
    if plot.exists() and any(path.exists() and path.samefile(plot) for path in map(Path, found)):
        raise ConfigError(f"--plot {plot} is one of the recordings. Give another file to write to.")


def draw(tagger: Tagger, found: Sequence[Path], plot: Path, *, single: bool, settings: TagSettings, quiet: bool) -> int:
    """Draw recordings into a file or, each by itself, into a folder.

    Return how many could not be read again, after a message for each.
    """
    import dataclasses

    from dymn.audio.settings import ReadSettings
    from dymn.commands.output import free_name
    from dymn.commands.progress import Bar
    from dymn.plots.overview import overview
    from dymn.plots.timeline import save_picture
    from dymn.plots.timeline_page import save_page

    reading = {field.name: getattr(settings, field.name) for field in dataclasses.fields(ReadSettings)}
    rows = min(settings.top_k or MOST_ROWS, MOST_ROWS)
    folder = plot.is_dir() or not single
    used: set[str] = set()
    failed = 0
    bar = Bar(len(found), quiet=quiet)
    for source in bar.over(found):
        path = plot / free_name(f"{source.stem}.png", used) if folder else plot
        try:
            seen = overview(tagger, source, top_k=rows, labels=settings.labels, exclude=settings.exclude, **reading)
            if path.suffix.lower() == ".html":
                save_page(seen, source, path)
            else:
                save_picture(seen, path)
        except AudioError as error:
            failed += 1
            typer.echo(f"dymn: {error}", err=True)
        bar.advance(source.name)
    note(f"{plot} is written." if failed < len(found) else f"{plot} is not written.", quiet)
    return failed
