"""Accuracy of onsets and offsets on recordings that are composed of clips of ESC-10, so that they are known.

    python benchmarks/events.py ESC10 --model mn04_as --model dymn04_open
    python benchmarks/events.py ESC10 --model dymn04_open --tried --cache FOLDER
    python benchmarks/events.py ESC10 --model dymn04_open --sweep --cache FOLDER

ESC10 is a folder as for `zero_shot.py`. The recordings are those of `mixtures.py`, from the clips of folds 4 and 5.
`--sweep` measures settings on recordings from folds 1 to 3 instead, on which the defaults of `dymn events` were chosen.
`--tried` measures the settings of the table in `docs/events.md`, on 60 such recordings and in the order of the table.
The frames are stored in `--cache`. No network is trained. `--live` compares the rule of `dymn listen --events`, with
its windows of 2 s every 0.5 s, with a causal form of the rule of `dymn events`, which uses only the seconds before.

The metrics are those of `dymn evaluate --events` (`pip install '.[sed]'`), with PSDS from all thresholds: dtc = gtc =
0.5, up to 500 false alarms per hour, the mean over classes. F1 is computed from events, for events whose onset and
offset are within 0.5 s (for the offset, or half of the length), and for seconds; both are means over classes. "Others"
are events per minute whose label is neither an ancestor nor a descendant of that of a sound in the recording in
AudioSet's ontology.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dymn import Tagger
from dymn.evaluation.events import event_figures
from dymn.inference.events import Event, EventSettings, EventTracker, decide
from dymn.inference.frames import METHODS, Frames, FrameSettings, frames
from dymn.inference.methods import Nearby
from dymn.weights.ontology import ancestors
from mixtures import NOISE_DB, SECONDS, Mixture, class_indices, mixtures

Classes = dict[str, list[int]]
Tried = Iterator[tuple[FrameSettings, list[tuple[EventSettings, float | None]]]]
CUTS = (  # what `--sweep` tries
    *(FrameSettings("windows", window, hop) for window in (0.64, 0.96, 1.28, 1.6) for hop in (0.16, 0.32)),
    FrameSettings("activation"),
    *(FrameSettings("combined", clip=clip) for clip in (0.2, 0.3, 0.4)),
    *(FrameSettings("combined", window, hop) for window, hop in ((0.96, 0.32), (1.28, 0.16))),
)
WEIGHTS = (None, 0.3, 0.4)  # of the highest probability nearby; None is a fixed share of the threshold
THRESHOLDS = (0.05, 0.1)
TRIED: tuple[tuple[FrameSettings, float | None, dict[str, float]], ...] = (  # frames, weight as above, other settings
    (FrameSettings("windows", 1.6, 0.32), None, {}),
    (FrameSettings("windows", 0.96, 0.16), 0.3, {}),
    (FrameSettings("windows", 0.96, 0.32), 0.3, {}),
    *((FrameSettings("windows", window, 0.16), 0.3, {}) for window in (0.8, 1.12, 1.28)),
    (FrameSettings("windows", 0.96, 0.16), 0.3, {"min_duration": 0.45}),
    *((FrameSettings("combined"), 0.4, {"threshold": threshold}) for threshold in (0.1, 0.07, 0.05)),
)
LIVE = [EventSettings("windows", 2.0, 0.5, threshold=threshold, min_gap=1.0) for threshold in (0.1, 0.3)]
LIVE_WEIGHTS = (None, 0.3, 0.4, 0.5)


def of_classes(found: Frames, classes: Classes) -> Frames:
    """Return frames of the classes of ESC-10, each as probable as its likeliest AudioSet label."""
    scores = np.stack([found.scores[:, indices].max(axis=1) for indices in classes.values()], axis=1)
    return dataclasses.replace(found, labels=tuple(classes), scores=scores)


class CausalTracker(EventTracker):
    """Lets a probability fall as `dymn events` does, judged by the frames before it; None is a fixed share."""

    def __init__(self, labels: tuple[str, ...], settings: EventSettings, weight: float | None) -> None:
        super().__init__(labels, settings)
        self._rule = None if weight is None else Nearby(5.0, weight=weight)
        self._fixed = self._off
        self._past = np.empty((0, len(labels)), np.float32)
        self._most = round(5.0 / settings.cutting().hop) + 1

    def add_frame(self, scores: np.ndarray, edges: np.ndarray) -> list[Event]:
        """Take one frame [C] between two edges."""
        self._past = np.concatenate([self._past, scores[None]])[-self._most :]
        if self._rule is not None:
            self._off = np.clip(self._rule.lowest(self._past.T), self._rule.least * self._on, self._fixed)
        return self.add(scores[None], edges)


def decide_live(found: Frames, settings: EventSettings, weight: float | None = None) -> list[Event]:
    """Return the events that live sound with these frames would have."""
    tracker = CausalTracker(found.labels, settings, weight)
    events = [
        event for i, scores in enumerate(found.scores) for event in tracker.add_frame(scores, found.edges[i : i + 2])
    ]
    return events + tracker.finish()


Decide = Callable[[Frames, EventSettings], list[Event]]


def scored(
    recordings: list[Mixture], found: list[Frames], settings: EventSettings, decide: Decide = decide
) -> dict[str, float]:
    """Return PSDS and the two F1 of frames and of the events that they amount to, means over classes."""
    frames = {mixture.name: one for mixture, one in zip(recordings, found, strict=True)}
    truth = {mixture.name: [(one.start, one.end, one.label) for one in mixture.events] for mixture in recordings}
    classes = event_figures(truth, frames, {name: decide(one, settings) for name, one in frames.items()}, steps=None)
    names = {"psds": "psds", "event_f1": "f1", "segment_f1": "segment_f1"}
    return {key: float(np.mean([getattr(one, name) for one in classes])) for key, name in names.items()}


def others(
    recordings: list[Mixture],
    found: list[Frames],
    settings: EventSettings,
    classes: Classes,
    decide: Decide = decide,
) -> float:
    """Return how many events of labels that have nothing to do with a recording are found in it, per minute."""
    labels = found[0].labels
    above = [ancestors(label) for label in labels]
    wrong = 0
    for mixture, scores in zip(recordings, found, strict=True):
        own = {index for event in mixture.events for index in classes[event.label]}
        names, general = {labels[i] for i in own}, {name for i in own for name in above[i]}
        related = {label for i, label in enumerate(labels) if i in own or label in general or above[i] & names}
        wrong += sum(event.label not in related for event in decide(scores, settings))
    return wrong / (len(recordings) * SECONDS / 60)


def frames_of(tagger: Tagger, recordings: list[Mixture], settings: FrameSettings, cache: Path | None) -> list[Frames]:
    """Return the frames of all labels, kept in a folder for the next time."""
    made = json.dumps([str(tagger.card.provenance.get("sha256")), dataclasses.asdict(settings)], default=str)
    heard = hashlib.sha256(b"".join([made.encode(), *(mixture.waveform.tobytes() for mixture in recordings)]))
    kept = None if cache is None else cache / f"{heard.hexdigest()[:16]}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as arrays:
            return [
                Frames(tagger.backend.labels, arrays[f"times{i}"], arrays[f"scores{i}"], SECONDS)
                for i in range(len(recordings))
            ]
    found = [frames(tagger.backend, mixture.waveform, mixture.sample_rate, settings) for mixture in recordings]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{name}{i}": getattr(one, name) for i, one in enumerate(found) for name in ("times", "scores")}
        np.savez(kept, **arrays)
    return found


def events_of(cut: FrameSettings, **others: float) -> EventSettings:
    """Return settings of events with the frames of `cut`."""
    given = {field.name: getattr(cut, field.name) for field in dataclasses.fields(FrameSettings)}
    return EventSettings(**given, **others)


def swept() -> Tried:
    """Yield ways to get frames, each with the settings to try on them and the weight of what is nearby."""
    for cut in CUTS:
        pairs = itertools.product(WEIGHTS, THRESHOLDS)
        yield cut, [(events_of(cut, threshold=threshold), weight) for weight, threshold in pairs]


def tried() -> Tried:
    """Yield the settings of the table in docs/events.md."""
    for cut, weight, others in TRIED:
        yield cut, [(events_of(cut, **others), weight)]


def live() -> Tried:
    """Yield what `dymn listen --events` does by default, and with a causal form of the rule of `dymn events`."""
    yield FrameSettings("windows", *LIVE[0].cutting()), [*itertools.product(LIVE, LIVE_WEIGHTS)]


def standard() -> Tried:
    """Yield the methods with their defaults."""
    for name, method in METHODS.items():
        if name != "frames":
            weight = None if method.nearby is None else method.nearby.weight
            yield FrameSettings(name), [(EventSettings(name), weight)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder of ESC-10.")
    parser.add_argument(
        "--model", action="append", required=True, help="A model with AudioSet's labels, by name or file."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sweep", action="store_true", help="Try settings on other recordings.")
    what.add_argument("--tried", action="store_true", help="Try the settings of docs/events.md on these.")
    what.add_argument("--live", action="store_true", help="Compare rules of `dymn listen --events`.")
    parser.add_argument("--cache", type=Path, help="A folder in which frames are stored for later runs.")
    parser.add_argument(
        "--folds", nargs="+", type=int, help="The folds whose clips are used; 4 5, or 1 2 3 with --sweep."
    )
    parser.add_argument("--seed", type=int, help="Seed of the recordings; 2, or 1 with --sweep.")
    parser.add_argument("--recordings", type=int, help="Number of recordings of 20 s; 50, or 60 with --tried.")
    parser.add_argument(
        "--noise", nargs=2, type=float, default=NOISE_DB, help="Level of the events above the noise, in dB."
    )
    parser.add_argument("--threads", type=int, help="Number of CPU threads.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parser.parse_args()
    compared = options.sweep or options.tried
    folds = tuple(options.folds or ((1, 2, 3) if compared else (4, 5)))
    seed = options.seed if options.seed is not None else 1 if compared else 2
    number = options.recordings or (60 if options.tried else 50)
    classes = class_indices(options.folder)
    recordings = mixtures(options.folder, folds, number, seed, noise_db=tuple(options.noise))
    results = []
    ways = swept if options.sweep else tried if options.tried else live if options.live else standard
    for model in options.model:
        tagger = Tagger.from_pretrained(model, threads=options.threads)
        for cut, chosen in ways():
            found = frames_of(tagger, recordings, cut, options.cache)
            judged = [of_classes(one, classes) for one in found]
            for settings, weight in chosen:
                row: dict[str, Any] = {"model": tagger.card.name, "method": cut.method, **cut.cutting()._asdict()}
                row |= {"clip": cut.clip, "nearby": weight, "threshold": settings.rule().threshold}
                row["dropped"] = settings.min_duration
                way = functools.partial(decide_live, weight=weight) if options.live else decide
                with weighted(str(cut.method), weight):
                    row |= scored(recordings, judged, settings, way)
                    row["others"] = others(recordings, found, settings, classes, way)
                results.append(row)
                if not options.json:
                    print(line(row), flush=True)
    if options.json:
        print(json.dumps(results))


@contextlib.contextmanager
def weighted(method: str, weight: float | None) -> Iterator[None]:
    """Let the highest probability nearby have this weight; None is a fixed share of the threshold instead."""
    usual = METHODS[method]
    nearby = None if weight is None else (usual.nearby or Nearby(5.0))._replace(weight=weight)
    METHODS[method] = usual._replace(nearby=nearby)
    try:
        yield
    finally:
        METHODS[method] = usual


def line(row: dict[str, Any]) -> str:
    """Return a result as a line of text."""
    shown = {**row, "nearby": "-" if row["nearby"] is None else row["nearby"]}
    return (
        "{model} {method} {window:g}/{hop:g} s clip {clip:g} nearby {nearby} threshold {threshold:g} dropped below "
        "{dropped:g} s: PSDS {psds:.3f}, F1 of events {event_f1:.3f}, of seconds {segment_f1:.3f}, others "
        "{others:.1f}/min"
    ).format(**shown)


if __name__ == "__main__":
    main()
