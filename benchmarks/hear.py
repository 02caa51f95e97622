"""Comparison of the windows of `dymn.hear`: consecutive, and as in the authors' wrapper (`load_model(windows=…)`).

    python benchmarks/hear.py ESC10 --model dymn04_open

ESC10 is a folder as for `zero_shot.py`. A logistic regression for each class, on standardised embeddings (C = 0.01), is
evaluated by its mean average precision:

- long scenes: 20 for each fold and length, composed of clips of two classes of ESC-10, at levels that differ by up to
  6 dB. The task is to name the classes of a scene. Each fold is evaluated with a model of the other four.
- timestamps: the task is to name the classes that sound at each timestamp, in pieces of one second of the recordings of
  `mixtures.py`. Folds 1 to 3 are used for training, folds 4 and 5 for testing. Scores of the timestamps within 80 ms of
  the edges, where the two kinds of windows differ, are also given separately.

The intervals are 95 % intervals of 1,000 bootstraps over scenes or pieces of the difference, authors' windows minus
consecutive.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import mixtures
from dymn import hear
from dymn.audio import reading
from dymn.evaluation.linear import Examples
from dymn.evaluation.metrics import mean_average_precision
from dymn.system.devices import use_threads

RATE = 32_000
LENGTHS = (12.0, 17.0, 24.0)  # seconds of long scenes
SCENES = 20
C = 0.01
EDGE_MS = 80
PIECES = (16, 10)  # mixtures that teach and test
WINDOWS = ("consecutive", "authors")


def long_scenes(folder: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield fold, waveform and targets [C] of scenes made of the clips of two classes."""
    with (folder / "meta" / "esc10.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["category"] for row in rows})
    random = np.random.default_rng(0)
    for fold in range(1, 6):
        for seconds in LENGTHS:
            for _ in range(SCENES):
                two = random.choice(len(classes), 2, replace=False)
                n, parts = round(seconds * RATE), []
                # mostly the first class, the second once, at a place by chance
                n_clips = int(np.ceil(seconds / 5)) + 1
                order = [two[0]] * (n_clips - 1)
                order.insert(int(random.integers(n_clips - 1)), two[1])
                for c in order:
                    chosen = random.choice([r for r in rows if r["category"] == classes[c] and int(r["fold"]) == fold])
                    clip = reading.read(folder / "audio" / chosen["filename"], RATE)
                    clip = clip[int(random.integers(len(clip) // 2)) :]
                    level = 0.05 * 10 ** (random.uniform(-3, 3) / 20)
                    parts.append(clip * (level / max(np.sqrt((clip**2).mean()), 1e-4)))
                yield fold, np.resize(np.concatenate(parts), n), np.isin(np.arange(len(classes)), two).astype(float)


def pieces(folder: Path) -> Iterator[tuple[bool, np.ndarray, np.ndarray]]:
    """Yield whether a piece of a second teaches, its waveform, and what is heard at its timestamps [21, C]."""
    for teaches, folds, count in ((True, (1, 2, 3), PIECES[0]), (False, (4, 5), PIECES[1])):
        for mixture in mixtures.mixtures(folder, folds, count, seed=7):
            classes = sorted(mixtures.class_indices(folder))
            for second in range(int(mixtures.SECONDS)):
                times = second + np.arange(0, 1.001, hear.HOP_MS / 1000)
                targets = np.zeros((len(times), len(classes)))
                for event in mixture.events:
                    targets[(times >= event.start) & (times <= event.end), classes.index(event.label)] = 1
                yield teaches, mixture.waveform[second * RATE : (second + 1) * RATE], targets


def fitted(vectors: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return scores [N, C] of the rows `test` by a linear model of the rows `train`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Examples(vectors, targets, np.ones_like(targets), False).scores(train, test, C))


def report(name: str, scores: dict[str, np.ndarray], targets: np.ndarray, units: np.ndarray) -> None:
    """Print the mAP of both and the interval of their difference, over units that belong together."""
    said = {windows: mean_average_precision(values, targets) for windows, values in scores.items()}
    random, ids = np.random.default_rng(0), np.unique(units)
    rows_of = {unit: np.flatnonzero(units == unit) for unit in ids}
    differences = []
    for _ in range(1000):
        rows = np.concatenate([rows_of[unit] for unit in random.choice(ids, len(ids))])
        one, other = (mean_average_precision(scores[windows][rows], targets[rows]) for windows in WINDOWS)
        differences.append(other - one)
    low, high = np.percentile(differences, [2.5, 97.5])
    values = "  ".join(f"{windows} {100 * value:.2f}" for windows, value in said.items())
    print(f"{name:34s} {values}  difference {100 * low:+.2f} to {100 * high:+.2f}", flush=True)


def scenes(folder: Path, models: dict[str, hear.HearModel]) -> None:
    """Compare the windows on long scenes."""
    folds, waveforms, targets = zip(*long_scenes(folder), strict=True)
    fold, target = np.array(folds), np.stack(targets)
    scores = {}
    for windows, model in models.items():
        vectors = np.concatenate(
            [hear.get_scene_embeddings(torch.from_numpy(w[None].astype(np.float32)), model).numpy() for w in waveforms]
        )
        scores[windows] = np.zeros_like(target)
        for held_out in range(1, 6):
            test = np.flatnonzero(fold == held_out)
            scores[windows][test] = fitted(vectors, target, np.flatnonzero(fold != held_out), test)
    report(f"long scenes ({len(target)})", scores, target, np.arange(len(target)))


def moments(folder: Path, models: dict[str, hear.HearModel]) -> None:
    """Compare the windows on timestamps."""
    teaches, waveforms, targets = zip(*pieces(folder), strict=True)
    train, audio, target = np.array(teaches), torch.from_numpy(np.stack(waveforms)), np.stack(targets)
    scores, n = {}, target.shape[1]
    rows = np.repeat(train, n)
    for windows, model in models.items():
        found, times = hear.get_timestamp_embeddings(audio, model)
        vectors = found.flatten(0, 1).numpy()
        scores[windows] = fitted(vectors, target.reshape(len(rows), -1), np.flatnonzero(rows), np.flatnonzero(~rows))
    units = np.repeat(np.arange((~train).sum()), n)
    test = target[~train].reshape(len(units), -1)
    at_edge = np.tile((times[0] < EDGE_MS) | (times[0] > 1000 - EDGE_MS), (~train).sum())
    for name, where in (("all timestamps", at_edge | True), ("within 80 ms of an edge", at_edge)):
        report(f"{name} ({where.sum()})", {k: v[where] for k, v in scores.items()}, test[where], units[where])


def main() -> None:
    """Compare for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="ESC-10 and its map to AudioSet")
    parser.add_argument("--model", action="append", help="a name or a file; can be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    use_threads(parsed.threads)
    for name in parsed.model or ["dymn04_open"]:
        first = hear.load_model(name)
        models = {windows: hear.HearModel(first.embedder, windows).eval() for windows in WINDOWS}
        print(name, flush=True)
        scenes(parsed.folder, models)
        moments(parsed.folder, models)


if __name__ == "__main__":
    main()
