"""Creates the background that `dymn fit` includes: embeddings of clips of all kinds, computed by `dymn04_open`.

    python benchmarks/general_background.py CORPUS

Run it whenever the weights of `dymn04_open` change; until then, `dymn fit` does not use the background. CORPUS is a
folder of shards as for `fit.py`. 800 of its training clips of 2 seconds or more are drawn evenly from one half of the
sources; `fit.py` measures false alarms on the other half. The same corpus gives the same clips for any weights.
"""

from __future__ import annotations

import argparse
import csv
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dymn.fitting import general
from dymn.inference.embedding import Embedder, EmbedSettings
from dymn.runtime.opening import open_backend
from dymn.weights import open_checkpoint

COUNT = 800
SHORTEST = 2.0
HALF = 0


def drawn(folder: Path, count: int) -> list[str]:
    """Return the keys of clips of a corpus, sorted: of each source one after the other, until there are enough."""
    excluded = folder / "exclude.csv"
    left_out = {row["key"] for row in csv.DictReader(excluded.open())} if excluded.exists() else set[str]()
    of_source: dict[str, list[str]] = {}
    for row in csv.DictReader((folder / "index.csv").open()):
        usable = row["split"] == "train" and float(row["duration_s"]) >= SHORTEST and row["key"] not in left_out
        if usable and zlib.crc32(row["source"].encode()) % 2 == HALF:
            of_source.setdefault(row["source"], []).append(row["key"])
    rng, found = np.random.default_rng(0), list[str]()
    queues = [rng.permutation(of_source[name]).tolist() for name in sorted(of_source)]
    while len(found) < count and any(queues):
        found += [queue.pop() for queue in queues if queue]
    return sorted(found[:count])


def sounds(folder: Path, keys: set[str]) -> Iterator[BinaryIO]:
    """Yield the clips of these keys."""
    for shard in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as members:
            for member in members:
                stem, _, ending = member.name.rpartition(".")
                if ending == "opus" and stem in keys:
                    yield io.BytesIO(members.extractfile(member).read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="dymn04_open")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--output", type=Path, default=Path(general.__file__).with_name(general.FILE))
    asked = parser.parse_args()
    stored = open_checkpoint(asked.model)
    embedder = Embedder(open_backend(stored, device="cpu"))
    keys = drawn(asked.corpus, asked.count)
    found = list(embedder.embed_files(sounds(asked.corpus, set(keys)), EmbedSettings(fill="repeat")))
    if len(found) != len(keys) or any(one.error is not None for one in found):
        raise SystemExit(f"{len(keys)} clips were drawn, and {len(found)} found; not all of them can be read.")
    vectors, seconds = np.stack([one.vector for one in found]), np.array([one.seconds for one in found])
    general.write_general_background(asked.output, general.GeneralBackground(vectors, seconds), stored.digest)
    print(f"{asked.output}: {len(found)} clips, {seconds.sum() / 3600:.2f} h, {asked.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
