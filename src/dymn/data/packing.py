"""Packing a dataset into tar shards, so that training reads few large files sequentially.

The layout is described in `dymn.data.packed`. Which clips a shard holds is settled before any is read, by the seed and
by their number. Each shard is then the work of one process, and of no other; a run that was killed makes those that are
missing, and the result is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from torch.utils.data import DataLoader, Dataset

import dymn
from dymn.audio.content import spool
from dymn.data.batch import as_it_is, first_bad, read_bad, write_bad
from dymn.data.cache import Progress
from dymn.data.packed import INDEX_FILE, WORK_FOLDER, Index, read_index, write_index
from dymn.data.source import Source, fingerprint_of
from dymn.errors import AudioError, ConfigError, DataError, resource_error
from dymn.system.arrays import Floats
from dymn.system.files import atomic_write, digest_of, locked, remove_folder

BAD_FILE = "bad_clips.csv"
PLAN_FILE = "plan.json"
ESTIMATED_FROM = 64  # clips, spread over all, from whose sizes the number per shard is estimated
OPUS_RATE = 48_000
ENCODINGS = {"keep": ("", ""), "flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16"), "opus": ("OGG", "OPUS")}
BEGINNINGS = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3", b"\xff\xf3": "mp3"}


@dataclass(frozen=True)
class PackSettings:
    """How shards are made; the same settings and the same data give the same shards.

    Attributes:
        encoding: "keep" for unchanged audio, or a key of `ENCODINGS`: 16 bits at the source's sample rate (opus: 48
            kHz).
        clips: number of clips per shard; 0 for as many as fit into about `megabytes`.
        megabytes: size of a shard.
        seed: seed of the order of the clips; None keeps their order.
    """

    encoding: str = "keep"
    clips: int = 0
    megabytes: float = 256.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"encoding is {self.encoding!r}; allowed: {', '.join(ENCODINGS)}.")
        if self.clips < 0 or not self.megabytes > 0 or (self.seed is not None and self.seed < 0):
            raise ConfigError(
                f"clips, megabytes and seed are {self.clips}, {self.megabytes} and {self.seed}; clips and seed must be "
                "at least 0, megabytes above 0."
            )


@dataclass(frozen=True)
class Packed:
    """What was packed: the index, and the reason by name of each clip that was left out."""

    index: Index
    bad: dict[str, str]


def pack(
    source: Source,
    out: str | Path,
    settings: PackSettings | None = None,
    *,
    task: dict[str, Any] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Packed:
    """Pack all clips of a source into shards; each split has shards of its own.

    Every clip is decoded once; clips that cannot be decoded are left out and listed in bad_clips.csv. After an
    interruption, the same call packs the remaining clips; if all are packed, it does nothing.

    Args:
        source: the whole dataset.
        out: folder of the shards.
        settings: encoding, size and order of the shards.
        task: kind of the data, and the properties of its `TaskSpec`, as JSON types.
        workers: number of processes that write shards at the same time; 0 uses this process.
        progress: called with the number of packed clips and their total.

    Raises:
        ConfigError: if the folder contains other files, or shards of other data or settings.
        DataError: if no clip can be read.
        ResourceError: if memory runs out, or a process was killed; the same call resumes.
        OSError: if the folder cannot be written to.
    """
    settings, out = settings or PackSettings(), Path(out)
    if source.catalog.spans is not None:
        raise DataError(
            "Clips that are parts of files (columns start and end) cannot be packed. Cut the files into clips first."
        )
    made = {"source": source.digest, "sample_rate": source.sample_rate, **dataclasses.asdict(settings)}
    out.mkdir(parents=True, exist_ok=True)
    work = out / WORK_FOLDER
    if not (out / INDEX_FILE).exists() and not work.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty. Give an empty or new folder.")
    work.mkdir(exist_ok=True)
    with locked(work / "lock"):
        if (out / INDEX_FILE).exists():
            index = read_index(out)
            _same(out, index.values.get("made"), made)
        else:
            index = _make(source, out, settings, made, task or {}, workers, progress)
    remove_folder(work)  # another process that waited for the same shards does so, too
    return Packed(index, read_bad(out / BAD_FILE))


def _make(
    source: Source,
    out: Path,
    settings: PackSettings,
    made: dict[str, Any],
    task: dict[str, Any],
    workers: int,
    progress: Progress | None,
) -> Index:
    plan_file = out / WORK_FOLDER / PLAN_FILE
    # what a kill in the middle of writing left
    for unfinished in (*out.glob(".*.part"), *plan_file.parent.glob(".*.part")):
        unfinished.unlink()
    if plan_file.exists():
        begun = json.loads(plan_file.read_text(encoding="utf-8"))
        _same(out, begun["made"], made)
        count = int(begun["count"])
    else:
        count = settings.clips or _clips_of(settings.megabytes, source, settings.encoding)
        _write_json(plan_file, {"made": made, "count": count})
    shards = _Shards(source, out, settings.encoding, _plan(source, count, settings.seed))
    loader = DataLoader(shards, batch_size=None, num_workers=workers, collate_fn=as_it_is, generator=torch.Generator())
    done = 0
    try:
        for clips in loader:
            if isinstance(clips, OSError):
                raise clips
            done += clips
            if progress is not None:
                progress(done, len(source))
    except (RuntimeError, MemoryError) as error:
        if (known := resource_error(error)) is None:
            raise
        raise known from error
    return _write_index(shards, made, task)


def _write_index(shards: _Shards, made: dict[str, Any], task: dict[str, Any]) -> Index:
    source, out = shards.source, shards.out
    reports = [json.loads(shards.report(number).read_text(encoding="utf-8")) for number in range(len(shards))]
    bad = {source.keys[i]: reason for report in reports for i, reason in report["bad"]}
    whole = [report for report in reports if report["clips"]]
    rows = np.array(
        [[part, *row] for part, report in enumerate(whole) for row in report["clips"]], dtype=np.int64
    ).reshape(-1, 6)
    if not len(rows):
        raise DataError(f"No clip of {source.name or 'the dataset'} can be read: {first_bad(bad) or 'it is empty'}.")
    write_bad(out / BAD_FILE, bad)
    catalog = source.catalog.take(rows[:, 1].tolist())
    values = {
        "labels": list(catalog.labels),
        "task": task,
        "clips": len(rows),
        "hours": round(float(rows[:, 5].sum()) / source.sample_rate / 3600, 4),
        "bytes": sum(report["bytes"] for report in whole),
        "splits": {name: catalog.splits.count(name) for name in sorted(set(catalog.splits))},
        "bad": len(bad),
        "made": made,
        "provenance": {"dymn": dymn.__version__, "data": source.name},
        "shards": [
            {"clips": len(report["clips"]), **{name: report[name] for name in ("name", "bytes", "sha256")}}
            for report in whole
        ],
    }
    write_index(out, catalog, rows[:, [0, 2, 3]], rows[:, 4] if made["encoding"] != "keep" else None, values)
    return read_index(out)


class _Shards(Dataset["int | OSError"]):
    """Creates a shard on access, unless it exists; returns its number of clips."""

    def __init__(self, source: Source, out: Path, encoding: str, plan: list[tuple[str, list[int]]]) -> None:
        self.source, self.out, self.encoding, self.plan = source, out, encoding, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> int | OSError:
        try:
            if not self.report(number).exists():
                self.make(number)
        except OSError as error:
            return error
        return len(self.plan[number][1])

    def report(self, number: int) -> Path:
        """Return the path of the report on a complete shard."""
        return self.out / WORK_FOLDER / f"{self.plan[number][0]}.json"

    def make(self, number: int) -> None:
        """Write a shard, and then its report."""
        name, positions = self.plan[number]
        clips: list[tuple[int, ...]] = []
        bad: list[tuple[int, str]] = []
        path = self.out / f"{name}.tar"
        with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for i in positions:
                try:
                    content, suffix, fingerprint, samples = self.encoded(i)
                except (AudioError, DataError, OSError) as error:
                    bad.append((i, str(error) or type(error).__name__))
                    continue
                base = f"{i:09d}"  # unique in all shards
                clips.append((i, archive.offset + tarfile.BLOCKSIZE, len(content), fingerprint, samples))
                _add(archive, f"{base}.{suffix}", content)
                about = {**described(self.source, i), "seconds": round(samples / self.source.sample_rate, 3)}
                _add(archive, f"{base}.json", json.dumps(about, ensure_ascii=False).encode())
        if not clips:
            path.unlink()
        digest, size = "", 0
        if clips:
            with path.open("rb") as file:
                digest, size = digest_of(file), file.seek(0, os.SEEK_END)
        _write_json(
            self.report(number), {"name": path.name, "bytes": size, "sha256": digest, "clips": clips, "bad": bad}
        )

    def encoded(self, i: int) -> tuple[bytes, str, int, int]:
        """Return a clip's bytes, their suffix, the fingerprint of the original bytes, and the number of samples."""
        content = self.source.store.read(int(self.source.indices[i]))
        waveform = self.source.decode(i, content)
        fingerprint, samples = fingerprint_of(content), len(waveform)
        if self.encoding == "keep":
            return content, _suffix(content, self.source.keys[i]), fingerprint, samples
        return encode(waveform, self.source.sample_rate, self.encoding), self.encoding, fingerprint, samples


