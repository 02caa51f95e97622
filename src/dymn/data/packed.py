"""The shards of `dymn shards`.

Shards are tar files (WebDataset) with an index, so that opening them is fast for any number of clips.

A folder of them holds

- NAME-000000.tar and so on: for each clip its audio, and a JSON object with its name, labels, split, fold and
  group (recording device);
- clips.npz: the same of all clips as columns, and where in which shard each lies, in the order in which shards are
  read;
- index.json: the shards with clips, bytes and SHA-256, classes, kind of task, and where all came from. It is written
  last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.data.catalog import SPLITS, Catalog
from dymn.data.pickles import read_npz
from dymn.data.stores import Store, TarStore, inside
from dymn.errors import DataError
from dymn.system.files import atomic_write, digest_of, open_regular, read_bounded

FORMAT = "dymn-shards/1"
INDEX_FILE, COLUMNS_FILE, WORK_FOLDER = "index.json", "clips.npz", ".packing"
MAX_INDEX = 2**26
CLIP_FIELDS = frozenset(("key", "labels", "probabilities", "annotated", "split", "fold", "group", "seconds"))
"""The fields of the JSON object next to a clip; all objects have `key` and `seconds`."""


@dataclass(frozen=True)
class Index:
    """The contents of index.json.

    Attributes:
        root: the folder.
        labels: names of the C classes.
        task: kind of the data that were packed, with loss, metric, seconds and whole as a `TaskSpec` has them.
        shards: name, clips, bytes and sha256 of each.
        values: all of it.
    """

    root: Path
    labels: tuple[str, ...]
    task: dict[str, Any]
    shards: list[dict[str, Any]]
    values: dict[str, Any]


def is_packed(root: Path) -> bool:
    """Return whether a folder contains such shards, complete or not; an index.json may be another program's."""
    if (root / INDEX_FILE).is_file() and (root / COLUMNS_FILE).is_file():
        return True
    try:
        with open_regular(root / INDEX_FILE) as file:
            return b'"dymn-shards/' in file.read(100)
    except OSError:
        return (root / WORK_FOLDER).exists()


