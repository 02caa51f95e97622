"""Scores of a model on a dataset, and the figures that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dymn import metrics
from dymn.data import Loader, PlainSampler, Source, TaskSpec
from dymn.errors import DataError
from dymn.frontend import LogMel
from dymn.losses import probabilities, targets_of, teacher_entropy, teacher_loss
from dymn.model import MobileNet
from dymn.training.teachers import OnlineTeachers

Array = npt.NDArray[np.float32]
HEARD = 0.3  # a class counts as heard by the teacher from this probability on
SURE = 0.5  # a class is certain to the teacher above this probability
LOWER_IS_BETTER = ("distillation",)


class Scores(NamedTuple):
    """What a model says of N clips, beside what it should say."""

    keys: list[str]
    probabilities: Array  # [N, C]
    targets: Array  # [N, C]
    mask: Array  # [N, C]
    teacher: Array | None  # [N, C], the teacher's probabilities
    distillation: float  # mean teacher loss above the teacher's own entropy; NaN without a teacher
    bad: dict[str, str]  # reason by key of the clips that were left out


def evaluation_loader(source: Source, task: TaskSpec, seconds: float, fill: str, batch_size: int, **options: Any) -> Loader:
    """Return a loader of all clips in order: whole clips one by one where the task asks for that, else of equal length."""
    if task.whole:
        return Loader(source, PlainSampler(len(source), shuffle=False), 1, seconds=None, crop="start", fill=fill, **options)
    sampler = PlainSampler(len(source), shuffle=False)
    return Loader(source, sampler, batch_size, seconds=seconds, crop="start", fill=fill, **options)


@torch.inference_mode()
def score(
    model: MobileNet,
    front_end: LogMel,
    loader: Loader,
    kind: str,
    *,
    teachers: OnlineTeachers | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Let a model hear all clips of a loader, in evaluation mode.

    Args:
        model: on the device where `front_end` is.
        front_end: without jitter.
        loader: clips in order; its teacher logits are compared with where it has some.
        kind: "bce" or "ce".
        teachers: are asked instead, if given.
        progress: told the number of clips of each batch.

    Raises:
        DataError: if too many clips are bad, or none is left.
    """
    model.eval()
    device = front_end.basis.device
    keys: list[str] = []
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # probabilities, targets, mask, teacher's probabilities
    losses: list[tuple[float, int]] = []
    taught = True
    for batch in loader.epoch(0):
        log_mel = front_end(batch.waveform.to(device))
        logits = model(log_mel).logits.float().cpu()
        batch = batch._replace(waveform=batch.waveform[:, :0]).to("cpu")
        if teachers is not None:
            heard = teachers.teach(log_mel).logits.float().cpu()
            batch = batch._replace(teacher=heard, has_teacher=torch.ones(len(heard), dtype=torch.bool))
        targets = targets_of(batch.target, batch.mask, batch.teacher, batch.has_teacher, kind)
        if batch.has_teacher.any():
            losses.append((float(teacher_loss(logits, targets, kind) - teacher_entropy(targets, kind)), len(logits)))
        taught = taught and bool(batch.has_teacher.all())
        keys += batch.keys
        rows.append((probabilities(logits, kind), batch.target, batch.mask, targets.teacher))
        if progress is not None:
            progress(len(logits))
    if not rows:
        raise DataError("No clip could be read, so that nothing can be evaluated.")
    said, annotation, mask, teacher = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return Scores(
        keys=keys,
        probabilities=said,
        targets=annotation,
        mask=mask,
        teacher=teacher if taught else None,
        distillation=sum(loss * n for loss, n in losses) / sum(n for _, n in losses) if losses else float("nan"),
        bad=dict(loader.bad),
    )


def figures(scores: Scores, kind: str) -> dict[str, Any]:
    """Return the task's figures, and how far model and teacher agree where there is a teacher.

    Without labels (or without any positive one) the figures are all against the teacher: `distillation` (lower is better),
    `top1_agreement`, `confidence`, the mean ratio of probabilities where the teacher's is above `SURE`, and `teacher_mAP`, the mAP of
    finding the classes to which the teacher gives at least `HEARD`.
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
        heard = (scores.teacher >= HEARD).astype(np.float32)
        if heard.any():
            found["teacher_mAP"] = metrics.mean_average_precision(scores.probabilities, heard)
    return found


def deciding_metric(found: dict[str, Any], task: TaskSpec) -> str:
    """Return which figure chooses the checkpoint: the task's, or the distance to the teacher for clips without labels."""
    return task.metric if task.metric in found else "distillation"


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a figure is at least as good as the best so far: of equal epochs, the one that has learned longer counts."""
    if best is None or best != best:
        return True
    return value <= best if metric in LOWER_IS_BETTER else value >= best
