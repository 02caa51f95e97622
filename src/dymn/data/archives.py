"""Datasets in archives: tar shards (WebDataset) and the HDF5 files of PaSST and EfficientAT."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.data.catalog import Catalog
from dymn.data.packed import INDEX_FILE, is_packed_clip
from dymn.data.readers import csv_rows, multi_hot, named_files, split_name, table
from dymn.data.stores import MAX_BYTES, FilePool, Hdf5Store, Store, open_hdf5, read_member, reading_hdf5, tar_store
from dymn.data.tar import Member, tar_members
from dymn.errors import DataError
from dymn.system.files import open_regular
from dymn.weights.labels import audioset_labels, numbered_labels

AUDIO_SUFFIXES = (".opus", ".ogg", ".flac", ".wav", ".mp3")
MAX_JSON = 2**20
FSD50K_CLASSES = 200
_OPENMIC_NAMES = (
    "accordion banjo bass cello clarinet cymbals drums flute guitar mallet_percussion mandolin organ piano saxophone "
    "synthesizer trombone trumpet ukulele violin voice"
)
OPENMIC_CLASSES = tuple(_OPENMIC_NAMES.split())
HDF5_COLUMNS = ("audio_name", "mp3", "target")
AUDIOSET_FILES = {
    "balanced_train_segments_mp3.hdf": "train",
    "unbalanced_train_segments_mp3.hdf": "train",
    "eval_segments_mp3.hdf": "test",
}
FSD50K_FILES = {"FSD50K.train_mp3.hdf": "train", "FSD50K.val_mp3.hdf": "val", "FSD50K.eval_mp3.hdf": "test"}
OPENMIC_FILES = {"openmic_train.csv_mp3.hdf": "train", "openmic_test.csv_mp3.hdf": "test"}


def read_shards(root: Path, *, labels: Sequence[str] | None = None) -> tuple[Catalog, Store]:
    """WebDataset shards: members KEY.opus (or another audio format) with KEY.json next to it.

    The shards are in `root` or `root/shards`, or `root` is one of them. An `index.csv` (key, shard, split) in `root`,
    if there is one, gives order and splits and must agree with the archives. The list "labels" in a clip's JSON
    annotates it; a clip without one is not annotated (its mask is 0). Clips whose keys an `exclude.csv` (key) in `root`
    lists are left out. If `root` contains several such folders, they are read as one dataset, in the order of their
    names.

    Args:
        root: folder or tar file.
        labels: names of the classes; None for AudioSet's.

    Raises:
        DataError: if there are no shards, a shard is damaged or one of `dymn shards`, or index and shards disagree.
    """
    corpora = (
        [root]
        if _shards(root)
        else sorted({path.parent for pattern in ("*/*.tar", "*/shards") for path in root.glob(pattern)})
    )
    read = [_read_corpus(corpus) for corpus in corpora if _shards(corpus)]
    if not read:
        raise DataError(f"Neither {root} nor {root / 'shards'} contains .tar files.")
    found = [entry for entries, _ in read for entry in entries]
    with_splits = [bool(splits) for _, splits in read]
    if any(with_splits) != all(with_splits):
        raise DataError(f"Some folders in {root} have an index.csv with splits and others do not. Add one to each.")
    classes = tuple(labels) if labels is not None else audioset_labels()
    files = FilePool(open_regular)
    names = [_json_labels(entry.annotation, entry.key, files) for entry in found]
    annotated = np.array([clip is not None for clip in names], dtype=np.uint8)
    return Catalog(
        keys=tuple(entry.key for entry in found),
        labels=classes,
        targets=multi_hot([clip or () for clip in names], classes, root),
        masks=None if annotated.all() else np.repeat(annotated[:, None], len(classes), axis=1),
        splits=tuple(split for _, splits in read for split in splits),
    ), tar_store([entry.audio for entry in found])


class _Entry(NamedTuple):
    """A clip in shards."""

    key: str
    shard: str
    audio: Member
    annotation: Member | None


def _shards(root: Path) -> list[Path]:
    return [root] if root.is_file() else sorted(root.glob("*.tar")) or sorted((root / "shards").glob("*.tar"))


def _read_corpus(root: Path) -> tuple[list[_Entry], list[str]]:
    """Return the clips of a folder of shards (or of one shard), and their splits if an index lists them."""
    found: list[_Entry] = []
    for shard in _shards(root):
        members = tar_members(shard)
        for name, member in members.items():
            path = PurePosixPath(name)
            if path.suffix.lower() in AUDIO_SUFFIXES:
                key = path.with_suffix("").as_posix()
                found.append(_Entry(key, shard.name, member, members.get(f"{key}.json")))
    index, excluded = root / "index.csv", root / "exclude.csv"
    splits: list[str] = []
    if index.is_file():
        rows = table(index)
        listed, stored = [(row.get("key", ""), row.get("shard", "")) for row in rows], [entry[:2] for entry in found]
        if listed != stored:
            first = next(
                (i for i, (a, b) in enumerate(zip(listed, stored, strict=False)) if a != b),
                min(len(listed), len(stored)),
            )
            raise DataError(
                f"{index} lists {len(listed)} clips, but the shards contain {len(stored)}; they differ from row "
                f"{first}. Use both from the same release."
            )
        splits = [split_name(row["split"], index) for row in rows] if "split" in rows[0] else []
    if excluded.is_file():
        left_out = {row.get("key", "") for row in table(excluded)}
        kept = [i for i, entry in enumerate(found) if entry.key not in left_out]
        found, splits = [found[i] for i in kept], [splits[i] for i in kept] if splits else []
    return found, splits


def _json_labels(member: Member | None, key: str, files: FilePool[BinaryIO]) -> list[str] | None:
    if member is None:
        return None
    if member.size > MAX_JSON:
        raise DataError(f"A JSON member of {member.path} has {member.size} bytes; at most {MAX_JSON} are allowed.")
    try:
        about = json.loads(read_member(member, files))
        names, is_packed = about.get("labels"), is_packed_clip(about) and about["key"] != key
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"A JSON member of {member.path} at byte {member.offset} is not an object: {error}.") from error
    if is_packed:  # its members have numbers, not keys; its classes, splits and folds need the index
        raise DataError(
            f"{member.path} was written by dymn shards and is read with the {INDEX_FILE} of its folder. Give the whole "
            f"folder; if it has no {INDEX_FILE}, it is incomplete: copy it, or pack the dataset, again."
        )
    if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return names
    raise DataError(f"A JSON member of {member.path} at byte {member.offset}: labels must be a list of names.")


def read_audioset_hdf5(root: Path) -> tuple[Catalog, Store]:
    """AudioSet: {balanced_train,unbalanced_train,eval}_segments_mp3.hdf in `root`, or one such file, by YouTube id."""
    return _packed(root, AUDIOSET_FILES, audioset_labels(), prefix="Y")


def read_fsd50k_hdf5(root: Path) -> tuple[Catalog, Store]:
    """FSD50K: FSD50K.{train,val,eval}_mp3.hdf in `root`, or one such file.

    The files hold no class names; with FSD50K's vocabulary.csv next to them the classes are called by their names.

    Raises:
        DataError: if the vocabulary is not that of the columns, or a file is damaged.
    """
    vocabulary = (root if root.is_dir() else root.parent) / "vocabulary.csv"
    labels = _fsd50k_labels(vocabulary) if vocabulary.is_file() else numbered_labels(FSD50K_CLASSES)
    return _packed(root, FSD50K_FILES, labels)


def _fsd50k_labels(vocabulary: Path) -> tuple[str, ...]:
    """Return the names of the columns: the 200 of FSD50K's vocabulary in alphabetical order; else raise a DataError."""
    rows = [row for row in csv_rows(vocabulary) if row]
    names = tuple(row[1] for row in rows if len(row) >= 2)
    numbered = [row[0].strip() for row in rows] == [str(c) for c in range(FSD50K_CLASSES)]
    if not numbered or len(set(names)) != FSD50K_CLASSES or list(names) != sorted(names):
        raise DataError(
            f"{vocabulary} is not FSD50K's vocabulary: {FSD50K_CLASSES} names in alphabetical order, numbered from 0, "
            "as the columns of the HDF5 files are. Put FSD50K.ground_truth/vocabulary.csv there, or remove it to call "
            "the classes class_0, class_1 and so on."
        )
    return names


