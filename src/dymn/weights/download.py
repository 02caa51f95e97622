"""Verified downloads of the registry's models into a user cache.

A file in the cache has passed one of two checks: its SHA-256 is the one in the registry, or pinned by the user; or,
where there is none, it was imported, held exactly the expected network, and its SHA-256 was recorded next to it, to be
enforced from then on. Each process writes a file of its own and moves it into place once it is complete and verified,
so several may download the same model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dymn.errors import WeightsError
from dymn.system.files import atomic_write
from dymn.weights.digests import Expected, expected_digest
from dymn.weights.files import DownloadProgress, WeightsFile, read_file
from dymn.weights.registry import PublishedFile, PublishedModel

logger = logging.getLogger(__name__)

Published = PublishedModel | PublishedFile

STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Return the folder of downloads: `DYMN_CACHE` if set, else `dymn` in the user's cache folder."""
    if chosen := os.environ.get("DYMN_CACHE"):
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dymn"


def local_path(model: Published) -> Path:
    """Return the path of a model's file in this package or in the cache, whether it exists or not."""
    return (Path(__file__).parent if model.packaged else cache_folder()) / model.file


def record_path(model: Published) -> Path:
    """Return where the SHA-256 of a model's file is recorded when it is first verified."""
    return local_path(model).with_name(f"{model.file}.sha256")


def known_digest(model: Published) -> Expected:
    """Return the digest that the file of a model must have and its origin; errors are those of `pinned`."""
    return expected_digest((model.name, model.file), model.sha256, record_path(model))


def is_local(model: Published) -> bool:
    """Return whether the file of a model is on this machine; it is verified when it is used."""
    path = local_path(model)
    return path.is_file() and (model.size is None or path.stat().st_size == model.size)


def fetch(
    model: Published,
    validate: Callable[[WeightsFile], object],
    progress: DownloadProgress | None = None,
    read: Callable[[Path], WeightsFile] = read_file,
) -> WeightsFile:
    """Return the verified content of a model's file; download it if the cache has none or a damaged one.

    Args:
        model: an entry of the registry.
        validate: imports a file and raises a `WeightsError` unless it holds exactly the expected network; called for
            files whose SHA-256 is neither in the registry nor recorded in the cache.
        progress: called as bytes arrive.
        read: reads or hashes a file.

    Raises:
        WeightsError: if the file cannot be downloaded, verified or written. The message names the file, the URL, and
            where to place the file by hand.
    """
    path = local_path(model)
    if model.packaged:
        if not path.is_file():
            raise WeightsError(
                f"{model.name} is part of dymn, but {path} is missing. Install dymn again, or use another model."
            )
        found = read(path)
        if model.sha256 not in (None, found.digest):
            raise WeightsError(
                f"{path} is damaged: its SHA-256 is {found.digest} instead of {model.sha256}. Install dymn again."
            )
        return found
    problem = ""
    if path.is_file():
        try:
            return _verified(read(path), model, validate)
        except WeightsError as error:
            problem = f"The file in the cache cannot be used: {error} "
            logger.warning("%sDownloading it again.", problem)
    from dymn.weights.transfer import Remote, transfer

    try:
        remove_stale_parts(path)
        with atomic_write(path) as file:
            transfer(Remote(model.url, model.file, model.size, model.size_limit), file, progress)
            file.flush()
            found = _verified(read(Path(file.name)), model, validate)
    except WeightsError as error:
        raise WeightsError(f"{problem}{error} {_by_hand(model)}") from error
    except OSError as error:
        raise WeightsError(
            f"{problem}{model.name} cannot be stored as {path}: {error.strerror or error}. Free some space, or set "
            "DYMN_CACHE to a writable folder."
        ) from error
    return found._replace(path=path)


def _by_hand(model: Published) -> str:
    place = local_path(model)
    return (
        f"Without a network connection, download {model.file} from {model.url} on another machine and copy it to "
        f"{place}, or give the path of a file."
    )


def _verified(file: WeightsFile, model: Published, validate: Callable[[WeightsFile], object]) -> WeightsFile:
    """Check and return a file, in the cache or on its way there; record its digest if none is known."""
    size, digest = file.size, file.digest
    if model.size is not None and size != model.size:
        raise WeightsError(f"{model.file} has {size:,} bytes instead of {model.size:,}.")
    expected = known_digest(model)
    record = record_path(model)
    if expected.origin == "none":
        try:
            validate(file)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(file.path), model.file)) from error
        with atomic_write(record) as lines:
            lines.write(f"{digest}  {model.file}\n".encode("ascii"))
    elif digest != expected.digest:
        remedy = f" If you trust the new file, remove {record}." if expected.origin == "recorded" else ""
        raise WeightsError(
            f"{model.file} has the SHA-256 {digest} instead of {expected.digest} ({expected.place}).{remedy}"
        )
    return file


def remove_stale_parts(path: Path) -> None:
    """Remove temporary files that processes killed more than a day ago left next to `path`."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
