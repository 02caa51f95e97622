"""Zero-shot accuracy on ESC-10 of any model with AudioSet's labels, for each way to fill its clips of 5 s to 10 s.

    python benchmarks/zero_shot.py ESC10 --model mn04_as
    python benchmarks/zero_shot.py ESC10 --model mn04_as.int8.onnx --backend onnx --fill repeat

ESC10 is a folder with `meta/esc10.csv` (filename, category), `audio/`, and `audioset_map.json`, which maps each of the
ten classes to indices of AudioSet labels. The score of a class is the highest probability among its labels, and the
prediction is the best of the ten classes. The audio is processed as in `dymn tag`.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from dymn import Tagger
from dymn.audio.windows import FILLS
from dymn.inference.tagger import TagSettings


def zero_shot(tagger: Tagger, folder: Path, fill: str, window: float = 10.0) -> dict[str, float]:
    """Return the accuracy of each class, the clips being filled up as `fill` says."""
    classes = json.loads((folder / "audioset_map.json").read_text(encoding="utf-8"))["classes"]
    names = list(classes)
    with (folder / "meta" / "esc10.csv").open(encoding="utf-8", newline="") as file:
        clips = {str(folder / "audio" / row["filename"]): row["category"] for row in csv.DictReader(file)}
    hits: dict[str, list[bool]] = defaultdict(list)
    for recording in tagger.tag_files([Path(clip) for clip in clips], TagSettings(fill=fill, window=window)):
        if recording.error is not None:
            raise recording.error
        best = max(names, key=lambda name: recording.scores[classes[name]["indices"]].max())
        category = clips[recording.name]
        hits[category].append(best == category)
    return {name: float(np.mean(hits[name])) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder of ESC-10.")
    parser.add_argument("--model", required=True, help="A model with weights, by name or file.")
    parser.add_argument("--fill", nargs="+", choices=FILLS, default=list(FILLS), help="The ways of filling to measure.")
    parser.add_argument("--window", type=float, default=10.0, help="Length of a window in seconds.")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        default="torch",
        help="The backend; onnx runs a file from `dymn export`.",
    )
    parser.add_argument("--device", help="PyTorch's device.")
    parser.add_argument("--threads", type=int, help="Number of CPU threads.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parser.parse_args()
    load = Tagger.from_onnx if options.backend == "onnx" else partial(Tagger.from_pretrained, device=options.device)
    tagger = load(options.model, threads=options.threads)
    results = {}
    for fill in options.fill:
        started = time.perf_counter()
        per_class = zero_shot(tagger, options.folder, fill, options.window)
        seconds = time.perf_counter() - started
        results[fill] = {
            "accuracy": float(np.mean(list(per_class.values()))),
            "per_class": per_class,
            "seconds": round(seconds, 1),
        }
    if options.json:
        print(json.dumps(results, indent=1))
        return
    print(f"{'':16}" + "".join(f"{fill:>10}" for fill in results))
    for name in next(iter(results.values()))["per_class"]:
        print(f"{name:16}" + "".join(f"{result['per_class'][name]:10.3f}" for result in results.values()))
    print(f"{'accuracy':16}" + "".join(f"{100 * result['accuracy']:8.2f} %" for result in results.values()))
    print(f"{'time':16}" + "".join(f"{result['seconds']:8.1f} s" for result in results.values()))


if __name__ == "__main__":
    main()