def read_openmic_hdf5(root: Path) -> tuple[Catalog, Store]:
    """OpenMIC-2018: openmic_{train,test}.csv_mp3.hdf in `root`, or one such file; 20 probabilities, then 20 masks."""
    files = named_files(root, OPENMIC_FILES)
    keys, rows, splits, values = _columns(files)
    classes = len(OPENMIC_CLASSES)
    for path, value in zip(files, values, strict=True):
        if value.ndim != 2 or value.shape[1] != 2 * classes:
            raise DataError(f"{path}: target has shape {list(value.shape)}; it must have {2 * classes} columns.")
    target = np.concatenate(values)
    mask = target[:, classes:] > 0.5
    return Catalog(
        keys=keys,
        labels=OPENMIC_CLASSES,
        targets=((target[:, :classes] > 0.5) & mask).astype(np.float32),
        masks=mask.astype(np.uint8),
        splits=splits,
    ), Hdf5Store(rows, "mp3")


def _packed(root: Path, names: Mapping[str, str], labels: tuple[str, ...], prefix: str = "") -> tuple[Catalog, Store]:
    files = named_files(root, names)
    keys, rows, splits, values = _columns(files, prefix)
    columns = (len(labels) + 7) // 8
    for path, value in zip(files, values, strict=True):
        if value.dtype != np.uint8 or value.ndim != 2 or value.shape[1] != columns:
            raise DataError(
                f"{path}: target is {value.dtype} {list(value.shape)}; for {len(labels)} classes it must have "
                f"{columns} columns of uint8."
            )
        if np.unpackbits(value[:, -1:], axis=1)[:, len(labels) - 8 * (columns - 1) :].any():  # bits of no class
            raise DataError(f"{path}: target has more classes than the {len(labels)} of this dataset.")
    return Catalog(keys, labels, np.concatenate(values), splits=splits, packed=True), Hdf5Store(rows, "mp3")


