"""From a name or a path to a file of weights, without reading it."""

from __future__ import annotations

import os
from pathlib import Path

from dymn.errors import WeightsError
from dymn.weights.download import LocalFile, Progress, sha256_of
from dymn.weights.format import MAX_FILE, WEIGHTS_FILE
from dymn.weights.published import fetch_published
from dymn.weights.registry import REGISTRY

SAFETENSORS = ".safetensors"


def find_weights(name_or_path: str | Path, progress: Progress | None = None) -> LocalFile | None:
    """Return the file that a name in the registry, a path or a folder means; None if it is none of these.

    Raises:
        WeightsError: if it cannot be downloaded, verified or read, or a folder holds none, or several.
    """
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and name in REGISTRY:
        return fetch_published(REGISTRY[name], progress)
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        path = file_in(path)
    return LocalFile(path, sha256_of(path, MAX_FILE)) if path.is_file() else None


def file_in(folder: Path) -> Path:
    """Return the weights file of a folder: `model.safetensors`, or the only file of this kind.

    Raises:
        WeightsError: if there is none, or several.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(files) != 1:
        found = f"{len(files)} {SAFETENSORS} files, such as {files[0].name}" if files else f"no {SAFETENSORS} file"
        raise WeightsError(
            f"The folder {folder} holds {found}; give the path of a file, or a folder with {WEIGHTS_FILE}."
        )
    return files[0]
