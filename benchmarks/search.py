"""Time of a query among many windows, and the share of the nearest windows that it finds, on synthetic embeddings.

    python benchmarks/search.py --windows 1000000
    python benchmarks/search.py --esc10 ESC10

The vectors are points around 500 class centres in 24 dimensions, mapped to the size of the embeddings of dymn04_open,
with a little noise and with negative values set to zero. They are added with the settings of `dymn index`, saved, and
searched on disk as in `dymn search`. Recall is the share of the 20 nearest vectors, according to exhaustive search,
that are found.

With `--esc10`, clips of ESC-10 (a folder as for `zero_shot.py`) are compared instead, each with all others: how often
the nearest clip, and the ten nearest clips, have its class.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dymn.fitting.labelled import read_labelled
from dymn.inference.embedding import Embedder, EmbedSettings
from dymn.inference.index import BATCH, new_graph, unit
from dymn.runtime.opening import open_backend
from dymn.system.arrays import Floats
from dymn.weights import open_checkpoint


def batches(windows: int, size: int, seed: int = 0) -> Iterator[Floats]:
    """Yield unit vectors in batches: like averages of a feature map, not negative, and of 24 degrees of freedom."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (500, 24)).astype(np.float32)
    mixed = rng.normal(0, 1, (24, size)).astype(np.float32)
    for start in range(0, windows, BATCH):
        n = min(BATCH, windows - start)
        latent = centres[rng.integers(0, len(centres), n)] + rng.normal(0, 0.7, (n, 24)).astype(np.float32)
        noise = rng.normal(0, 0.2, (n, size)).astype(np.float32)
        yield unit(np.maximum(latent @ mixed + noise, 0))


def same_class(folder: Path, model: str) -> dict[int, float]:
    """Return how many of the nearest clips, of 1 and of 10, have the class of a clip."""
    labelled = read_labelled(folder)
    embedder = Embedder(open_backend(open_checkpoint(model), device="cpu"))
    found = embedder.embed_files([clip.path for clip in labelled.clips], EmbedSettings(window=5.0, hop=5.0))
    vectors = unit(np.stack([one.vector for one in found]))
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    classes = np.array([labelled.labels.index(*clip.heard) for clip in labelled.clips])
    order = np.argsort(-likeness, axis=1)
    return {n: float((classes[order[:, :n]] == classes[:, None]).mean()) for n in (1, 10)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--esc10", type=Path, help="Compare its clips instead.")
    parser.add_argument("--model", default="dymn04_open", help="The model, with --esc10.")
    options = parser.parse_args()
    if options.esc10 is not None:
        for n, share in same_class(options.esc10, options.model).items():
            print(f"{n} nearest of the same class: {share:.2%}")
        return
    graph, queries, added = new_graph(options.size), [], 0
    start = time.perf_counter()
    rng = np.random.default_rng(1)
    best = np.empty((0, 0), np.float32)
    for vectors in batches(options.windows, options.size):
        if not len(queries):
            noise = rng.normal(0, 0.02, (options.queries, options.size))
            queries = unit(vectors[: options.queries] + noise.astype(np.float32))
            best = np.full((options.queries, 20), -1, np.float32)
            best_keys = np.zeros((options.queries, 20), np.int64)
        graph.add(np.arange(added, added + len(vectors), dtype=np.uint64), vectors)
        scores = np.concatenate([best, queries @ vectors.T], axis=1)
        own = np.tile(np.arange(added, added + len(vectors)), (len(queries), 1))
        keys = np.concatenate([best_keys, own], axis=1)
        top = np.argpartition(-scores, 20, axis=1)[:, :20]
        best, best_keys = np.take_along_axis(scores, top, 1), np.take_along_axis(keys, top, 1)
        added += len(vectors)
        if added % (BATCH * 8) == 0:
            print(f"{added:,} windows after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{added:,} windows of {options.size} values added in {time.perf_counter() - start:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "graph.usearch")
        graph.save(path)
        opened = new_graph(options.size)
        start = time.perf_counter()
        opened.view(path)
        print(f"{os.path.getsize(path) / 2**20:,.0f} MiB, opened in {1e3 * (time.perf_counter() - start):.1f} ms")
        took, recall = [], []
        for query, nearest in zip(queries, best_keys, strict=True):
            start = time.perf_counter()
            found = opened.search(query, 20)
            took.append(1e3 * (time.perf_counter() - start))
            recall.append(len(set(found.keys.tolist()) & set(nearest.tolist())) / 20)
        quantiles = ", ".join(f"{name} {np.quantile(took, q):.2f}" for name, q in (("median", 0.5), ("95 %", 0.95)))
        print(f"ms a query: least {min(took):.2f}, {quantiles}, most {max(took):.2f}; recall {np.mean(recall):.3f}")


if __name__ == "__main__":
    main()
