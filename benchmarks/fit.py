"""Speed and accuracy of classifiers of `dymn fit`, and their false alarms.

    python benchmarks/fit.py ESC10 CORPUS --model dymn04_open

ESC10 is a folder as for `zero_shot.py`. CORPUS is a folder of shards with sounds of all kinds, an `index.csv`
(`duration_s`, `source`) and the logits of an AudioSet model in its order, which show which clips do not contain the
classes; the corpus of `dymn04_open.md` is an example. The results are printed as JSON:

- seconds for five classes of 20 clips each, including reading and embedding;
- the accuracy in the five folds of ESC-10;
- for two sets of five classes (20 clips each, from folds 1 to 3): the share of clips of folds 4 and 5 that are found at
  `--threshold auto` and `precise`, and false alarms per hour and class on clips of CORPUS without the classes; with
  synthetic background only, with that included in dymn, and with 1,000 clips from one half of the corpus's sources,
  measured on the other half. A class is considered absent if the AudioSet model gives its labels less than 0.05. Of the
  remaining false alarms, the sum over the classes is also given without clips that are named after the class, such as
  waves;
- the mean average precision on folds 4 and 5 of a classifier of all ten classes from 5 clips each, and after 50 answers
  about other clips of folds 1 to 3: those that `dymn review` asks about, and randomly drawn questions;
- the highest probabilities for silence, synthetic noise and the five other classes;
- the calibration error of the model for ESC-10's classes under AudioSet's names, before and after `dymn calibrate`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dymn.evaluation.metrics import mean_average_precision
from dymn.fitting.background import made_background
from dymn.fitting.calibrate import Calibrated, calibrate
from dymn.fitting.fit import FitResult, fit_checkpoint
from dymn.fitting.labelled import Labelled, LabelledClip, read_labelled
from dymn.fitting.review import doubts
from dymn.inference.embedding import Embedder, EmbedSettings
from dymn.runtime.opening import open_backend
from dymn.runtime.scores import probabilities, thresholds_of
from dymn.weights import open_checkpoint
from dymn.weights.format import Stored

SETS = (
    ("dog", "rain", "crying_baby", "sneezing", "chainsaw"),
    ("rooster", "sea_waves", "crackling_fire", "clock_tick", "helicopter"),
)
WORDS = {
    "dog": ("dog", "bark"),
    "rain": ("rain", "thunderstorm"),
    "crying_baby": ("baby", "cry"),
    "sneezing": ("sneez",),
    "chainsaw": ("chainsaw",),
    "rooster": ("rooster", "chicken"),
    "sea_waves": ("wave", "ocean", "surf", "splash"),
    "crackling_fire": ("fire", "flame", "crackl", "burn"),
    "clock_tick": ("clock", "tick"),
    "helicopter": ("heli",),
}
"""What the names of clips with a class contain."""
ABSENT = 0.05
BACKGROUND = 1000
ANSWERS = 50


@dataclass(frozen=True)
class Corpus:
    """Sounds of all kinds: embeddings [N, D], seconds, half and names [N], and logits of an AudioSet model [N, 527]."""

    vectors: np.ndarray
    seconds: np.ndarray
    half: np.ndarray
    logits: np.ndarray
    names: list[str]


def read_corpus(folder: Path, embedder: Embedder, most: int | None) -> Corpus:
    """Embed the first `most` clips of a corpus as `dymn tag` hears them."""

    def sounds() -> Iterator[Any]:
        for shard in sorted((folder / "shards").glob("*.tar")):
            with tarfile.open(shard) as members:
                for member in members:
                    if member.name.endswith(".opus"):
                        yield io.BytesIO(members.extractfile(member).read())

    rows = list(csv.DictReader((folder / "index.csv").open()))[:most]
    settings = EmbedSettings(fill="repeat")
    found = embedder.embed_files((sound for sound, _ in zip(sounds(), rows, strict=False)), settings)
    vectors = np.stack([one.vector if one.error is None else np.full(embedder.size, np.nan) for one in found])
    half = np.array([zlib.crc32(row["source"].encode()) % 2 for row in rows])
    (table,) = folder.glob("teacher_logits_*.npy")
    names = [f"{row['hint']} {row['original_path']}".lower() for row in rows]
    return Corpus(
        vectors, np.array([float(row["duration_s"]) for row in rows]), half, np.load(table)[: len(rows)], names
    )


def scores(stored: Stored, vectors: np.ndarray) -> np.ndarray:
    """Return the probabilities [N, C] of a model of `dymn fit` on the hidden layer for embeddings [N, D]."""
    hidden = vectors @ stored.state["head.hidden.weight"].T + stored.state["head.hidden.bias"]
    hidden = hidden * np.clip(hidden + 3, 0, 6) / 6
    logits = hidden @ stored.state["head.classifier.weight"].T + stored.state["head.classifier.bias"]
    return probabilities(logits.astype(np.float32), stored.card.exclusive)


def fold_accuracy(stored: Stored, labelled: Labelled, vectors: np.ndarray) -> list[float]:
    """Return the accuracy in each fold."""
    found = []
    for fold in sorted({clip.group for clip in labelled.clips}):
        train = [clip for clip in labelled.clips if clip.group != fold]
        fitted = fit_checkpoint(stored, labelled._replace(clips=train)).stored
        test = [i for i, clip in enumerate(labelled.clips) if clip.group == fold]
        answers = scores(fitted, vectors[test]).argmax(axis=1)
        right = [fitted.card.labels[a] in labelled.clips[i].heard for a, i in zip(answers, test, strict=True)]
        found.append(float(np.mean(right)))
    return found


def alarms(
    stored: Stored, labelled: Labelled, vectors: np.ndarray, classes: Sequence[str], indices: list[int], corpus: Corpus,
    wav_folder: Path | None, general: bool,
) -> dict[str, Any]:  # fmt: skip
    """Fit five classes and return what is found, and false alarms per hour and class."""
    chosen: dict[str, list[LabelledClip]] = {label: [] for label in classes}
    test, other = [], []
    for i, clip in enumerate(labelled.clips):
        (label,) = clip.heard
        if label not in chosen:
            other.append(i)
        elif clip.group in ("fold 4", "fold 5"):
            test.append(i)
        elif len(chosen[label]) < 20:
            chosen[label].append(clip._replace(group=str(clip.path)))
    clips = [clip for group in chosen.values() for clip in group]
    if wav_folder is not None:
        clips += [LabelledClip(path, str(path), frozenset()) for path in sorted(wav_folder.iterdir())]
    result: FitResult = fit_checkpoint(stored, Labelled(tuple(sorted(classes)), clips), general=general)
    model, card = result.stored, result.stored.card
    absent = (1 / (1 + np.exp(-corpus.logits[:, indices].astype(np.float32))) < ABSENT).all(axis=1)
    absent &= (corpus.half == 1) & np.isfinite(corpus.vectors).all(axis=1)
    hours = corpus.seconds[absent].sum() / 3600
    names = [corpus.names[i] for i in np.flatnonzero(absent)]
    said, heard, unseen = (scores(model, rows) for rows in (corpus.vectors[absent], vectors[test], vectors[other]))
    telling = [[any(word in name for word in WORDS[label]) for label in card.labels] for name in names]
    named = np.where(telling, 0, said)
    truth = np.array([[label in labelled.clips[i].heard for label in card.labels] for i in test])
    report: dict[str, Any] = {"hours": round(float(hours), 2), "background_hours": round(result.background_hours, 2)}
    for kind in ("auto", "precise"):
        limits = thresholds_of(card, kind)
        rate = (said >= limits).sum(axis=0) / hours
        report[kind] = {
            "false alarms per hour and class": round(float(rate.mean()), 2),
            "worst class": round(float(rate.max()), 2),
            "of all classes together": round(float((said >= limits).any(axis=1).sum() / hours), 2),
            "but for clips named after the class": round(float((named >= limits).sum() / hours), 2),
            "found": round(float(((heard >= limits) & truth).sum() / truth.sum()), 3),
        }
    report["highest of other classes"] = round(float(unseen.max()), 3)
    embedder = Embedder(open_backend(stored, device="cpu"))
    made = np.stack([embedder.vectors(sound[None])[0] for sound in made_background(embedder.sample_rate)])
    report["highest of silence and noises"] = round(float(scores(model, made).max()), 3)
    return report


def answered(stored: Stored, labelled: Labelled, vectors: np.ndarray) -> dict[str, float]:
    """Return the mean average precision before and after answers to questions of `dymn review`, and of others."""
    first: dict[str, list[LabelledClip]] = {label: [] for label in labelled.labels}
    pool, test = [], []
    for i, clip in enumerate(labelled.clips):
        (label,) = clip.heard
        if clip.group in ("fold 4", "fold 5"):
            test.append(i)
        else:
            (first[label] if len(first[label]) < 5 else pool).append(clip._replace(group=str(clip.path)))
    start = [clip for group in first.values() for clip in group]
    truth = np.array([[label in labelled.clips[i].heard for label in labelled.labels] for i in test])

    def fitted(answers: list[LabelledClip]) -> Stored:
        return fit_checkpoint(stored, labelled._replace(clips=[*start, *answers])).stored

    def precision(model: Stored) -> float:
        return round(mean_average_precision(scores(model, vectors[test]), truth), 4)

    def answer(clip: LabelledClip, label: str) -> LabelledClip:
        known = frozenset([label])
        return clip._replace(heard=clip.heard & known, absent=known - clip.heard)

    before = fitted([])
    clips = {str(clip.path.absolute()): clip for clip in pool}
    asked, _ = doubts(open_backend(before, device="cpu"), clips, count=ANSWERS)
    rng = np.random.default_rng(0)
    drawn = [
        (pool[i], labelled.labels[rng.integers(len(labelled.labels))]) for i in rng.permutation(len(pool))[:ANSWERS]
    ]
    return {
        "before": precision(before),
        "after answers to dymn review": precision(fitted([answer(clips[one.path], one.label) for one in asked])),
        "after answers to questions by lot": precision(fitted([answer(clip, label) for clip, label in drawn])),
    }


def write_background(corpus_folder: Path, corpus: Corpus, indices: list[int], folder: Path) -> None:
    """Write up to 1,000 clips of the first half without the classes into a folder."""
    absent = (1 / (1 + np.exp(-corpus.logits[:, indices].astype(np.float32))) < ABSENT).all(axis=1)
    places = np.flatnonzero(absent & (corpus.half == 0) & np.isfinite(corpus.vectors).all(axis=1))
    wanted = set(np.random.default_rng(0).permutation(places)[:BACKGROUND].tolist())
    i = 0
    for shard in sorted((corpus_folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as members:
            for member in members:
                if member.name.endswith(".opus"):
                    if i in wanted:
                        (folder / f"{i}.opus").write_bytes(members.extractfile(member).read())
                    i += 1


def calibrated(stored: Stored, labelled: Labelled, classes: dict[str, Any]) -> Calibrated:
    """Calibrate a model with AudioSet's labels for the classes of ESC-10."""
    names = {label: classes[label]["names"][0] for label in labelled.labels}
    clips = [clip._replace(heard=frozenset(names[label] for label in clip.heard)) for clip in labelled.clips]
    return calibrate(stored, Labelled(tuple(names[label] for label in labelled.labels), clips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("esc10", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?", help="without it, no false alarms")
    parser.add_argument("--model", default="dymn04_open")
    parser.add_argument("--clips", type=int, help="only the first clips of the corpus")
    asked = parser.parse_args()
    stored = open_checkpoint(asked.model)
    labelled = read_labelled(asked.esc10)
    classes = json.loads((asked.esc10 / "audioset_map.json").read_text())["classes"]

    before, used = time.perf_counter(), time.process_time()
    first = [clip for clip in labelled.clips if clip.heard & set(SETS[0]) and clip.group not in ("fold 4", "fold 5")]
    few = [clip for label in SETS[0] for clip in [one for one in first if label in one.heard][:20]]
    fit_checkpoint(stored, Labelled(tuple(sorted(SETS[0])), few))
    report: dict[str, Any] = {
        "model": asked.model,
        "seconds for 5 classes of 20 clips": round(time.perf_counter() - before, 2),
        "of a CPU": round(time.process_time() - used, 2),
    }
    embedder = Embedder(open_backend(stored, device="cpu"))
    settings = EmbedSettings(fill="repeat")
    vectors = np.stack([one.vector for one in embedder.embed_files([c.path for c in labelled.clips], settings)])
    folds = fold_accuracy(stored, labelled, vectors)
    report["accuracy in five folds"] = {"mean": round(float(np.mean(folds)), 4), "folds": [round(x, 4) for x in folds]}
    report["mean average precision"] = answered(stored, labelled, vectors)
    error = calibrated(stored, labelled, classes)
    report["calibration error"] = {"before": round(error.before.error, 4), "after": round(error.attempted, 4)}
    print(json.dumps(report, indent=1), flush=True)
    if asked.corpus is None:
        return
    corpus = read_corpus(asked.corpus, embedder, asked.clips)
    for group in SETS:
        indices = [i for label in group for i in classes[label]["indices"]]
        with tempfile.TemporaryDirectory() as name:
            write_background(asked.corpus, corpus, indices, Path(name))
            for folder, general in ((None, False), (None, True), (Path(name), True)):
                found = alarms(stored, labelled, vectors, group, indices, corpus, folder, general)
                print(json.dumps({"classes": group, "shipped background": general} | found, indent=1), flush=True)


if __name__ == "__main__":
    main()