def encode(waveform: Floats, sample_rate: int, encoding: str) -> bytes:
    """Return a waveform [N] as an audio file; what is louder than full scale is clipped.

    Args:
        waveform: mono samples.
        sample_rate: of the waveform, in Hz; opus is resampled to 48 kHz.
        encoding: "flac", "wav" (both 16 bits) or "opus".

    Raises:
        AudioError: if the encoder does not take it.
    """
    if encoding == "opus":
        samples: npt.NDArray[Any] = np.clip(soxr.resample(waveform, sample_rate, OPUS_RATE), -1, 1)
        sample_rate = OPUS_RATE
    else:
        samples = np.clip(np.rint(waveform * 32_768.0), -32_768, 32_767).astype(np.int16)
    form, subtype = ENCODINGS[encoding]
    try:
        # libsndfile writes to its descriptor itself: a signal is not lost in a callback of Python
        with spool() as file:
            if os.name != "posix":
                memory = io.BytesIO()
                soundfile.write(memory, samples, sample_rate, format=form, subtype=subtype)
                return memory.getvalue()
            soundfile.write(file.descriptor, samples, sample_rate, format=form, subtype=subtype, closefd=False)
            content = file.content()
            return content.at(0, content.size)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"It cannot be written as {encoding} at {sample_rate} Hz ({error.error_string}). Choose another encoding."
        ) from error


