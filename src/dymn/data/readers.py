"""Datasets of single audio files in their published layouts: annotations, and the file of each clip."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dymn.audio.listing import find
from dymn.data.catalog import Catalog
from dymn.data.pickles import read_npz
from dymn.data.stores import FileStore, Store, inside
from dymn.errors import DataError
from dymn.system.arrays import Floats
from dymn.system.files import open_regular, read_bounded
from dymn.weights.format import shorten

logger = logging.getLogger(__name__)

MAX_TABLE = 2**28
"""The most bytes of a table; one of AudioSet's two million clips takes a third of it."""
MAX_COLUMNS = 2**12
MAX_JSON = 2**20
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "eval", "evaluation", "evaluate"), "test"),
    "": "",
}


def read_folder(root: Path) -> tuple[Catalog, Store]:
    """One folder per class: `root/CLASS/**/*.wav`, or `root/SPLIT/CLASS/…` with splits named as in `SPLIT_NAMES`.

    A warning names folders of classes without recordings.

    Raises:
        DataError: if there is no folder or no class, if a recording is not in the folder of a class, or if there are
            both splits and other folders.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    if not any(child.is_dir() and not child.name.startswith(".") for child in root.iterdir()):
        raise DataError(
            f"{root} contains no folders. Put the clips of each class into a folder with the name of the class."
        )
    paths = [path for path in find([root]) if path.parent != root]
    keys = tuple(path.relative_to(root).as_posix() for path in paths)
    parts = [key.split("/") for key in keys]
    depth = 1 if _are_splits({part[0] for part in parts}, root) else 0
    lost = [key for key, part in zip(keys, parts, strict=True) if len(part) < depth + 2]
    if lost:
        raise DataError(f"{root / lost[0]} is not in the folder of a class.")
    if empty := _empty_folders(root, depth, {tuple(part[: depth + 1]) for part in parts}):
        logger.warning("%s contains folders without recordings, which are not used: %s.", root, shorten(empty))
    classes = [part[depth] for part in parts]
    labels = tuple(sorted(set(classes)))
    return Catalog(
        keys=keys,
        labels=labels,
        targets=multi_hot([[name] for name in classes], labels, root),
        splits=tuple(split_name(part[0], root) for part in parts) if depth else (),
    ), FileStore(paths)


def _empty_folders(root: Path, depth: int, full: set[tuple[str, ...]]) -> list[str]:
    """Return the folders of classes, or of splits without classes (`depth` 1), that are not among those with clips."""
    folders = _folders(root)
    if depth:
        folders = [below for folder in folders for below in _folders(folder) or [folder]]
    names = [folder.relative_to(root) for folder in folders]
    return [name.as_posix() for name in names if name.parts not in full]


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # of which `find` warned
        return []


def _are_splits(names: set[str], root: Path) -> bool:
    """Return whether folders are splits rather than classes, of which one may be called train.

    Raises:
        DataError: if some are splits and others are not.
    """
    known = {name for name in names if name.lower() in SPLIT_NAMES}
    if known == names:
        return bool(names)
    if len({SPLIT_NAMES[name.lower()] for name in known}) > 1:
        raise DataError(
            f"{root} contains both the splits {', '.join(sorted(known))} and {', '.join(sorted(names - known))}. "
            "Move either of them, or list the clips in a CSV file."
        )
    return False


def read_esc50(root: Path) -> tuple[Catalog, Store]:
    """ESC-50: `meta/esc50.csv` and `audio/`; five folds."""
    return _esc(root, root / "meta" / "esc50.csv", table(root / "meta" / "esc50.csv"))


def read_esc10(root: Path) -> tuple[Catalog, Store]:
    """ESC-10: `meta/esc10.csv`, or the rows of `meta/esc50.csv` that are marked as esc10; and `audio/`; five folds."""
    own = root / "meta" / "esc10.csv"
    if own.is_file():
        return _esc(root, own, table(own))
    whole = root / "meta" / "esc50.csv"
    rows = table(whole)
    _need_columns(rows, whole, "esc10")
    return _esc(root, whole, [row for row in rows if row["esc10"].strip().lower() == "true"])


def _esc(root: Path, meta: Path, rows: list[dict[str, str]]) -> tuple[Catalog, Store]:
    _need_columns(rows, meta, "filename", "fold", "target", "category")
    numbers = {row["category"]: number(row["target"], meta) for row in rows}
    labels = tuple(sorted(numbers, key=numbers.__getitem__))
    return Catalog(
        keys=tuple(row["filename"] for row in rows),
        labels=labels,
        targets=multi_hot([[row["category"]] for row in rows], labels, meta),
        folds=tuple(number(row["fold"], meta) for row in rows),
    ), FileStore([inside(root / "audio", row["filename"]) for row in rows])


def read_fsd50k(root: Path) -> tuple[Catalog, Store]:
    """FSD50K: `FSD50K.ground_truth/{dev,eval,vocabulary}.csv` next to `FSD50K.{dev,eval}_audio/`.

    The splits are those of dev.csv (train, val); the evaluation set is "test". A part that is absent is left out.
    """
    truth = root / "FSD50K.ground_truth"
    vocabulary = [row[1] for row in csv_rows(truth / "vocabulary.csv") if len(row) >= 2]
    keys: list[str] = []
    names: list[list[str]] = []
    splits: list[str] = []
    paths: list[Path] = []
    for part in ("dev", "eval"):
        listing, folder = truth / f"{part}.csv", root / f"FSD50K.{part}_audio"
        if not listing.is_file() or not folder.is_dir():
            continue
        rows = table(listing)
        _need_columns(rows, listing, "fname", "labels", *(["split"] if part == "dev" else []))
        for row in rows:
            keys.append(row["fname"])
            names.append(row["labels"].split(","))
            splits.append(split_name(row["split"], listing) if part == "dev" else "test")
            paths.append(inside(folder, f"{row['fname']}.wav"))
    if not keys:
        raise DataError(
            f"{root} contains neither FSD50K.dev_audio nor FSD50K.eval_audio with its list in FSD50K.ground_truth."
        )
    targets = multi_hot(names, vocabulary, truth)
    return Catalog(tuple(keys), tuple(vocabulary), targets, splits=tuple(splits)), FileStore(paths)


def read_openmic(root: Path) -> tuple[Catalog, Store]:
    """OpenMIC-2018: openmic-2018.npz, class-map.json, partitions/split01_{train,test}.csv and audio/KEY[:3]/KEY.ogg.

    A probability above 0.5 is positive; classes without annotation are masked.
    """
    archive = root / "openmic-2018.npz"
    arrays = read_npz(archive, ("Y_true", "Y_mask", "sample_key"))
    keys = tuple(str(key) for key in arrays["sample_key"])
    try:
        class_map = json.loads(read_bounded(root / "class-map.json", MAX_JSON))
        labels = tuple(sorted(class_map, key=class_map.__getitem__))
        numbers = sorted(class_map.values())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{root / 'class-map.json'} must map class names to columns: {error}.") from error
    if numbers != list(range(len(labels))):
        raise DataError(f"{root / 'class-map.json'} must number its classes from 0 without gaps.")
    shape = (len(keys), len(labels))
    if any(arrays[name].shape != shape or arrays[name].dtype.kind not in "biuf" for name in ("Y_true", "Y_mask")):
        raise DataError(f"{archive}: Y_true and Y_mask must both be numbers of shape {list(shape)}.")
    part = {
        row[0].strip(): split
        for split in ("train", "test")
        for row in csv_rows(root / "partitions" / f"split01_{split}.csv")
        if row and row[0].strip()
    }
    mask = arrays["Y_mask"].astype(bool)
    return Catalog(
        keys=keys,
        labels=labels,
        targets=((arrays["Y_true"] > 0.5) & mask).astype(np.float32),
        masks=mask.astype(np.uint8),
        splits=tuple(part.get(key, "") for key in keys),
    ), FileStore([inside(root / "audio", f"{key[:3]}/{key}.ogg") for key in keys])


def read_tau(root: Path) -> tuple[Catalog, Store]:
    """TAU Urban Acoustic Scenes 2020 Mobile (DCASE20), development.

    Its files are `meta.csv`, `evaluation_setup/fold1_{train,evaluate}.csv` and `audio/`. Clips that the setup leaves
    out have no split.
    """
    meta = root / "meta.csv"
    rows = table(meta, "\t")
    _need_columns(rows, meta, "filename", "scene_label")
    part: dict[str, str] = {}
    for name in ("train", "evaluate"):
        setup = root / "evaluation_setup" / f"fold1_{name}.csv"
        listed = table(setup, "\t")
        _need_columns(listed, setup, "filename")
        part.update({row["filename"]: split_name(name, setup) for row in listed})
    labels = tuple(sorted({row["scene_label"] for row in rows}))
    return Catalog(
        keys=tuple(row["filename"] for row in rows),
        labels=labels,
        targets=multi_hot([[row["scene_label"]] for row in rows], labels, meta),
        splits=tuple(part.get(row["filename"], "") for row in rows),
        groups=tuple(row.get("source_label", "") for row in rows),
    ), FileStore([inside(root, row["filename"]) for row in rows])


def multi_hot(names: Sequence[Iterable[str] | Mapping[str, float]], labels: Sequence[str], where: Path) -> Floats:
    """Return targets [N, C]: 1 where a clip has a label, or the value that a mapping gives to the label.

    Raises:
        DataError: if a clip has a label that is not among `labels`.
    """
    column = {label: c for c, label in enumerate(labels)}
    targets = np.zeros((len(names), len(labels)), dtype=np.float32)
    for row, clip in enumerate(names):
        for name in clip:
            if name not in column:
                raise DataError(f"{where} has a clip of class {name!r}, which is not among the {len(labels)} classes.")
            targets[row, column[name]] = clip[name] if isinstance(clip, Mapping) else 1.0
    return targets


def csv_rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    """Return the rows of a CSV file without interpreting a header.

    Raises:
        DataError: if the file cannot be read, is larger than `MAX_TABLE`, or has more than `MAX_COLUMNS` columns.
    """
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_TABLE:
                raise DataError(f"{path} has {size:,} bytes; a table has at most {MAX_TABLE:,}. Split it.")
            rows: list[list[str]] = []
            for row in csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=delimiter):
                if len(row) > MAX_COLUMNS:
                    raise DataError(
                        f"{path}, row {len(rows) + 1}: {len(row):,} values; a table has at most {MAX_COLUMNS:,} "
                        "columns."
                    )
                rows.append(row)
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read as a table: {reason}.") from error


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV file by column name; there is at least one.

    Raises:
        DataError: if the file cannot be read, is empty, or a row has more or fewer values than the header.
    """
    header, *rows = csv_rows(path, delimiter) or [[]]
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(f"{path} is empty; it needs a header and at least one row.")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, row {line}: {len(row)} values where the header has {len(header)}.")
    return [dict(zip((name.strip() for name in header), row, strict=True)) for row in rows]


