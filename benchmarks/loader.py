"""Cost of loading training data: bytes and clips per second by codec, from a folder and from shards.

    python benchmarks/loader.py --corpus ../shared/kd_corpus

Clips of ten seconds are created from those of a corpus in tar shards, encoded, and loaded for training (decoded,
resampled to 32 kHz, collated) by one process, alternately from one file per clip and from shards. Results are medians
of rounds, with files in the page cache, per second of CPU time. Then files are read from the disk without decoding and
without the page cache, and clips per second of wall time are measured for each number of worker processes, once all of
them are running. The last table, the number of clips that a GPU would process, is computed, not measured.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from dymn.data import Loader, PackSettings, PlainSampler, Source, Streamed, open_source, pack
from dymn.data.packing import encode
from dymn.profiling import count
from dymn.system.cpus import available_cpus

RATE, SECONDS = 32_000, 10.0
CODECS = ("wav", "flac", "mp3", "opus")
PEAK = 989e12  # operations a second of an H100 SXM, bfloat16, dense; from its data sheet
SHARES = (0.02, 0.05, 0.10)  # of the peak; assumed


def ten_seconds(corpus: Path, n: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield clips of ten seconds: those of the corpus, one after the other, cut anew."""
    source = open_source("shards", corpus)
    samples = round(RATE * SECONDS)
    rest = np.zeros(0, dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    for _ in range(n):
        while len(rest) < samples:
            rest = np.concatenate([rest, source[order.pop()].waveform])
        yield rest[:samples]
        rest = rest[samples:]


def encoded(waveform: npt.NDArray[np.float32], codec: str) -> bytes:
    """Return a clip as a file; MP3 as in published AudioSet files: mono, 32 kHz, variable bit rate."""
    if codec != "mp3":
        return encode(waveform, RATE, codec)
    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1, 1), RATE, format="MP3", compression_level=0.5, bitrate_mode="VARIABLE")
    return file.getvalue()


def make(corpus: Path, folder: Path, n: int) -> dict[str, dict[str, Source]]:
    """Write n clips in each codec, as files and as shards of the same bytes, or take those that are there."""
    for i, waveform in enumerate([] if folder.exists() else ten_seconds(corpus, n)):
        for codec in CODECS:
            path = folder / codec / "class" / f"{i:05d}.{'ogg' if codec == 'opus' else codec}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(waveform, codec))
    sources = {}
    for codec in CODECS:
        files = open_source("folder", folder / codec)
        pack(files, folder / f"{codec}-shards", PackSettings(megabytes=16))
        sources[codec] = {"files": files, "shards": open_source("packed", folder / f"{codec}-shards")}
    return sources


def rate(source: Source, epoch: int) -> float:
    """Return clips a second of a core in an epoch, as training loads them.

    By processor time, so that others may be at work as well.
    """
    sampler = PlainSampler(len(source))
    order = sampler if source.parts is None else Streamed(sampler, source.parts, 32)
    loader = Loader(source, order, 32, seconds=SECONDS)
    start = time.process_time()
    n = sum(len(batch.keys) for batch in loader.epoch(epoch))
    return n / (time.process_time() - start)


def rate_of_workers(source: Source, epoch: int, workers: int) -> float:
    """Return the clips loaded per second by `workers` processes, once all of them have started.

    With 0 workers, this process loads the clips.
    """
    loader = Loader(source, Streamed(PlainSampler(len(source)), source.parts, 32), 32, seconds=SECONDS, workers=workers)
    batches = loader.epoch(epoch)
    for _ in range(2 * max(1, workers)):  # what they had ready when the first came
        next(batches)
    start = time.perf_counter()
    n = sum(len(batch.keys) for batch in batches)
    return n / (time.perf_counter() - start)


def read_rate(source: Source, epoch: int) -> tuple[float, float]:
    """Return clips and MB a second that come from the disk without being decoded, in the order of an epoch."""
    files = {Path(stamp.split("\0")[0]) for stamp in source.store.stamps()}
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sampler = PlainSampler(len(source))
    order = sampler if source.parts is None else Streamed(sampler, source.parts, 32)
    start = time.perf_counter()
    contents = source.read_many(order.order(epoch).tolist())
    seconds = time.perf_counter() - start
    n_bytes = sum(len(content) for content in contents.values() if isinstance(content, bytes))
    return len(contents) / seconds, n_bytes / 1e6 / seconds


def measure(sources: dict[str, dict[str, Source]], rounds: int) -> list[dict[str, object]]:
    """Return rates of all, in turns."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for epoch, codec, kind in itertools.product(range(rounds), CODECS, ("files", "shards")):
        source = sources[codec][kind]
        found.setdefault((codec, kind), []).append((rate(source, epoch), *read_rate(source, epoch)))
    rows = []
    for (codec, kind), values in found.items():
        loaded, read, megabytes = (statistics.median(column) for column in zip(*values, strict=True))
        size = float(sources[codec][kind].sizes.mean())
        rows.append(
            {
                "codec": codec,
                "from": kind,
                "bytes": round(size),
                "clips/s": round(loaded, 1),
                "read clips/s": round(read),
                "read MB/s": round(megabytes),
            }
        )
    return rows


def scaling(sources: dict[str, dict[str, Source]], rounds: int, workers: tuple[int, ...]) -> list[dict[str, object]]:
    """Return clips a second from shards for each number of worker processes, in turns."""
    found: dict[tuple[str, int], list[float]] = {}
    for epoch, codec, n in itertools.product(range(rounds), CODECS, workers):
        found.setdefault((codec, n), []).append(rate_of_workers(sources[codec]["shards"], epoch, n))
    return [
        {"codec": codec, "workers": n, "clips/s": round(statistics.median(values), 1)}
        for (codec, n), values in found.items()
    ]


def appetite(clips_per_core: float) -> list[dict[str, object]]:
    """Return how many clips an H100 would learn from in a second, and how many cores would feed it."""
    rows: list[dict[str, object]] = []
    for name in ("dymn04", "dymn10", "dymn20"):
        macs = count(name).macs
        for share in SHARES:
            clips = PEAK * share / (2 * 3 * macs)  # two operations a multiply-add; backward twice the forward
            rows.append(
                {
                    "model": name,
                    "MACs": round(macs / 1e6),
                    "share": share,
                    "clips/s": round(clips),
                    "cores": round(clips / clips_per_core, 1),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("../shared/kd_corpus"), metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=192, metavar="NUMBER")
    parser.add_argument("--rounds", type=int, default=5, metavar="NUMBER")
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="The folder of the clips, which are created if they do not exist."
    )
    parser.add_argument("--workers", action="store_true", help="Measure worker processes instead.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sources = make(options.corpus, options.folder or Path(name) / "clips", options.clips)
        if options.workers:
            rows = scaling(sources, options.rounds, tuple(sorted({0, 1, 2, available_cpus()})))
        elif options.rounds:
            rows = measure(sources, options.rounds)
            rows += appetite(
                next(float(str(row["clips/s"])) for row in rows if (row["codec"], row["from"]) == ("flac", "shards"))
            )
        else:
            rows = []
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
