"""Listing of recordings: files, folders, patterns, standard input."""

from __future__ import annotations

import errno
import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
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

Unlisted = Callable[[str, AudioError], None]
"""Called with each directory that cannot be listed, and why, so that the recordings of others are not lost."""


def _raise(directory: str, error: AudioError) -> None:
    raise error


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the recordings that paths name: sorted, each once.

    A path to a file is kept, whatever its ending. A directory gives the files below it whose ending is in `SUFFIXES`,
    without hidden ones; links are followed. A pattern (`*`, `?`, `[...]`, `**`) gives the files that match, and those
    below directories that match. ~ at the start of a path is the home folder.
    "-", standard input, is kept as Path("-"); a file of that name is "./-". A plain path
    that does not exist is kept too: reading it raises the error, and the other recordings are not lost.

    Raises:
        AudioError: if a directory or a pattern gives no recording, or a directory cannot be listed.
    """
    found: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        for item in expand(path):
            found.setdefault("-" if is_stdin(item) else os.path.abspath(item), item)
    return sorted(found.values())


def expand(path: str | os.PathLike[str], unlisted: Unlisted = _raise) -> Iterator[Path]:
    """Yield the recordings that one path names, as `find` does, one by one and without keeping them.

    Those of a directory or a pattern come in the order of the file system.

    Raises:
        AudioError: at the end, if a directory or a pattern gives no recording; without `unlisted`, also where a
            directory cannot be listed.
    """
    path = os.fsdecode(path)
    if path.startswith("~") and not os.path.lexists(path):  # in quotes no shell has replaced it
        path = os.path.expanduser(path)
    if is_stdin(path) or os.path.isfile(path):
        yield Path(path) if is_stdin(path) or Path(path) != Path("-") else Path.cwd() / "-"
        return
    if os.path.isdir(path):
        if not (yield from _walk(path, unlisted)):
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
            found += yield from _walk(match, unlisted)
        elif os.path.isfile(match) and _is_recording(match):
            found += 1
            yield Path(match)
    for directory in dict.fromkeys(_listed_for(path)):
        try:
            os.scandir(directory).close()
        except OSError as error:  # which glob ignores
            found += 1
            unlisted(directory, _unlistable(directory, error))
    if not found:
        seen = f"matches {matches} paths, none of them a recording" if matches else "matches nothing"
        raise AudioError(
            f"The pattern {display(path)} {seen}. Check it; recognised extensions: {', '.join(sorted(SUFFIXES))}."
        )


def _listed_for(pattern: str) -> Iterator[str]:
    """Yield the directories that glob lists to match a pattern, some perhaps twice."""
    parts = Path(pattern).parts
    for i, part in enumerate(parts):
        if glob.has_magic(part):
            above = os.path.join(os.curdir if i == 0 else "", *parts[:i])
            if "**" in parts[:i]:
                above = os.path.join(above, "")  # directories alone; ** also gives files
            below = glob.iglob(os.path.join(above, part, ""), recursive=True) if part == "**" else ()
            for directory in (*glob.iglob(above, recursive=True), *below):
                if os.path.isdir(directory):
                    yield os.path.normpath(directory)


def _walk(directory: str, unlisted: Unlisted) -> Generator[Path, None, int]:
    """Yield the recordings below a directory, and return how many they and the directories that cannot be listed are.

    A directory that is linked into itself is entered once. Directories are entered in the order of their names, so that
    of two links to one directory the same one counts each time.
    """
    skipped: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    waiting = [directory]
    count = 0
    while waiting:
        folder = waiting.pop()
        below = []
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_directory(entry):
                        below.append(entry.path)
                    elif _is_recording(entry.name):
                        count += 1
                        yield Path(entry.path)
                    elif (ending := os.path.splitext(entry.name)[1].lower()) in SKIPPED_SUFFIXES:
                        skipped[ending] += 1
        except OSError as error:
            count += 1
            unlisted(folder, _unlistable(folder, error))
        waiting += sorted(below, reverse=True)
    if skipped:
        counts = ", ".join(f"{number} {ending}" for ending, number in sorted(skipped.items()))
        logger.warning("Skipped files in %s: %s. To read them, give their paths.", display(directory), counts)
    return count


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself, or one that may not be followed
        return error.errno != errno.ELOOP and not _is_recording(entry.name)


def _unlistable(directory: str, error: OSError) -> AudioError:
    return AudioError(
        f"The folder {display(directory)} cannot be listed: {reason(error)}. Check its permissions, or leave it out."
    )


def _is_recording(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
