"""From a batch to its loss: augment, front end, one mixup for input, labels and teacher, then eq. 8."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.augment import Mixing, cut_short, draw_mixing, gain, mix_waveforms, roll, spec_augment
from dymn.data import Batch
from dymn.frontend import LogMel
from dymn.losses import Targets, distillation_loss, mix, probabilities, targets_of
from dymn.training.recipe import TrainConfig
from dymn.training.teachers import Lesson, OnlineTeachers

SHORTEST = 0.25  # of a clip's length, of clips that are cut short

Values = TypeVar("Values", npt.NDArray[Any], Tensor)


class Share(NamedTuple):
    """Which clips of a global batch belong to this process: every `world`-th, from `rank` on."""

    rank: int = 0
    world: int = 1

    def of(self, values: Values, n: int) -> Values:
        """Return this process's `n` values of those drawn for the whole batch."""
        return values[self.rank :: self.world][:n]

    def of_mixing(self, mixing: Mixing, n: int, device: torch.device) -> Mixing:
        """Return the mixing of this process's `n` clips among themselves: the clips of the others are not here to be mixed with."""
        order = self.of(mixing.partner, n)
        return Mixing(order.argsort().argsort().to(device), self.of(mixing.share, n).to(device))


class Example(NamedTuple):
    """What a network hears of a batch, and what it should say: augmented, mixed, and taught by the online teachers, if there are any."""

    log_mel: Tensor  # [B, 1, F, T]
    targets: Targets
    lesson: Lesson | None


class Step:
    """Turns batches into losses. All chance comes from the generator given at each call."""

    def __init__(
        self, config: TrainConfig, kind: str, front_end: LogMel, teachers: OnlineTeachers | None, feature_scale: float, share: Share
    ) -> None:
        self.augment = config.augment
        self.teacher = config.teacher
        self.label_weight = config.teacher.label_weight if config.teacher.is_present else 1.0
        self.kind = kind
        self.front_end = front_end
        self.teachers = teachers
        self.feature_scale = feature_scale
        self.share = share
        self.batch_size = config.optim.batch_size // config.optim.accumulate

    def __call__(self, model: nn.Module, batch: Batch, chance: np.random.Generator) -> Tensor:
        """Return the loss of a batch, a scalar; see `prepare` for the batch and the generator, `loss` for the model."""
        return self.loss(model, self.prepare(batch, chance))

    def prepare(self, batch: Batch, chance: np.random.Generator) -> Example:
        """Augment a batch, compute its spectrograms and ask the teachers.

        Args:
            batch: on the device of the model.
            chance: the same in every process. As much is drawn as the whole batch needs, whatever this process's share of it, so that
                what is drawn for a clip does not depend on how many processes there are (but for its partner in a mixture).
        """
        waveform, targets = self._waveforms(batch, chance)
        log_mel, targets = self._spectrograms(waveform, targets, chance)
        if self.teachers is None:
            return Example(log_mel, targets, None)
        lesson = self.teachers.teach(log_mel)
        heard = probabilities(lesson.logits.float(), self.kind)
        return Example(log_mel, targets._replace(teacher=heard, teacher_share=torch.ones_like(targets.teacher_share)), lesson)

    def loss(self, model: nn.Module, example: Example) -> Tensor:
        """Return the loss of a model that is called with log-mel [B, 1, F, T], a scalar."""
        output = model(example.log_mel)
        loss = distillation_loss(output.logits.float(), example.targets, label_weight=self.label_weight, kind=self.kind)
        if example.lesson is not None and self.teacher.feature_weight > 0:
            distance = functional.mse_loss(output.embedding.float(), example.lesson.embedding.float())
            loss = loss + self.teacher.feature_weight * distance / self.feature_scale
        return loss

    def _waveforms(self, batch: Batch, chance: np.random.Generator) -> tuple[Tensor, Targets]:
        augment, n = self.augment, len(batch.waveform)
        furthest = round(augment.roll_ms / 1000 * self.front_end.config.sample_rate)
        shifts = chance.integers(-furthest, furthest + 1, self.batch_size)
        decibels = chance.uniform(-augment.gain_db, augment.gain_db, self.batch_size)
        waveform = batch.waveform
        if furthest:
            waveform = roll(waveform, self.share.of(shifts, n))
        if augment.gain_db:
            waveform = gain(waveform, self.share.of(decibels, n))
        targets = targets_of(batch.target, batch.mask, batch.teacher, batch.has_teacher, self.kind)
        if augment.wave_mixup:
            drawn = draw_mixing(self.batch_size, augment.wave_alpha, chance, augment.wave_mixup)
            mixing = self.share.of_mixing(drawn, n, waveform.device)
            waveform, targets = mix_waveforms(waveform, mixing), targets.mixed(*mixing)
        if augment.padding:
            is_short, share = chance.random(self.batch_size) < augment.padding, chance.uniform(SHORTEST, 1.0, self.batch_size)
            waveform = cut_short(waveform, self.share.of(np.where(is_short, share, 1.0), n))
        return waveform, targets

    def _spectrograms(self, waveform: Tensor, targets: Targets, chance: np.random.Generator) -> tuple[Tensor, Targets]:
        augment, n = self.augment, len(waveform)
        basis = self.front_end.jittered_basis(torch.Generator().manual_seed(int(chance.integers(2**62)))) if augment.jitter else None
        log_mel = self.front_end(waveform, basis)
        if augment.spec_mixup:
            mixing = self.share.of_mixing(draw_mixing(self.batch_size, augment.spec_mixup, chance), n, log_mel.device)
            log_mel, targets = mix(log_mel, mixing.partner, mixing.share), targets.mixed(*mixing)
        if augment.frequency_mask or augment.time_mask:
            chances = self.share.of(chance.random((self.batch_size, 4)), n)
            log_mel = spec_augment(log_mel, augment.frequency_mask, augment.time_mask, chances)
        return log_mel, targets