def split_name(name: str, where: Path) -> str:
    """Return "train", "val", "test" or "" for a dataset's name of a split; raise a DataError if it is unknown."""
    if name.strip().lower() not in SPLIT_NAMES:
        raise DataError(f"{where} has a split {name!r}; allowed: {', '.join(filter(None, SPLIT_NAMES))}.")
    return SPLIT_NAMES[name.strip().lower()]


def number(text: str, where: Path) -> int:
    """Return a whole number of a table; raise a DataError if it is none."""
    try:
        value = int(text)
    except ValueError as error:
        raise DataError(f"{where}: {text!r:.80} is not a whole number.") from error
    if abs(value) >= 2**31:
        raise DataError(f"{where}: {text!r:.80} is out of range; numbers of 32 bits are allowed.")
    return value


def named_files(root: Path, splits: Mapping[str, str], default: str = "") -> dict[Path, str]:
    """Return the files of a dataset in a folder, or one file, with the split of each; a DataError if there are none."""
    if root.is_file():
        return {root: splits.get(root.name, default)}
    found = {root / name: split for name, split in splits.items() if (root / name).is_file()}
    if not found:
        raise DataError(f"{root} contains none of {', '.join(splits)}.")
    return found


def _need_columns(rows: list[dict[str, str]], where: Path, *names: str) -> None:
    for name in names:
        if not rows or name not in rows[0]:
            raise DataError(f"{where} needs a column {name}; it has {', '.join(rows[0]) if rows else 'no rows'}.")
