"""Comparison of two ways to combine windows: the maximum of each label, and its mean over time.

    python benchmarks/combine.py ESC10 --model mn04_as

Composes recordings of one minute from clips of ESC-10 (see `zero_shot.py`): ten clips of one class, and one of each of
two other classes in between. Prints the mean average precision over recordings with which the scores of the ten classes
find these three.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from dymn import Tagger
from dymn.audio import reading
from dymn.inference.selection import COMBINATIONS, TagSettings

N_EVENTS = 2
N_BACKGROUND = 10


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Return the mean of the precision at each class that is present, the classes being ranked by their scores [C]."""
    hits = present[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder of ESC-10.")
    parser.add_argument("--model", required=True, help="A model with weights, by name or file.")
    parser.add_argument("--recordings", type=int, default=60, help="Number of recordings.")
    parser.add_argument("--threads", type=int, help="Number of CPU threads.")
    options = parser.parse_args()
    classes = json.loads((options.folder / "audioset_map.json").read_text(encoding="utf-8"))["classes"]
    names = list(classes)
    with (options.folder / "meta" / "esc10.csv").open(encoding="utf-8", newline="") as file:
        clips = [
            (names.index(row["category"]), options.folder / "audio" / row["filename"]) for row in csv.DictReader(file)
        ]
    tagger = Tagger.from_pretrained(options.model, threads=options.threads)
    random = np.random.default_rng(0)
    results: dict[str, list[float]] = {how: [] for how in COMBINATIONS}
    for _ in range(options.recordings):
        background, *events = random.choice(len(names), 1 + N_EVENTS, replace=False)
        kinds = [background] * N_BACKGROUND
        for event in events:
            kinds.insert(int(random.integers(len(kinds) + 1)), event)
        chosen = [random.choice([i for i, (kind, _) in enumerate(clips) if kind == wanted]) for wanted in kinds]
        waveform = np.concatenate([reading.read(clips[i][1], tagger.sample_rate) for i in chosen])
        present = np.isin(np.arange(len(names)), kinds)
        for how, precisions in results.items():
            (recording,) = tagger.tag_files([waveform], TagSettings(combine=how), sample_rate=tagger.sample_rate)
            scores = np.array([recording.scores[classes[name]["indices"]].max() for name in names])
            precisions.append(average_precision(scores, present))
    for how, precisions in results.items():
        print(f"{how:6} mean average precision {np.mean(precisions):.3f} over {len(precisions)} recordings")


if __name__ == "__main__":
    main()
