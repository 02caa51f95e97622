"""Metrics: macro mAP, ROC-AUC, d', F1 and accuracy; if there is a mask, over annotated entries only.

Scores are [N, C], higher for positives; targets are positive above 0.5. The definitions are scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import check_choice
from dymn.errors import DataError
from dymn.system.arrays import Array
from dymn.system.extras import needing
from dymn.system.files import write_csv

KINDS = ("tagging", "classification")


class ClassResult(NamedTuple):
    """The metrics of one class; NaN if not defined (without positives; for ROC-AUC also without negatives)."""

    average_precision: float
    roc_auc: float
    positives: int
    annotated: int


class ClassAnswers(NamedTuple):
    """Precision, recall and F1 of one class.

    A metric is NaN if it is not defined: precision without predictions, recall and F1 without positives.
    """

    precision: float
    recall: float
    f1: float


def evaluate(scores: Array, targets: Array, mask: Array | None = None, kind: str = "tagging") -> dict[str, Any]:
    """Return the metrics of a task.

    Args:
        scores: [N, C], logits or probabilities.
        targets: [N, C].
        mask: [N, C], 1 where annotated; None if all is.
        kind: "tagging" (any number of classes at once) or "classification" (exactly one).

    Returns:
        For "tagging": mAP, roc_auc, d_prime (of the mean ROC-AUC), classes (their number), without_positives (indices
        of the classes that are left out). For "classification": accuracy. Always: clips.

    Raises:
        ConfigError: if `kind` is not allowed.
        DataError: if shapes do not match, scores are not finite, or no metric is defined.
    """
    check_choice("kind", kind, KINDS)
    if kind == "classification":
        return {"accuracy": accuracy(scores, targets), "clips": len(scores)}
    results = per_class(scores, targets, mask)
    areas = [result.roc_auc for result in results if not math.isnan(result.roc_auc)]
    auc = _mean(areas) if areas else math.nan
    return {
        "mAP": _mean([result.average_precision for result in results]),
        "roc_auc": auc,
        "d_prime": d_prime(auc),
        "classes": sum(result.positives > 0 for result in results),
        "without_positives": [c for c, result in enumerate(results) if result.positives == 0],
        "clips": len(scores),
    }


def mean_average_precision(scores: Array, targets: Array, mask: Array | None = None) -> float:
    """Return the mean over classes of the average precision; classes without positives are left out.

    Raises:
        DataError: as for `evaluate`.
    """
    return _mean([result.average_precision for result in per_class(scores, targets, mask)])


def roc_auc(scores: Array, targets: Array, mask: Array | None = None) -> float:
    """Return the mean ROC-AUC over classes; classes without positives or negatives are left out."""
    return _mean([result.roc_auc for result in per_class(scores, targets, mask)])


def d_prime(auc: float) -> float:
    """Return the separation of two normal distributions of equal width that give this ROC-AUC."""
    if not 0 < auc < 1:
        return math.nan if math.isnan(auc) else math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def accuracy(scores: Array, targets: Array) -> float:
    """Return the share of clips for which the class with the highest score has the highest target.

    Raises:
        DataError: if shapes do not fit, scores are not finite, or there are no clips.
    """
    scores, targets, _ = _checked(scores, targets, None)
    if not (targets > 0.5).any(axis=1).all():
        raise DataError("Accuracy needs one class for every clip, but some clips have none.")
    return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())


def f1(
    scores: Array, targets: Array, mask: Array | None = None, kind: str = "tagging", threshold: float = 0.5
) -> float:
    """Return the mean F1 over classes; classes without positives are left out.

    Args:
        scores: probabilities [N, C].
        targets: [N, C].
        mask: [N, C], 1 where annotated; None if all is.
        kind: "tagging" (scores of at least `threshold` are positive) or "classification" (the highest score is
            positive).
        threshold: threshold for "tagging".

    Raises:
        DataError: if shapes do not fit, scores are not finite, or no class has a positive clip.
    """
    found = [answers.f1 for answers in class_answers(scores, targets, mask, kind, threshold)]
    known = [value for value in found if not math.isnan(value)]
    if not known:
        raise DataError("No class has a positive clip, so nothing can be measured.")
    return float(np.mean(known))


def class_answers(
    scores: Array, targets: Array, mask: Array | None = None, kind: str = "tagging", threshold: float = 0.5
) -> list[ClassAnswers]:
    """Return precision, recall and F1 of every class; the arguments are those of `f1`.

    Raises:
        DataError: if shapes do not fit or scores are not finite.
    """
    score, target, annotated = _checked(scores, targets, mask)
    predicted = score >= threshold
    if kind == "classification":
        predicted = np.arange(score.shape[1]) == score.argmax(axis=1)[:, None]
    true = (target > 0.5) & annotated
    sums = (np.sum(rows, axis=0).tolist() for rows in (predicted & true, true, predicted & annotated))
    return [
        ClassAnswers(
            precision=hits / answers if answers else math.nan,
            recall=hits / positives if positives else math.nan,
            f1=2 * hits / (positives + answers) if positives else math.nan,
        )
        for hits, positives, answers in zip(*sums, strict=True)
    ]


def confusion(scores: Array, targets: Array) -> npt.NDArray[np.int64]:
    """Return the number of clips of each class (rows) that were classified as each class (columns) [C, C].

    Raises:
        DataError: if shapes do not fit or scores are not finite.
    """
    score, target, _ = _checked(scores, targets, None)
    counts = np.zeros((score.shape[1], score.shape[1]), dtype=np.int64)
    np.add.at(counts, (target.argmax(axis=1), score.argmax(axis=1)), 1)
    return counts


def divergence(probabilities: Array, teacher: Array, kind: str) -> float:
    """Return the mean Kullback-Leibler divergence from a teacher, in nats: the loss minus the teacher's entropy.

    Args:
        probabilities: probabilities of the model [N, C].
        teacher: probabilities of the teacher [N, C].
        kind: "bce" (a mean over clips and classes) or "ce" (a mean over clips).
    """
    p, q = np.asarray(teacher, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if kind == "bce":
        return float((_relative(p, q) + _relative(1 - p, 1 - q)).mean())
    return float(_relative(p, q).sum(axis=1).mean())


def _relative(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return p log(p / q), 0 where p is 0."""
    tiny = np.finfo(np.float64).tiny
    return np.where(p > 0, p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny))), 0.0)


