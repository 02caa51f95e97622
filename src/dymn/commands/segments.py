"""`--segments`: results are extracted from the recordings as audio files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dymn.errors import ConfigError
from dymn.inference.formats.layout import Layout, R

if TYPE_CHECKING:
    from dymn.audio.settings import ReadSettings
    from dymn.inference.segments import SegmentCutter

PER_LABEL = 100
"""How many segments of each label are extracted by default."""


def seen(found: Iterable[R], layout: Layout[R], cutter: SegmentCutter | None) -> Iterator[R]:
    """Yield results unchanged, and add their passages to the cutter."""
    for result in found:
        if cutter is not None and result.error is None:
            cutter.see(result.name, layout.spans(result), result.path)
        yield result


def cut(cutter: SegmentCutter | None, quiet: bool) -> int:
    """Extract the passages; return how many recordings could not be read."""
    if cutter is None:
        return 0
    from dymn.commands.progress import counting_bar

    with counting_bar("Segments", quiet) as progress:
        errors = cutter.cut(progress) if progress else cutter.cut()
    for error in errors:
        typer.echo(f"dymn: {error}", err=True)
    return len(errors)


def cutter_of(
    folder: Path | None,
    per_label: int | None,
    paths: Sequence[str],
    ray: str | None,
    settings: ReadSettings,
    replaces: bool,
) -> SegmentCutter | None:
    """Return the cutter of segments, None without a folder; it may replace the segments of an earlier run.

    Raises:
        ConfigError: if recordings cannot be read again, the folder is in use, or only the number of segments is given.
        OSError: if the folder cannot be written to.
    """
    if folder is None:
        if per_label is not None:
            raise ConfigError("--segments-per-class needs --segments FOLDER.")
        return None
    if ray is not None or any(path == "-" or "://" in path for path in paths):
        raise ConfigError("--segments reads recordings again. Give files on this machine, without --ray.")
    if settings.channel == "each" or settings.track is not None:
        raise ConfigError(
            "--segments extracts all channels of the default track. Leave out --channel each and --track."
        )
    from dymn.inference.discovery import lies_in
    from dymn.inference.segments import SegmentCutter
    from dymn.system.files import check_writable

    check_writable(folder)
    if any(os.path.exists(path) and lies_in(path, folder) for path in paths):
        raise ConfigError(f"--segments {folder} contains one of the given paths. Give another folder.")
    return SegmentCutter(folder, PER_LABEL if per_label is None else per_label, settings.partial, replaces)
