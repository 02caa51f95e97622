"""How well beginnings and ends of sounds are found, on recordings made of clips of ESC-10 whose bounds are known.

    python benchmarks/events.py ESC10 --model mn04_as --model dymn04_open

ESC10 is a folder as for `zero_shot.py`; the recordings are those of `mixtures.py`, from the clips of folds 4 and 5. The
settings of `dymn events` were chosen on recordings from folds 1 to 3 (`--folds 1 2 3 --seed 1`). Nothing is trained.

The scores are those of sed_scores_eval, which is installed by itself, as it needs old companions:

    pip install sed_scores_eval "pandas<3" "setuptools<81"

PSDS is from probabilities at all thresholds: dtc = gtc = 0.5, up to 500 false alarms an hour, the mean over classes.
The F1 are from events at the standard threshold: of events with beginning and end within 0.5 s (or half of the length
for the end), and of seconds; means over classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dymn import Tagger
from dymn.inference.events import Event, EventSettings, decide
from dymn.inference.frames import METHODS, Frames, frames
from mixtures import SECONDS, Mixture, class_indices, mixtures

GRID = 0.02  # seconds; how finely decisions are given to the scorer
COLLAR = 0.5


def of_classes(found: Frames, classes: dict[str, list[int]]) -> Frames:
    """Return frames of the classes of ESC-10, each as probable as its likeliest AudioSet label."""
    scores = np.stack([found.scores[:, indices].max(axis=1) for indices in classes.values()], axis=1)
    return dataclasses.replace(found, labels=tuple(classes), scores=scores)


def drawn(events: list[Event], labels: tuple[str, ...]) -> np.ndarray:
    """Return events as ones among zeros [T, C] on a grid of `GRID` seconds."""
    rows = np.zeros((round(SECONDS / GRID), len(labels)))
    for event in events:
        rows[round(event.start / GRID) : round(event.end / GRID), labels.index(event.label)] = 1
    return rows


def scored(recordings: list[Mixture], found: list[Frames], settings: EventSettings) -> dict[str, float]:
    """Return PSDS and the two F1 of frames and of the events that they amount to."""
    import pandas
    from sed_scores_eval import collar_based, intersection_based, segment_based

    def table(edges: np.ndarray, rows: np.ndarray) -> Any:
        columns = dict(zip(found[0].labels, rows.T, strict=True))
        return pandas.DataFrame({"onset": edges[:-1], "offset": edges[1:], **columns})

    truth = {m.name: [(event.start, event.end, event.label) for event in m.events] for m in recordings}
    lengths = {m.name: SECONDS for m in recordings}
    soft = {m.name: table(f.edges, f.scores) for m, f in zip(recordings, found, strict=True)}
    grid = np.round(np.arange(round(SECONDS / GRID) + 1) * GRID, 2)
    hard = {m.name: table(grid, drawn(decide(f, settings), f.labels)) for m, f in zip(recordings, found, strict=True)}
    psds = intersection_based.psds(soft, truth, lengths, dtc_threshold=0.5, gtc_threshold=0.5, max_efpr=500)[0]
    collars = {"onset_collar": COLLAR, "offset_collar": COLLAR, "offset_collar_rate": 0.5}
    events = collar_based.fscore(hard, truth, 0.5, **collars)[0]["macro_average"]
    seconds = segment_based.fscore(hard, truth, lengths, 0.5, segment_length=1.0)[0]["macro_average"]
    return {"psds": float(psds), "event_f1": float(events), "segment_f1": float(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder of ESC-10.")
    parser.add_argument(
        "--model", action="append", required=True, help="A model with AudioSet's labels, by name or file."
    )
    parser.add_argument("--folds", nargs="+", type=int, default=[4, 5], help="The folds whose clips are used.")
    parser.add_argument("--seed", type=int, default=2, help="Where recordings are made from.")
    parser.add_argument("--recordings", type=int, default=50, help="How many recordings of 20 s to make.")
    parser.add_argument("--threads", type=int, help="How many CPU threads to use.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parser.parse_args()
    classes = class_indices(options.folder)
    recordings = mixtures(options.folder, tuple(options.folds), options.recordings, options.seed)
    results = []
    for model in options.model:
        tagger = Tagger.from_pretrained(model, threads=options.threads)
        for method in METHODS:
            settings = EventSettings(method)
            found = [
                of_classes(frames(tagger.backend, m.waveform, m.sample_rate, settings), classes) for m in recordings
            ]
            results.append({"model": tagger.card.name, "method": method, **scored(recordings, found, settings)})
    if options.json:
        print(json.dumps(results))
        return
    print(f"{'model':14}{'method':12}{'PSDS':>8}{'event F1':>10}{'segment F1':>12}")
    for result in results:
        print("{model:14}{method:12}{psds:8.3f}{event_f1:10.3f}{segment_f1:12.3f}".format(**result))


if __name__ == "__main__":
    main()
