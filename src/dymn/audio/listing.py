"""Listing of recordings: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from dymn.audio.sources import display, is_stdin, reason
from dymn.errors import AudioError

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    f".{ending}"
    for group in (
        "wav wave bwf rf64 w64 amb flac ogg oga opus spx mp3 mp2 aif aiff aifc au snd caf sph voc",
        "m4a m4b mp4 m4v mov 3gp 3g2 aac ac3 eac3 amr awb gsm webm weba mkv mka wma wmv asf avi flv",
        "mpg mpeg mts m2ts ape wv tta",
    )
    for ending in group.split()
)
"""The file name endings, in lower case, that count as recordings when a directory is searched."""
SKIPPED_SUFFIXES = frozenset(
    (".ts", ".raw", ".pcm", ".vob", ".dts", ".ra", ".rm", ".shn", ".tak", ".mpc", ".dsf", ".mid", ".midi")
)
"""Endings of files that may be recordings, and are left out of a directory with a warning.

Read them by their own paths.
"""


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the recordings that paths name: sorted, each once.

    A path to a file is kept, whatever its ending. A directory gives the files below it whose ending is in `SUFFIXES`,
    without hidden ones; links are followed. A pattern (`*`, `?`, `[...]`, `**`) gives the files that match, and those
    below directories that match. ~ at the start of a path is the home folder.
    "-", standard input, is kept as Path("-"); a file of that name is "./-". A plain path
    that does not exist is kept too: reading it raises the error, and the other recordings are not lost.

    Raises:
        AudioError: if a directory or a pattern gives no recording.
    """
    found: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        for item in expand(path):
            found.setdefault("-" if is_stdin(item) else os.path.abspath(item), item)
    return sorted(found.values())


def expand(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the recordings that one path names, as `find` does, one by one and without keeping them.

    Those of a directory or a pattern come in the order of the file system.

    Raises:
        AudioError: at the end, if a directory or a pattern gives no recording.
    """
    path = os.fsdecode(path)
    if path.startswith("~") and not os.path.lexists(path):  # in quotes no shell has replaced it
        path = os.path.expanduser(path)
    if is_stdin(path) or os.path.isfile(path):
        yield Path(path) if is_stdin(path) or Path(path) != Path("-") else Path.cwd() / "-"
        return
    if os.path.isdir(path):
        if not (yield from _counted(_walk(path))):
            raise AudioError(
                f"The folder {display(path)} contains no recording. Recognised extensions: "
                f"{', '.join(sorted(SUFFIXES))}. To read a file with another extension, give its path."
            )
        return
    if os.path.lexists(path) or not glob.has_magic(path):
        yield Path(path)
        return
    matches = found = 0
    for match in glob.iglob(path, recursive=True):
        matches += 1
        if os.path.isdir(match):
            found += yield from _counted(_walk(match))
        elif os.path.isfile(match) and _is_recording(match):
            found += 1
            yield Path(match)
    if not found:
        seen = f"matches {matches} paths, none of them a recording" if matches else "matches nothing"
        raise AudioError(
            f"The pattern {display(path)} {seen}. Check it; recognised extensions: {', '.join(sorted(SUFFIXES))}."
        )


def _counted(paths: Iterable[Path]) -> Generator[Path, None, int]:
    count = 0
    for path in paths:
        count += 1
        yield path
    return count


def _walk(directory: str) -> Iterator[Path]:
    """Yield the recordings below a directory; a directory that is linked into itself is entered once.

    Directories are entered in the order of their names, so that of two links to one directory the same one counts each
    time.
    """
    skipped: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        if not _enter(folder, entered):
            continue
        below = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_directory(entry):
                        below.append(entry.path)
                    elif _is_recording(entry.name):
                        yield Path(entry.path)
                    elif (ending := os.path.splitext(entry.name)[1].lower()) in SKIPPED_SUFFIXES:
                        skipped[ending] += 1
        except OSError as error:
            _warn(error)
        waiting += sorted(below, reverse=True)
    if skipped:
        counts = ", ".join(f"{count} {ending}" for ending, count in sorted(skipped.items()))
        logger.warning("Skipped files in %s: %s. To read them, give their paths.", display(directory), counts)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one that may not be followed
        return False


def _warn(error: OSError) -> None:
    logger.warning("The folder %s is skipped: %s.", display(error.filename), reason(error))


def _enter(folder: str, entered: set[tuple[int, int]]) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    new = key not in entered
    entered.add(key)
    return new


def _is_recording(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
