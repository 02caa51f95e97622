"""Decoded clips on disk, as 16-bit samples that are memory-mapped.

Decoding Opus or MP3 in each epoch takes more time than a small network. A cache is a folder named after the digest of
the dataset, including the times of its files, the sample rate and the longest clip, so a changed file leads to a new
cache. It appears when it is complete, and processes that need it at the same time build it only once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from dymn.data.batch import BadClip
from dymn.data.source import Cut, Source
from dymn.errors import DataError
from dymn.system.arrays import Floats
from dymn.system.files import atomic_write, locked, remove_folder

logger = logging.getLogger(__name__)

FORMAT = "dymn-decoded/2"
ARRAYS = ("starts", "ends", "scales", "fingerprints", "crcs")
FULL_SCALE = 32_767.0
PCM = npt.NDArray[np.int16]
Progress = Callable[[int, int], None]


class DecodedCache:
    """The decoded clips of a dataset, by position in its catalog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            with np.load(folder / "index.npz", allow_pickle=False) as index:
                self.starts, self.ends, self.scales, self.fingerprints, self.crcs = (index[name] for name in ARRAYS)
            self.bad: dict[int, str] = {int(i): reason for i, reason in meta["bad"].items()}
            samples = (folder / "audio.i16").stat().st_size // 2
        except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"The cache {folder} is damaged: {error!r}. Delete the folder; it will be created again."
            ) from error
        if meta.get("format") != FORMAT or samples != (int(self.ends.max()) if len(self.ends) else 0):
            raise DataError(
                f"The cache {folder} is incomplete or of another format. Delete the folder; it will be created again."
            )
        self._audio: PCM | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_audio": None}

    def read(self, i: int, cut: Cut | None = None) -> tuple[Floats, int] | str:
        """Return waveform [N], passed through `cut`, and fingerprint of a clip, or why it could not be decoded."""
        found = self.quantised(i)
        if isinstance(found, str):
            return found
        samples, scale, fingerprint = found
        if cut is not None:
            samples = cut(samples)
        return samples * np.float32(scale / FULL_SCALE), fingerprint

    def quantised(self, i: int) -> tuple[PCM, float, int] | str:
        """Return a clip's 16-bit samples [N], their full-scale value and its fingerprint, or why decoding failed."""
        if i in self.bad:
            return self.bad[i]
        if self._audio is None:
            self._audio = np.memmap(self.folder / "audio.i16", np.int16, mode="r")
        samples = self._audio[self.starts[i] : self.ends[i]]
        if zlib.crc32(samples.data) != self.crcs[i]:
            return f"the cache is damaged; delete {self.folder}, which will be created again"
        return samples, float(self.scales[i]), int(self.fingerprints[i])


def cached(source: Source, directory: str | Path, *, workers: int = 0, progress: Progress | None = None) -> Source:
    """Return the source with its whole dataset decoded on disk (all splits; built now if it is not there yet).

    Samples are rounded to 16 bits. At 32 kHz an hour takes 230 MB.

    Args:
        source: any split of the dataset.
        directory: the folder of the caches.
        workers: processes that decode while the cache is built.
        progress: called with the clips done and their total.

    Raises:
        DataError: if the cache is damaged or the disk is full.
    """
    parent = Path(directory)
    folder = parent / _name(source)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            with locked(parent / f"{folder.name}.lock"):
                if not folder.is_dir():
                    _build(source.where_all(), folder, workers, progress)
    except OSError as error:
        raise DataError(
            f"The cache {folder} cannot be created: {error}. Give another folder, or disable the cache."
        ) from error
    return source.with_decoded(DecodedCache(folder))


def _name(source: Source) -> str:
    parts = (FORMAT, source.where_all().stamp(), str(source.sample_rate), str(source.max_seconds))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Quantised(Dataset["tuple[PCM, float, int] | str"]):
    """The clips of a source in 16 bits: samples, their full-scale value and a fingerprint, or why there are none."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[PCM, float, int] | str:
        if isinstance(self.source.decoded, DecodedCache):
            return self.source.decoded.quantised(int(self.source.indices[i]))
        read = self.source.read(i)
        if isinstance(read, BadClip):
            return read.reason
        waveform, fingerprint = read
        scale = max(1.0, float(np.abs(waveform).max()))
        return np.rint(waveform * np.float32(FULL_SCALE / scale)).astype(np.int16), scale, fingerprint


def _build(source: Source, folder: Path, workers: int, progress: Progress | None) -> None:
    part = folder.with_name(f"{folder.name}.part")
    remove_folder(part)
    part.mkdir()
    try:
        _fill(source, part, workers, progress)
    except BaseException:
        remove_folder(part)
        raise
    os.replace(part, folder)


def quantised(source: Source, workers: int = 0) -> Iterator[tuple[PCM, float, int] | str]:
    """Yield the clips of a source as `Quantised` gives them, decoded by so many processes."""
    loader = DataLoader(
        Quantised(source), batch_size=8, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    return (item for batch in loader for item in batch)


def _fill(source: Source, folder: Path, workers: int, progress: Progress | None) -> None:
    n = len(source)
    logger.info("Decoding %d clips into %s, once for all epochs.", n, folder)
    starts, ends, fingerprints, crcs = (np.zeros(n, dtype=np.int64) for _ in range(4))
    scales = np.ones(n, dtype=np.float32)
    bad: dict[int, str] = {}
    end = 0
    with (folder / "audio.i16").open("wb") as file:
        for i, item in enumerate(quantised(source, workers)):
            starts[i] = end
            if isinstance(item, str):
                bad[i] = item
            else:
                samples, scales[i], fingerprints[i] = item
                file.write(samples.tobytes())
                crcs[i] = zlib.crc32(samples.data)
                end += len(samples)
            ends[i] = end
            if progress is not None:
                progress(i + 1, n)
        file.flush()
        os.fsync(file.fileno())
    with atomic_write(folder / "index.npz") as index:
        np.savez(index, starts=starts, ends=ends, scales=scales, fingerprints=fingerprints, crcs=crcs)
    (folder / "meta.json").write_text(json.dumps({"format": FORMAT, "name": source.name, "bad": bad}), encoding="utf-8")