def per_class(scores: Array, targets: Array, mask: Array | None = None) -> list[ClassResult]:
    """Return the metrics of every class.

    Raises:
        DataError: if shapes do not fit or scores are not finite.
        MissingExtraError: if scikit-learn is not installed.
    """
    with needing("Measuring mAP and ROC-AUC", "train"):
        from sklearn.metrics import average_precision_score, roc_auc_score
    scores, targets, annotated = _checked(scores, targets, mask)
    results = []
    for c in range(scores.shape[1]):
        rows = annotated[:, c]
        score, positive = scores[rows, c], targets[rows, c] > 0.5
        n, total = int(positive.sum()), int(rows.sum())
        precision = float(average_precision_score(positive, score)) if n else math.nan
        area = float(roc_auc_score(positive, score)) if 0 < n < total else math.nan
        results.append(ClassResult(precision, area, n, total))
    return results


def write_confusion(path: str | Path, labels: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
    """Write a confusion matrix as CSV: one row per class, one column per prediction."""
    rows = [(label, *row) for label, row in zip(labels, counts.tolist(), strict=True)]
    write_csv(path, [("class", *labels), *rows])


def write_per_class(
    path: str | Path, labels: Sequence[str], results: Sequence[ClassResult], answers: Sequence[ClassAnswers]
) -> None:
    """Write a CSV table with one row per class; metrics that are not defined are left empty.

    Raises:
        DataError: if the numbers of labels and results differ.
    """
    if len(labels) != len(results):
        raise DataError(f"There are {len(results)} results for {len(labels)} classes.")
    rows = [
        (label, *("" if isinstance(value, float) and math.isnan(value) else value for value in (*result, *predicted)))
        for label, result, predicted in zip(labels, results, answers, strict=True)
    ]
    write_csv(path, [("label", *ClassResult._fields, *ClassAnswers._fields), *rows])


def fold_mean(results: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Return mean, standard deviation and values of one metric over folds.

    Raises:
        DataError: if there are no folds, or the metric is missing in one of them.
    """
    if not results or any(metric not in result for result in results):
        raise DataError(f"{metric!r} is missing in the results of {len(results)} folds.")
    values = [float(result[metric]) for result in results]
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "folds": values}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        raise DataError("No class has both positive and negative clips, so nothing can be measured.")
    return float(np.mean(known))


def _checked(
    scores: Array, targets: Array, mask: Array | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    score, target = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    annotated = np.ones(score.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=np.float64) > 0
    if score.ndim != 2 or score.shape != target.shape or score.shape != annotated.shape or not score.size:
        raise DataError(
            f"Scores {list(score.shape)}, targets {list(target.shape)} and mask {list(annotated.shape)} must all be "
            "[N, C]."
        )
    if not np.isfinite(score).all():
        raise DataError("Some scores are not finite. The model has diverged, or its input is damaged.")
    return score, target, annotated