def described(source: Source, i: int) -> dict[str, Any]:
    """Return the JSON object next to a clip: its name, labels (or their probabilities), split, fold and group."""
    row = slice(i, i + 1)
    target, mask, catalog = source.catalog.target_rows(row)[0], source.catalog.mask_rows(row)[0], source.catalog
    about: dict[str, Any] = {"key": source.keys[i]}
    if mask.any():
        about["labels"] = [label for label, value in zip(source.labels, target, strict=True) if value > 0]
        if not np.isin(target, (0, 1)).all():
            about["probabilities"] = [round(float(value), 6) for value in target if value > 0]
        if not mask.all():
            about["annotated"] = [label for label, value in zip(source.labels, mask, strict=True) if value > 0]
    if catalog.splits:
        about["split"] = catalog.splits[i]
    if catalog.folds:
        about["fold"] = catalog.folds[i]
    if catalog.groups:
        about["group"] = catalog.groups[i]
    return about


def _plan(source: Source, count: int, seed: int | None) -> list[tuple[str, list[int]]]:
    """Return the name of each shard and the positions of its clips."""
    splits = np.array(source.catalog.splits or [""] * len(source))
    plan = []
    for number, split in enumerate(("train", "val", "test", "")):
        positions = np.flatnonzero(splits == split)
        if seed is not None:
            positions = np.random.default_rng((seed, number)).permutation(positions)
        parts = np.array_split(positions, max(1, -(-len(positions) // count)))
        plan += [(f"{split or 'clips'}-{i:06d}", part.tolist()) for i, part in enumerate(parts) if len(part)]
    return plan


def _clips_of(megabytes: float, source: Source, encoding: str) -> int:
    """Return how many clips make a shard of a size, by those of some of them."""
    looked_at = range(0, len(source), max(1, len(source) // ESTIMATED_FROM))
    shards = _Shards(source, Path(), encoding, [])
    sizes = []
    for i in looked_at:
        with contextlib.suppress(AudioError, DataError, OSError):
            sizes.append(len(shards.encoded(i)[0]) + 3 * tarfile.BLOCKSIZE)
    return max(1, round(megabytes * 2**20 * len(sizes) / max(1, sum(sizes))))


def _suffix(content: bytes, key: str) -> str:
    """Return the suffix of an audio format. Names in a shard take no more than a few plain letters from the data."""
    if content.startswith(b"OggS") and b"OpusHead" in content[:64]:
        return "opus"
    for beginning, suffix in BEGINNINGS.items():
        if content.startswith(beginning):
            return suffix
    found = re.search(r"\.([a-z0-9]{1,5})$", key.lower())
    return found[1] if found and found[1] != "json" else "audio"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _same(out: Path, before: Any, now: dict[str, Any]) -> None:
    before = before if isinstance(before, dict) else {}
    differing = [
        f"{name} was {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"{out} contains shards of another dataset or other settings: {'; '.join(differing)}. Give another folder."
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values).encode())
