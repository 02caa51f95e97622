"""Tables of teacher logits, computed once for all epochs of a distillation (Sec. IV-A) and checked against the clips.

A table is one .safetensors file: `logits` [N, C] float16, `keys` (UTF-8, end to end) with `key_ends` [N], and
`fingerprints` [N] of the encoded audio that each row was made from. Its metadata names classes, models and dataset with
their digests, and holds the digest of the content. Logits are looked up by the clip's name, never by position; the
fingerprint is compared whenever a clip is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.data.published import read_array, read_labels, read_rows, rows_not_finite, without_rows
from dymn.data.source import Source
from dymn.errors import DataError
from dymn.system.files import atomic_write, open_regular
from dymn.weights.labels import audioset_labels

FORMAT = "dymn-teacher/1"
NOT_FINITE = "rows that are not finite"
MAX_HEADER = 2**26
CHUNK = 2**22
DTYPES = {"F16": "<f2", "I64": "<i8", "U8": "|u1"}

Integers = npt.NDArray[np.int64]


@dataclass(eq=False)
class TeacherTable:
    """A teacher's logits for N clips.

    Attributes:
        path: path of the file with the logits.
        keys: names of the clips.
        labels: names of the C classes; empty if a published table does not name them.
        fingerprints: fingerprint of the encoded audio of each clip [N]; 0 if unknown.
        models: name and digest of every model that was averaged.
        source_digest: digest of the dataset for which the table was written; "" if unknown.
        settings: length and filling of the clips.
        rows: row of each key in the file; None if the keys are in the order of the rows.
        n_rows: number of rows in the file, if `rows` is given.
        skipped: numbers of unused entries of the file, by kind.
    """

    path: Path
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    fingerprints: Integers
    offset: int
    dtype: str
    classes: int
    models: tuple[dict[str, str], ...] = ()
    source_digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    rows: Integers | None = None
    n_rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    _logits: npt.NDArray[np.generic] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(set(self.keys)) != len(self.keys):
            raise DataError(f"{self.path} names a clip twice.")
        if self.labels and len(self.labels) != self.classes:
            raise DataError(f"{self.path} has {self.classes} columns for {len(self.labels)} classes.")

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_logits": None}

    @property
    def logits(self) -> npt.NDArray[np.generic]:
        """The logits of all rows [N, C], memory-mapped."""
        if self._logits is None:
            n_rows = len(self.keys) if self.rows is None else self.n_rows
            self._logits = np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=(n_rows, self.classes))
        return self._logits

    @classmethod
    def open(cls, path: str | Path) -> TeacherTable:
        """Open a table of `teach`, and check that its content is complete.

        Raises:
            DataError: if the file is missing, not such a table, truncated or changed.
        """
        path = Path(path)
        metadata, places = _layout(path)
        if metadata.get("format") != FORMAT:
            raise DataError(f"{path} is not a table of teacher logits of format {FORMAT}. Create one with dymn teach.")
        try:
            labels, models, settings = (json.loads(metadata[name]) for name in ("labels", "models", "settings"))
            if not (_all_of(labels, str) and _all_of(models, dict) and isinstance(settings, dict)):
                raise ValueError("labels, models or settings are not valid")
            arrays = {name: _mapped(path, *places[name]) for name in ("keys", "key_ends", "fingerprints", "logits")}
            dtype, shape, offset = places["logits"]
            keys = _split_keys(arrays["keys"], arrays["key_ends"])
        except (KeyError, ValueError, TypeError, OSError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {error!r:.300}. Create it again with dymn teach.") from error
        if arrays["fingerprints"].shape != (len(keys),) or len(shape) != 2 or shape[0] != len(keys):
            raise DataError(
                f"{path} is damaged: {len(keys)} names, {arrays['fingerprints'].shape} fingerprints, {shape} logits."
            )
        if content_digest(metadata["labels"], arrays) != metadata.get("sha256"):
            raise DataError(f"{path} is damaged: its rows were changed or shuffled. Create it again with dymn teach.")
        return cls(
            path, keys, tuple(labels), np.asarray(arrays["fingerprints"]), offset, dtype, shape[1], tuple(models),
            str(metadata.get("source", "")), settings,
        )  # fmt: skip

    @classmethod
    def published(cls, logits: str | Path, index: str | Path, labels: Sequence[str] = ()) -> TeacherTable:
        """Open a published table: an .npy of logits [N, C], and which row belongs to which clip.

        Args:
            logits: the array; float16 or float32, memory-mapped.
            index: a .pkl or .csv, see `dymn.data.published.read_rows`. What is not used is counted in `skipped`, such
                as rows that contain NaN.
            labels: names of the columns. If not given, they are read from NAME.labels.txt next to NAME.npy, one per
                line; without such a file, 527 columns are AudioSet's classes in their published order.

        Raises:
            DataError: if a file is missing or not of this form, or the two do not belong together.
        """
        path = Path(logits)
        array = read_array(path)
        found = without_rows(read_rows(Path(index), array.rows), rows_not_finite(path, array), NOT_FINITE)
        unknown = np.zeros(len(found.keys), dtype=np.int64)
        beside = path.with_suffix(".labels.txt")
        names = tuple(labels) or (read_labels(beside) if beside.is_file() else ())
        if not names and array.columns == len(audioset_labels()):
            names = audioset_labels()
        if not found.keys:
            raise DataError(f"{path} has no row of a clip that is finite; the table is damaged.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path} has several columns for the class {twice[0]!r}; the names must differ.")
        return cls(
            path, found.keys, names, unknown, array.offset, array.dtype, array.columns,
            rows=found.rows, n_rows=array.rows, skipped=found.skipped,
        )  # fmt: skip

    def columns(self, labels: Sequence[str]) -> Integers | None:
        """Return the column of each of these classes [C], by name; None if the columns are these, in this order.

        Raises:
            DataError: if the table lacks a class, or does not name its classes.
        """
        if not self.labels:
            raise DataError(
                f"{self.path} does not name the classes of its {self.classes} columns. Write their names, one per "
                f"line, to {self.path.with_suffix('.labels.txt').name} in the same folder."
            )
        if self.labels == tuple(labels):
            return None
        place = {label: i for i, label in enumerate(self.labels)}
        missing = [label for label in labels if label not in place]
        if missing:
            raise DataError(
                f"{self.path} has logits of {self.classes} classes ({', '.join(self.labels[:3])} …), but not of "
                f"{len(missing)} of the dataset's {len(labels)}, such as {missing[0]!r}. Use a teacher that has all."
            )
        return np.array([place[label] for label in labels], dtype=np.int64)

    def _damage(self) -> str:
        return f" ({self.skipped[NOT_FINITE]} rows are not finite)" if NOT_FINITE in self.skipped else ""

    def take(self, rows: int | Integers, columns: Integers | None) -> npt.NDArray[np.generic]:
        """Return some rows of the logits [..., C], with the columns returned by `columns`."""
        logits = self.logits[rows]
        return logits if columns is None else logits[..., columns]

    def match(self, source: Source, *, partial: bool = False) -> Integers:
        """Return the row of every clip of a source [N]; -1 for clips that are not in the table.

        Raises:
            DataError: if a class or all clips are missing in the table, or some are not and `partial` is False.
        """
        self.columns(source.labels)
        numbers = range(len(self.keys)) if self.rows is None else self.rows.tolist()
        row = dict(zip(self.keys, numbers, strict=True))
        rows = np.array([row.get(key, -1) for key in source.keys], dtype=np.int64)
        found = int((rows >= 0).sum())
        if found == 0:
            raise DataError(
                f"{self.path} contains none of the {len(rows)} clips, such as {source.keys[0]!r}. It belongs to "
                "another dataset."
            )
        if found < len(rows) and not partial:
            missing = source.keys[int(np.argmin(rows))]
            raise DataError(
                f"{self.path} contains {found} of the {len(rows)} clips; {missing!r} is missing{self._damage()}. "
                "Compute the other logits, or set teacher.partial=true to use only the labels of clips without logits."
            )
        return rows


def write_table(
    path: str | Path,
    keys: Sequence[str],
    labels: Sequence[str],
    logits: npt.NDArray[np.generic],
    fingerprints: npt.NDArray[np.int64],
    *,
    models: Sequence[dict[str, str]] = (),
    source_digest: str = "",
    settings: dict[str, Any] | None = None,
) -> TeacherTable:
    """Write a table atomically and open it.

    Args:
        path: of the .safetensors file.
        keys: N names.
        labels: C names.
        logits: [N, C], may be memory-mapped; stored as float16.
        fingerprints: [N], 0 where unknown.
        models: name and digest of every model.
        source_digest: of the dataset.
        settings: how clips were cut and padded.

    Raises:
        DataError: if shapes do not fit or logits are not finite in float16.
        OSError: if the file cannot be written.
    """
    if logits.shape != (len(keys), len(labels)) or fingerprints.shape != (len(keys),):
        raise DataError(
            f"{len(keys)} names, {len(labels)} classes, logits {list(logits.shape)} and fingerprints "
            f"{list(fingerprints.shape)} do not match."
        )
    encoded = [key.encode() for key in keys]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.int64),
        "fingerprints": np.ascontiguousarray(fingerprints, dtype=np.int64),
        "logits": logits,
        "keys": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }
    label_text = json.dumps(list(labels))
    metadata = {
        "format": FORMAT,
        "labels": label_text,
        "models": json.dumps(list(models)),
        "settings": json.dumps(settings or {}),
        "source": source_digest,
        "sha256": content_digest(label_text, arrays),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, kind in (("key_ends", "I64"), ("fingerprints", "I64"), ("logits", "F16"), ("keys", "U8")):
        size = arrays[name].size * np.dtype(DTYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in ("key_ends", "fingerprints", "logits", "keys"):
            for chunk in _chunks(name, arrays[name]):
                file.write(chunk)
    return TeacherTable.open(path)


def content_digest(labels: str, arrays: dict[str, npt.NDArray[np.generic]]) -> str:
    """Return the SHA-256 of a table's classes (as JSON), names, fingerprints and logits.

    Raises:
        DataError: if logits are not finite in float16.
    """
    digest = hashlib.sha256(labels.encode())
    for name in ("keys", "key_ends", "fingerprints", "logits"):
        for chunk in _chunks(name, arrays[name]):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(name: str, array: npt.NDArray[np.generic]) -> Any:
    step = max(1, CHUNK // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        chunk = np.ascontiguousarray(array[start : start + step])
        if name == "logits":
            with np.errstate(over="ignore"):
                chunk = chunk.astype("<f2")
            if not np.isfinite(chunk).all():
                raise DataError("Logits of the teacher are not finite in float16. Check the model.")
        yield chunk.tobytes()


def _layout(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], int]]]:
    """Return metadata, and dtype, shape and place of every tensor of a .safetensors file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        places = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if len(shape) > 2 or not all(type(n) is int and 0 <= n <= size for n in (*shape, start, stop)):
                raise ValueError(f"{name:.80} has shape {shape!s:.80} at {start!s:.40} to {stop!s:.40}")
            expected = math.prod(shape) * np.dtype(dtype).itemsize
            if stop - start != expected or 8 + length + stop > size:
                raise ValueError(f"{name} is at {start} to {stop} of {size} bytes")
            places[name] = (dtype, shape, 8 + length + start)
        return dict(header["__metadata__"]), places
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Create a table with dymn teach.") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise DataError(
            f"{path} is not a table of teacher logits, or is incomplete: {error}. Create one with dymn teach."
        ) from error


def _all_of(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _mapped(path: Path, dtype: str, shape: tuple[int, ...], offset: int) -> npt.NDArray[np.generic]:
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


def _split_keys(blob: npt.NDArray[np.generic], ends: npt.NDArray[np.generic]) -> tuple[str, ...]:
    data, stops = blob.tobytes(), [int(end) for end in ends.tolist()]
    starts = [0, *stops[:-1]]
    if any(a > b for a, b in zip(starts, stops, strict=True)) or (stops and stops[-1] != len(data)):
        raise ValueError("the positions of the names are inconsistent")
    return tuple(data[a:b].decode() for a, b in zip(starts, stops, strict=True))
