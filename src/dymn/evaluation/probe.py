"""Linear probes: the embeddings of a dataset, a linear model on top of them, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from dymn.config import check
from dymn.data import BadClip, Clip, Source, open_source, task_of
from dymn.data.batch import as_it_is, check_bad, first_bad
from dymn.data.detect import detect
from dymn.errors import DataError
from dymn.evaluation import metrics
from dymn.evaluation.linear import Examples
from dymn.evaluation.rounds import rounds_of
from dymn.inference.embedding import Embedder, EmbedSettings
from dymn.inference.windows import raising
from dymn.system.arrays import Floats

AUTO = "auto"


class RoundResult(NamedTuple):
    """The result of one round: the numbers of training and test clips, the chosen C, and the metrics."""

    name: str
    train: int
    test: int
    c: float
    figures: dict[str, Any]


@dataclass(frozen=True)
class Probed:
    """How well a linear model classifies the embeddings of a dataset.

    Attributes:
        kind: a key of `dymn.data.TASKS`.
        metric: the main metric, "accuracy" or "mAP".
        labels: names of the C classes.
        results: the result of each fold, or of the test set.
        mean: mean of the metric over the results.
        std: standard deviation of the metric over the results.
        confusion: number of clips by class (rows) and prediction (columns) [C, C], summed over all tests; None if clips
            have several labels.
        clips: number of clips.
        size: number of values of an embedding.
        bad: the clips that could not be read and are left out, with the reasons.
    """

    kind: str
    metric: str
    labels: tuple[str, ...]
    results: Sequence[RoundResult]
    mean: float
    std: float
    confusion: npt.NDArray[np.int64] | None
    clips: int
    size: int
    bad: Mapping[str, str]


def probe(
    embedder: Embedder,
    path: str | Path,
    *,
    kind: str = AUTO,
    folds: int = 5,
    seconds: float | None = None,
    settings: EmbedSettings | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    max_bad: float = 0.05,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Probed:
    """Fit a linear model to the embeddings of a dataset and evaluate it on unseen clips.

    Embeddings are standardised. The strength of the regularisation is chosen by cross-validation on the training clips
    (see `rounds_of`), never on the test clips. Clips have one class each if the dataset's task has the loss "ce",
    otherwise any number of labels; masked labels are ignored.

    Args:
        embedder: a network and the layers of the embedding.
        path: location of the dataset.
        kind: a key of `TASKS`, or "auto" to detect the kind from the files.
        folds: number of folds for datasets that have neither folds nor splits.
        seconds: length of the beginning of each clip that is used; by default, the whole clip.
        settings: windows of longer clips.
        batch_size: number of windows per batch; the default is 4 on a CPU and 32 on other devices.
        workers: number of processes that decode clips.
        max_bad: maximum share of clips that cannot be read.
        options: options of the dataset's reader.
        progress: called with the number of processed clips and their total.

    Raises:
        ConfigError: if an argument is not allowed.
        DataError: if the dataset is missing or damaged, too many clips cannot be read, or there are too few training
            clips.
        MissingExtraError: if scikit-learn is not installed.
    """
    check(seconds is None or seconds > 0, f"seconds is {seconds}; it must be above 0.")
    if kind == AUTO:
        kind, path = detect(path)
    task = task_of(kind, path)
    source = open_source(kind, path, sample_rate=embedder.sample_rate, **(options or {}))
    rounds_of(source.catalog, folds)  # folds are checked before anything is computed
    vectors, kept, bad = embed_source(
        embedder, source, seconds=seconds, settings=settings, batch_size=batch_size, workers=workers, progress=progress
    )
    check_bad(bad, len(source), max_bad)
    source = source.where(kept)
    examples = Examples(vectors, source.targets, source.masks, exclusive=task.loss == "ce")
    metric = "accuracy" if examples.exclusive else "mAP"
    results, answers = [], []
    for part in rounds_of(source.catalog, folds):
        c = examples.choose(part.inner, metric)
        scores = examples.scores(part.train, part.test, c)
        results.append(RoundResult(part.name, len(part.train), len(part.test), c, examples.evaluate(scores, part.test)))
        answers.append((scores, examples.targets[part.test]))
    values = metrics.fold_mean([result.figures for result in results], metric)
    confusion = None
    if examples.exclusive:
        confusion = np.sum([metrics.confusion(scores, targets) for scores, targets in answers], axis=0)
    return Probed(
        kind, metric, source.labels, results, values["mean"], values["std"], confusion, len(source), embedder.size, bad
    )


def embed_source(
    embedder: Embedder,
    source: Source,
    *,
    seconds: float | None = None,
    settings: EmbedSettings | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Floats, list[int], dict[str, str]]:
    """Return the embeddings of the clips that can be read [n, D], their positions, and the reason by key of the others.

    Raises:
        DataError: if no clip can be read.
    """
    samples = None if seconds is None else max(1, round(seconds * source.sample_rate))
    kept: list[int] = []
    bad: dict[str, str] = {}

    def waveforms() -> Iterator[Floats]:
        clips: DataLoader[Clip | BadClip] = DataLoader(
            source, batch_size=None, num_workers=workers, collate_fn=cast(Any, as_it_is)
        )
        for i, clip in enumerate(clips):
            if isinstance(clip, BadClip):
                bad[clip.key] = clip.reason
            else:
                kept.append(i)
                yield clip.waveform[:samples]

    vectors = []
    rate = source.sample_rate
    for found in raising(embedder.embed_files(waveforms(), settings, sample_rate=rate, batch_size=batch_size)):
        vectors.append(found.vector)
        if progress is not None:
            progress(kept[len(vectors) - 1] + 1, len(source))
    if not vectors:
        raise DataError(f"No clip of {source.name} can be read: {first_bad(bad)}.")
    return np.stack(vectors), kept, bad