def is_packed_clip(about: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is one that `dymn shards` writes next to a clip."""
    return {"key", "seconds"} <= about.keys() <= CLIP_FIELDS


def read_index(root: Path) -> Index:
    """Read index.json of a folder of shards; raise a DataError if it is missing or damaged."""
    path = root / INDEX_FILE
    if not path.is_file() and (root / WORK_FOLDER).exists():
        raise DataError(f"{root} is incomplete. Run the same dymn shards command again; it resumes.")
    try:
        values = json.loads(read_bounded(path, MAX_INDEX))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, not {FORMAT}")
        labels, task, columns = values["labels"], values["task"], values["columns"]
        shards = [
            {**shard, "clips": int(shard["clips"]), "bytes": int(shard["bytes"]), "name": str(shard["name"])}
            for shard in values["shards"]
        ]
        if not (isinstance(task, dict) and isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
            raise ValueError("labels must be a list of names, and task an object")
        if not isinstance(columns, dict) or not isinstance(columns["names"], list):
            raise ValueError("columns must be an object with a list of names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} is not a readable index of shards: {error!r}. Pack them again with dymn shards."
        ) from error
    return Index(root, tuple(labels), task, shards, values)


def read_packed(root: Path) -> tuple[Catalog, Store]:
    """A folder of shards with its index.

    Raises:
        DataError: if index, columns and shards do not belong together.
    """
    index = read_index(root)
    columns = root / COLUMNS_FILE
    paths = [inside(root, shard["name"]) for shard in index.shards]
    for path, shard in zip(paths, index.shards, strict=True):
        found = path.stat().st_size if path.is_file() else -1
        if found != shard["bytes"]:
            raise DataError(
                f"{path} has {found} bytes, but {INDEX_FILE} states {shard['bytes']}. The copy is incomplete; copy "
                "it again."
            )
    arrays = _columns(columns, index)
    try:
        places, keys = arrays["places"].astype(np.int64), _parted(arrays["keys"])
        if places.shape != (len(keys), 3) or _misplaced(places, index.shards):
            raise ValueError("clips are not within their shards")
        splits = ("", *SPLITS)
        catalog = Catalog(
            keys,
            index.labels,
            arrays["targets"],
            masks=arrays.get("masks"),
            splits=tuple(splits[number] for number in arrays["splits"].tolist()) if "splits" in arrays else (),
            folds=tuple(arrays["folds"].tolist()) if "folds" in arrays else (),
            groups=_groups(arrays),
            packed=arrays["targets"].dtype == np.uint8,
            task=index.task,
        )
        fingerprints = arrays["marks"].astype(np.int64) if "marks" in arrays else None
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{columns} is damaged: {error}. Pack the shards again with dymn shards.") from error
    return catalog, TarStore(paths, places, fingerprints=fingerprints, streams=True)


def _columns(path: Path, index: Index) -> dict[str, npt.NDArray[Any]]:
    """Return the columns that an index names, after comparing their file with its digest."""
    names = tuple(name for name in index.values["columns"]["names"] if isinstance(name, str))
    try:
        with open_regular(path) as file:
            if digest_of(file) != index.values["columns"].get("sha256"):
                raise DataError(f"{path} is not the file that {INDEX_FILE} describes. Use both from the same release.")
            return read_npz(path, names, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def write_index(
    root: Path,
    catalog: Catalog,
    places: npt.NDArray[np.int64],
    fingerprints: npt.NDArray[np.int64] | None,
    values: dict[str, Any],
) -> None:
    """Write clips.npz, then index.json.

    Args:
        root: the folder with the shards.
        catalog: the clips in their order in the shards.
        places: of each clip: number of its shard, offset and size [N, 3].
        fingerprints: of what was encoded again [N], or None.
        values: of index.json, but for the columns.
    """
    splits = ("", *SPLITS)
    arrays: dict[str, Any] = {
        "places": places,
        "keys": _joined(catalog.keys),
        "targets": pack_targets(catalog),
    }
    if catalog.masks is not None:
        arrays["masks"] = catalog.mask_rows(slice(None)).astype(np.uint8)
    if catalog.splits:
        arrays["splits"] = np.array([splits.index(name) for name in catalog.splits], dtype=np.uint8)
    if catalog.groups:
        names, numbers = np.unique(catalog.groups, return_inverse=True)
        arrays["groups"] = numbers.astype(np.int32)
        arrays["group_names"] = _joined(names.tolist())
    if catalog.folds:
        arrays["folds"] = np.array(catalog.folds, dtype=np.int32)
    if fingerprints is not None:
        arrays["marks"] = fingerprints
    with atomic_write(root / COLUMNS_FILE) as file:
        np.savez(file, **arrays)
    with (root / COLUMNS_FILE).open("rb") as file:
        columns = {"file": COLUMNS_FILE, "sha256": digest_of(file), "names": sorted(arrays)}
    with atomic_write(root / INDEX_FILE) as file:
        file.write(json.dumps({"format": FORMAT, **values, "columns": columns}, indent=1, ensure_ascii=False).encode())


def _joined(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("\0".join(names).encode(), dtype=np.uint8)


def _parted(names: npt.NDArray[Any]) -> tuple[str, ...]:
    return tuple(names.tobytes().decode().split("\0"))


def _groups(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    """Return the group of each clip; none if there are none, as in indexes of earlier versions."""
    if "groups" not in arrays:
        return ()
    names = _parted(arrays["group_names"])
    return tuple(names[number] for number in arrays["groups"].tolist())


def pack_targets(catalog: Catalog) -> npt.NDArray[Any]:
    """Return the targets as bits where they are 0 and 1, else as they are."""
    if catalog.packed:
        return catalog.targets
    values = catalog.targets.astype(np.float32)
    return np.packbits(values > 0, axis=1) if np.isin(values, (0, 1)).all() else values


def _misplaced(places: npt.NDArray[np.int64], shards: list[dict[str, Any]]) -> bool:
    part, offset, size = places.T
    if not ((part >= 0) & (part < len(shards)) & (offset >= 0) & (size >= 0)).all():
        return True
    limits = np.array([shard["bytes"] for shard in shards], dtype=np.int64)[part]
    ordered = (np.diff(part) > 0) | ((np.diff(part) == 0) & (np.diff(offset) > 0))
    return bool((offset > limits).any() or (size > limits - offset).any() or not ordered.all())
