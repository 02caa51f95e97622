"""Detection of the layout of a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dymn.audio.annotations import is_table
from dymn.data.archives import AUDIOSET_FILES, FSD50K_FILES, OPENMIC_FILES
from dymn.data.audioset import SEGMENT_FILES
from dymn.data.manifest import SUFFIXES
from dymn.data.packed import is_packed
from dymn.errors import DataError

HDF5_KINDS = {
    **dict.fromkeys(AUDIOSET_FILES, "audioset_hdf5"),
    **dict.fromkeys(FSD50K_FILES, "fsd50k_hdf5"),
    **dict.fromkeys(OPENMIC_FILES, "openmic_hdf5"),
}
SEGMENT_KINDS = dict.fromkeys(SEGMENT_FILES, "audioset")
MARKS = {
    "meta/esc50.csv": "esc50",
    "meta/esc10.csv": "esc10",
    "FSD50K.ground_truth": "fsd50k",
    "openmic-2018.npz": "openmic",
    "evaluation_setup/fold1_train.csv": "tau",
    **HDF5_KINDS,
    **SEGMENT_KINDS,
}


class Detected(NamedTuple):
    """A kind of dataset (a key of `TASKS`) and the path that its reader takes."""

    kind: str
    path: Path


def detect(path: str | Path) -> Detected:
    """Detect from its files what kind of dataset is at `path`.

    It is a published one, a manifest, annotations of Raven or Audacity, shards, or else a folder per class.

    Raises:
        DataError: if there is nothing, or it could be several things.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file():
        if path.name in SEGMENT_KINDS:
            return Detected(SEGMENT_KINDS[path.name], path)
        if path.suffix.lower() in SUFFIXES:
            return Detected("csv", path)
        if path.suffix.lower() == ".txt" and is_table(path):
            return Detected("annotations", path)
        if path.suffix.lower() == ".tar":
            return Detected("shards", path)
        if path.name in HDF5_KINDS:
            return Detected(HDF5_KINDS[path.name], path)
        raise DataError(
            f"The kind of the dataset {path} cannot be detected. Give a folder, a .csv, .tsv or .tar file, or Raven "
            "or Audacity annotations (.txt), or specify the kind."
        )
    if not path.is_dir():
        raise DataError(f"There is no dataset at {path}.")
    if is_packed(path):  # one that is not complete is refused by its reader
        return Detected("packed", path)
    for mark, kind in MARKS.items():
        if (path / mark).exists():
            return Detected(kind, path)
    if any(path.glob("*.tar")) or any(path.glob("shards/*.tar")):
        return Detected("shards", path)
    manifests = sorted(
        file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if len(manifests) > 1:
        raise DataError(
            f"{path} contains several tables: {', '.join(file.name for file in manifests)}. Give the path of one of "
            "them."
        )
    if manifests:
        return Detected("csv", manifests[0])
    return Detected("annotations" if any(map(is_table, path.glob("*.txt"))) else "folder", path)