def _columns(
    files: Mapping[Path, str], prefix: str = ""
) -> tuple[tuple[str, ...], list[tuple[Path, int]], tuple[str, ...], list[npt.NDArray[Any]]]:
    """Return keys, files with their numbers of rows, splits, and the targets of each file."""
    keys: list[str] = []
    rows: list[tuple[Path, int]] = []
    splits: list[str] = []
    values: list[npt.NDArray[Any]] = []
    for path, split in files.items():
        with reading_hdf5(path), open_hdf5(path) as file:
            missing = [name for name in HDF5_COLUMNS if not _plain(file, name)]
            if missing:
                raise DataError(f"{path} has no dataset {', '.join(missing)}; it contains {', '.join(file)}.")
            vast = [name for name in HDF5_COLUMNS if not _bounded(file[name], whole=name != "mp3")]
            if vast:
                raise DataError(
                    f"{path}: {', '.join(vast)} would take more than {MAX_BYTES:,} bytes of memory. Split the file."
                )
            names = [PurePosixPath(_text(name)).stem.removeprefix(prefix) for name in file["audio_name"][:]]
            value = np.asarray(file["target"][:])
            if not len(names) == len(value) == len(file["mp3"]):
                raise DataError(
                    f"{path}: audio_name, mp3 and target have {len(names)}, {len(file['mp3'])} and {len(value)} rows."
                )
        keys += names
        rows.append((path, len(names)))
        splits += [split] * len(names)
        values.append(value)
    return tuple(keys), rows, tuple(splits) if any(splits) else (), values


def _plain(file: Any, name: str) -> bool:
    """Whether a name is a dataset with rows in this very file: a link or an external block could name any file."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return False
    dataset = file[name]
    return (
        isinstance(dataset, h5py.Dataset) and dataset.ndim > 0 and dataset.external is None and not dataset.is_virtual
    )


def _bounded(dataset: Any, whole: bool) -> bool:
    """Whether reading a dataset, or a row of it, takes bounded memory; a chunk may unpack to 1000 times its size."""
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    return chunk <= MAX_BYTES and not (whole and dataset.size * dataset.dtype.itemsize > MAX_BYTES)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
