"""Scores of a model on a dataset, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dymn.data import Batch, Loader, PlainSampler, Source, TaskSpec
from dymn.data.windows import WHOLE
from dymn.errors import DataError
from dymn.evaluation import metrics
from dymn.evaluation.teachers import OnlineTeachers
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.system.arrays import Floats

POSITIVE = 0.3  # a class is positive from this probability of the teacher on
SURE = 0.5  # above this probability of the teacher, a class is included in `confidence`
LOWER_IS_BETTER = ("distillation",)


class Predictions(NamedTuple):
    """The scores of a model on N clips, and their annotation."""

    keys: list[str]
    probabilities: Floats  # [N, C]
    targets: Floats  # [N, C]
    mask: Floats  # [N, C]
    teacher: Floats | None  # [N, C], the teacher's probabilities
    distillation: float  # distance to the teacher, see `metrics.divergence`; NaN without a teacher
    bad: dict[str, str]  # reason by key of the clips that were left out


def evaluation_loader(
    source: Source,
    task: TaskSpec,
    seconds: float,
    fill: str,
    batch_size: int,
    whole: bool | None = None,
    **options: Any,
) -> Loader:
    """Return a loader of whole recordings in order, cut into windows of `seconds`.

    With `whole` (None: if the task requires it), a clip of up to `WHOLE` seconds is a single window, and only clips
    shorter than `seconds` are filled.
    """
    at_once = task.whole if whole is None else whole
    longest = max(seconds, WHOLE) if at_once else seconds
    sampler = PlainSampler(len(source), shuffle=False)
    return Loader(source, sampler, batch_size, seconds=seconds, crop="windows", longest=longest, fill=fill, **options)


def probabilities(logits: Tensor, kind: str) -> Tensor:
    """Return sigmoid ("bce") or softmax ("ce") of logits [B, C]."""
    return torch.sigmoid(logits) if kind == "bce" else torch.softmax(logits, dim=1)


class _Recordings:
    """Probabilities of a model and its teacher for recordings: means over windows, weighted by duration."""

    def __init__(self) -> None:
        self.predicted: dict[str, Tensor] = {}  # [C], times seconds
        self.teacher: dict[str, Tensor] = {}  # [C], times seconds; only for clips with a teacher
        self.annotation: dict[str, tuple[Tensor, Tensor]] = {}  # targets and mask [C]
        self.seconds: dict[str, float] = {}

    def add(self, batch: Batch, weights: Sequence[float], predicted: Tensor, teacher: Tensor) -> None:
        """Add the probabilities [B, C] of windows."""
        for i, (key, weight) in enumerate(zip(batch.keys, weights, strict=True)):
            self.annotation.setdefault(key, (batch.target[i], batch.mask[i]))
            self.seconds[key] = self.seconds.get(key, 0.0) + weight
            self.predicted[key] = self.predicted.get(key, 0.0) + weight * predicted[i]
            if batch.has_teacher[i]:
                self.teacher[key] = self.teacher.get(key, 0.0) + weight * teacher[i]

    def scores(self, keys: Sequence[str], bad: dict[str, str], kind: str) -> Predictions:
        """Return the scores of the recordings in the order of `keys`, or raise a `DataError` if all are bad."""
        good = [key for key in keys if key in self.predicted and key not in bad]
        if not good:
            raise DataError("No clip could be read, so nothing can be evaluated.")
        predicted = torch.stack([self.predicted[key] / self.seconds[key] for key in good])
        known = [i for i, key in enumerate(good) if key in self.teacher]
        teacher = torch.stack([self.teacher[good[i]] / self.seconds[good[i]] for i in known]) if known else None
        targets, mask = (
            torch.stack(column).numpy() for column in zip(*(self.annotation[key] for key in good), strict=True)
        )
        return Predictions(
            keys=good,
            probabilities=predicted.float().numpy(),
            targets=targets,
            mask=mask,
            teacher=teacher.float().numpy() if teacher is not None and len(known) == len(good) else None,
            distillation=float(metrics.divergence(predicted[known].numpy(), teacher.numpy(), kind))
            if teacher is not None
            else float("nan"),
            bad=bad,
        )


@torch.inference_mode()
def score(
    model: MobileNet,
    front_end: LogMel,
    loader: Loader,
    kind: str,
    *,
    answered: Callable[[Tensor], Tensor] | None = None,
    teachers: OnlineTeachers | None = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Return the scores of a model, in evaluation mode, for all recordings of a loader.

    Args:
        model: on the device where `front_end` is.
        front_end: without jitter.
        loader: recordings in order (see `evaluation_loader`); scores are compared with its teacher logits, if any.
        kind: "bce" or "ce", of the data.
        answered: returns the probabilities of the data's classes for the model's logits; by default, these are the
            model's classes, and exclusive if those of the data are.
        teachers: online teachers to use instead, if given.
        progress: called with the number of new recordings in each batch.

    Raises:
        DataError: if too many clips are bad, or none is left.
    """
    model.eval()
    device = front_end.basis.device
    found = _Recordings()
    for collated in loader.collated(0):
        batch = collated.batch
        if batch is None:
            continue
        before = len(found.seconds)
        log_mel = front_end(batch.waveform.to(device))
        logits = model(log_mel).logits.cpu().double()
        predicted = probabilities(logits, kind) if answered is None else answered(logits)
        batch = batch._replace(waveform=batch.waveform[:, :0]).to("cpu")
        if teachers is not None:
            taught = teachers.teach(log_mel).logits.float().cpu()
            batch = batch._replace(teacher=taught, has_teacher=torch.ones(len(taught), dtype=torch.bool))
        found.add(
            batch, collated.weights or [1.0] * len(batch.keys), predicted, probabilities(batch.teacher.double(), kind)
        )
        if progress is not None:
            progress(len(found.seconds) - before)
    return found.scores(loader.source.keys, dict(loader.bad), kind)


def figures(scores: Predictions, kind: str) -> dict[str, Any]:
    """Return the metrics of the task and, if there is a teacher, of the agreement with it.

    Without labels, or without a positive label, there are only those of the agreement: `distillation` (lower is
    better); `top1_agreement`; `confidence`, the mean ratio of probabilities where the teacher's is above `SURE`; and
    `teacher_mAP`, for which classes with a teacher's probability of at least `POSITIVE` are positive.
    """
    found: dict[str, Any] = {"clips": len(scores.keys), "bad_clips": len(scores.bad)}
    if ((scores.targets > 0.5) & (scores.mask > 0)).any():
        if kind == "ce":
            found |= metrics.evaluate(scores.probabilities, scores.targets, kind="classification")
        else:
            found |= metrics.evaluate(scores.probabilities, scores.targets, scores.mask)
    if scores.teacher is not None:
        found["distillation"] = scores.distillation
        found["top1_agreement"] = float((scores.probabilities.argmax(axis=1) == scores.teacher.argmax(axis=1)).mean())
        sure = scores.teacher > SURE
        if sure.any():
            found["confidence"] = float((scores.probabilities[sure] / scores.teacher[sure]).mean())
        positive = (scores.teacher >= POSITIVE).astype(np.float32)
        if positive.any():
            found["teacher_mAP"] = metrics.mean_average_precision(scores.probabilities, positive)
    return found


def deciding_metric(found: dict[str, Any], task: TaskSpec) -> str:
    """Return the metric that selects the checkpoint: the task's or, without labels, the distance to the teacher."""
    return task.metric if task.metric in found else "distillation"


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value is at least as good as the best so far; of equally good epochs, the latest is selected."""
    if best is None or best != best:
        return True
    return value <= best if metric in LOWER_IS_BETTER else value >= best
