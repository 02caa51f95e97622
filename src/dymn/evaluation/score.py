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

HEARD = 0.3  # a class counts as heard by the teacher from this probability on
SURE = 0.5  # a class is certain to the teacher above this probability
LOWER_IS_BETTER = ("distillation",)


class Predictions(NamedTuple):
    """The scores of a model on N clips, and their annotation."""

    keys: list[str]
    probabilities: Floats  # [N, C]
    targets: Floats  # [N, C]
    mask: Floats  # [N, C]
    teacher: Floats | None  # [N, C], the teacher's probabilities
    distillation: float  # how far the model is from the teacher, see `metrics.divergence`; NaN without a teacher
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

    With `whole` (None: where the task asks for that), clips are heard at once, up to `WHOLE` seconds; only what is
    shorter than `seconds` is filled up.
    """
    at_once = task.whole if whole is None else whole
    longest = max(seconds, WHOLE) if at_once else seconds
    sampler = PlainSampler(len(source), shuffle=False)
    return Loader(source, sampler, batch_size, seconds=seconds, crop="windows", longest=longest, fill=fill, **options)


def probabilities(logits: Tensor, kind: str) -> Tensor:
    """Return sigmoid ("bce") or softmax ("ce") of logits [B, C]."""
    return torch.sigmoid(logits) if kind == "bce" else torch.softmax(logits, dim=1)


class _Recordings:
    """What a model and its teacher say of recordings, a mean over their windows by seconds of sound."""

    def __init__(self) -> None:
        self.said: dict[str, Tensor] = {}  # [C], times seconds
        self.taught: dict[str, Tensor] = {}  # [C], times seconds; only where there is a teacher
        self.annotation: dict[str, tuple[Tensor, Tensor]] = {}  # targets and mask [C]
        self.seconds: dict[str, float] = {}

    def add(self, batch: Batch, weights: Sequence[float], said: Tensor, taught: Tensor) -> None:
        """Take in the probabilities [B, C] of windows."""
        for i, (key, weight) in enumerate(zip(batch.keys, weights, strict=True)):
            self.annotation.setdefault(key, (batch.target[i], batch.mask[i]))
            self.seconds[key] = self.seconds.get(key, 0.0) + weight
            self.said[key] = self.said.get(key, 0.0) + weight * said[i]
            if batch.has_teacher[i]:
                self.taught[key] = self.taught.get(key, 0.0) + weight * taught[i]

    def scores(self, keys: Sequence[str], bad: dict[str, str], kind: str) -> Predictions:
        """Return the scores of the recordings, in the order of `keys`, without the bad ones.

        Raises:
            DataError: if none is left.
        """
        heard = [key for key in keys if key in self.said and key not in bad]
        if not heard:
            raise DataError("No clip could be read, so nothing can be evaluated.")
        said = torch.stack([self.said[key] / self.seconds[key] for key in heard])
        known = [i for i, key in enumerate(heard) if key in self.taught]
        taught = torch.stack([self.taught[heard[i]] / self.seconds[heard[i]] for i in known]) if known else None
        targets, mask = (
            torch.stack(column).numpy() for column in zip(*(self.annotation[key] for key in heard), strict=True)
        )
        return Predictions(
            keys=heard,
            probabilities=said.float().numpy(),
            targets=targets,
            mask=mask,
            teacher=taught.float().numpy() if taught is not None and len(known) == len(heard) else None,
            distillation=float(metrics.divergence(said[known].numpy(), taught.numpy(), kind))
            if taught is not None
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
    teachers: OnlineTeachers | None = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Let a model hear all recordings of a loader, in evaluation mode.

    Args:
        model: on the device where `front_end` is.
        front_end: without jitter.
        loader: recordings in order (see `evaluation_loader`); its teacher logits are compared with where it has some.
        kind: "bce" or "ce".
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
        said = probabilities(model(log_mel).logits.cpu().double(), kind)
        batch = batch._replace(waveform=batch.waveform[:, :0]).to("cpu")
        if teachers is not None:
            heard = teachers.teach(log_mel).logits.float().cpu()
            batch = batch._replace(teacher=heard, has_teacher=torch.ones(len(heard), dtype=torch.bool))
        found.add(batch, collated.weights or [1.0] * len(batch.keys), said, probabilities(batch.teacher.double(), kind))
        if progress is not None:
            progress(len(found.seconds) - before)
    return found.scores(loader.source.keys, dict(loader.bad), kind)


def figures(scores: Predictions, kind: str) -> dict[str, Any]:
    """Return the task's figures, and how far model and teacher agree where there is a teacher.

    Without labels (or without any positive one) the figures are all against the teacher: `distillation` (lower is
    better), `top1_agreement`, `confidence`, the mean ratio of probabilities where the teacher's is above `SURE`, and
    `teacher_mAP`, the mAP of finding the classes to which the teacher gives at least `HEARD`.
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
    """Return which figure chooses the checkpoint.

    It is the task's, or the distance to the teacher for clips without labels.
    """
    return task.metric if task.metric in found else "distillation"


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a figure is at least as good as the best so far.

    Of equal epochs, the one that has learned longer counts.
    """
    if best is None or best != best:
        return True
    return value <= best if metric in LOWER_IS_BETTER else value >= best
