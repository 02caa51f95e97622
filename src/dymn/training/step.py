"""From a batch to its loss: augmentation, front end, one mixup for input, labels and teacher, then eq. 8."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.data import Batch
from dymn.evaluation.teachers import BlockOutputs, OnlineTeachers, TeacherOutput
from dymn.models.frontend import ZERO, LogMel
from dymn.models.mobilenet import MobileNet
from dymn.training.augment import (
    Crossing,
    Mixing,
    blend_waveforms,
    change_speed,
    colour,
    cross,
    cut_short,
    draw_mixing,
    draw_styles,
    gain,
    mix_styles,
    mix_waveforms,
    reverberate,
    roll,
    spec_augment,
)
from dymn.training.losses import Targets, loss_terms, mix, probabilities, targets_of
from dymn.training.settings import TrainConfig

SHORTEST = 0.1  # of a clip's length, of clips that are cut short
POINTS = 9  # octaves of the random filter, from 16 kHz to 62 Hz at 32 kHz
DECAY = (0.1, 1.0)  # seconds, of rooms
ECHO = (0.1, 1.0)  # amplitude
AMOUNT = (0.3, 1.0)  # of another clip's spectrum or level

Values = TypeVar("Values", npt.NDArray[Any], Tensor)


class Share(NamedTuple):
    """Which clips of a global batch belong to this process: every `world`-th, from `rank` on."""

    rank: int = 0
    world: int = 1

    def of(self, values: Values, n: int) -> Values:
        """Return this process's `n` values of those drawn for the whole batch."""
        return values[self.rank :: self.world][:n]

    def of_mixing(self, mixing: Mixing, n: int, device: torch.device) -> Mixing:
        """Return the mixing of this process's `n` clips among themselves; those of others are not available."""
        order = self.of(mixing.partner, n)
        return Mixing(order.argsort().argsort().to(device), self.of(mixing.share, n).to(device))


class Example(NamedTuple):
    """A network's input and targets for a batch, augmented and mixed, and the outputs of online teachers."""

    log_mel: Tensor  # [B, 1, F, T]
    targets: Targets
    teacher_output: TeacherOutput | None


class Step:
    """Turns batches into losses. All chance comes from the generator given at each call."""

    def __init__(
        self,
        config: TrainConfig,
        kind: str,
        front_end: LogMel,
        teachers: OnlineTeachers | None,
        feature_scale: float,
        share: Share,
        class_weights: Tensor | None = None,
    ) -> None:
        self.augment = config.augment
        self.teacher = config.teacher
        self.label_weight = config.teacher.label_weight if config.teacher.is_present else 1.0
        self.kind = kind
        self.smoothing, self.class_weights = config.optim.label_smoothing, class_weights
        self.front_end = front_end
        self.teachers = teachers
        self.feature_scale = feature_scale
        self.share = share
        self.batch_size = config.optim.batch_size // config.optim.accumulate
        # Half of float32's width is enough for a teacher, in the type of the finer mantissa: its outputs are not summed
        # over steps.
        on_gpu = front_end.basis.device.type == "cuda" and config.optim.precision != "fp32"
        self.teacher_dtype = torch.float16 if on_gpu else None
        self.blocks: BlockOutputs | None = None
        self.has_teacher = config.teacher.is_present
        self.terms: dict[str, Tensor] = {}  # of the last loss, where there is a teacher: the terms of eq. 8

    def __call__(self, model: nn.Module, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Return the loss of a batch, a scalar; see `prepare` for the batch and the generator, `loss` for the model."""
        return self.loss(model, self.prepare(batch, rng))

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Example:
        """Augment a batch, compute its spectrograms and run the teachers.

        Args:
            batch: on the device of the model.
            rng: equal in every process. As much is drawn as the whole batch needs, whatever this process's share
                of it, so that what is drawn for a clip does not depend on how many processes there are (but for its
                partner in a mixture).
        """
        log_mel, targets = self.inputs(batch, rng)
        if self.teachers is None:
            return Example(log_mel, targets, None)
        teacher_output = self.teachers.teach(log_mel, self.teacher_dtype)
        taught = probabilities(teacher_output.logits.float() / self.teacher.temperature, self.kind)
        return Example(
            log_mel,
            targets._replace(teacher=taught, teacher_share=torch.ones_like(targets.teacher_share)),
            teacher_output,
        )

    def loss(self, model: nn.Module, example: Example) -> Tensor:
        """Return the loss of a model that is called with log-mel [B, 1, F, T], a scalar."""
        teacher_output = example.teacher_output
        output = model(example.log_mel)
        terms = loss_terms(
            output.logits.float(),
            example.targets,
            label_weight=self.label_weight,
            kind=self.kind,
            smoothing=self.smoothing,
            weights=self.class_weights,
        )
        loss = terms.weighted(self.label_weight)
        if self.has_teacher:
            self.terms = {f"{name}_loss": term.detach() for name, term in terms._asdict().items() if term is not None}
        if teacher_output is not None and self.teacher.feature_weight > 0:
            distance = functional.mse_loss(output.embedding.float(), teacher_output.embedding.float())
            loss = loss + self.teacher.feature_weight * distance / self.feature_scale
        if teacher_output is not None and self.blocks is not None:
            distances = [
                block_distance(own, other) for own, other in zip(self.blocks.taken(), teacher_output.maps, strict=True)
            ]
            loss = loss + self.teacher.block_weight * torch.stack(distances).mean()
        return loss

    def watch_blocks(self, network: MobileNet) -> None:
        """Compare what the blocks of the student give with the teacher's from now on."""
        self.blocks = BlockOutputs(network, training=True)

    def inputs(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        """Return the augmented spectrograms [B, 1, F, T] of a batch and their targets."""
        return self._spectrograms(*self._waveforms(batch, rng), rng)

    def _waveforms(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        augment, n = self.augment, len(batch.waveform)
        furthest = round(augment.roll_ms / 1000 * self.front_end.config.sample_rate)
        shifts = rng.integers(-furthest, furthest + 1, self.batch_size)
        decibels = rng.uniform(-augment.gain_db, augment.gain_db, self.batch_size)
        waveform = batch.waveform
        if augment.shortest:
            waveform = self._shortened(waveform, rng)
        if furthest:
            waveform = roll(waveform, self.share.of(shifts, n))
        waveform = self._varied(waveform, rng)
        if augment.gain_db:
            waveform = gain(waveform, self.share.of(decibels, n))
        teacher_logits = batch.teacher / self.teacher.temperature
        targets = targets_of(batch.target, batch.mask, teacher_logits, batch.has_teacher, self.kind)
        if augment.blend:
            waveform, targets = self._blended(waveform, targets, rng)
        if augment.wave_mixup:
            drawn = draw_mixing(self.batch_size, augment.wave_alpha, rng, augment.wave_mixup)
            mixing = self.share.of_mixing(drawn, n, waveform.device)
            waveform, targets = mix_waveforms(waveform, mixing), targets.mixed(*mixing)
            if augment.annotation == "public":
                targets = targets._replace(labels=(targets.labels > 0.5).float())
        if augment.padding:
            is_short = rng.random(self.batch_size) < augment.padding
            share = rng.uniform(SHORTEST, 1.0, self.batch_size)
            waveform = cut_short(waveform, self.share.of(np.where(is_short, share, 1.0), n))
        return waveform, targets

    def _shortened(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        rate = self.front_end.config.sample_rate
        longest = waveform.shape[1] // rate
        seconds = int(rng.integers(min(math.ceil(self.augment.shortest), longest), longest + 1)) if longest else 0
        return waveform[:, : seconds * rate] if seconds else waveform

    def _varied(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the waveforms backwards, at another speed, through filters and in rooms."""
        augment, n, size = self.augment, len(waveform), self.batch_size
        if augment.reverse:
            is_reversed = self.share.of(rng.random(size) < augment.reverse, n)
            waveform = torch.where(
                torch.from_numpy(is_reversed).to(waveform.device)[:, None], waveform.flip(1), waveform
            )
        if augment.speed:
            octaves = np.log2(1 + augment.speed)
            factors = np.where(rng.random(size) < 0.5, 2.0 ** rng.uniform(-octaves, octaves, size), 1.0)
            waveform = change_speed(waveform, self.share.of(factors, n))
        if augment.colour_db:
            decibels = rng.uniform(-augment.colour_db, augment.colour_db, (size, POINTS))
            waveform = colour(waveform, self.share.of(decibels, n))
        if augment.room:
            decays = self.front_end.config.sample_rate * log_uniform(rng, *DECAY, size)
            levels = np.where(rng.random(size) < augment.room, log_uniform(rng, *ECHO, size), 0.0)
            noise = torch.Generator(waveform.device).manual_seed(int(rng.integers(2**62)) + self.share.rank)
            waveform = reverberate(waveform, self.share.of(decays, n), self.share.of(levels, n), noise)
        return waveform

    def _blended(self, waveform: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        augment, n = self.augment, len(waveform)
        drawn = draw_mixing(self.batch_size, 1.0, rng)
        partner = self.share.of_mixing(drawn, n, waveform.device).partner
        softer = rng.uniform(-augment.blend_db, augment.blend_db, self.batch_size)
        ratios = np.where(rng.random(self.batch_size) < augment.blend, softer, np.inf)
        waveform, share = blend_waveforms(waveform, partner, self.share.of(ratios, n))
        return waveform, targets.mixed(partner, share)

    def _spectrograms(self, waveform: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        augment, n = self.augment, len(waveform)
        basis = None
        if augment.jitter:
            basis = self.front_end.jittered_basis(torch.Generator().manual_seed(int(rng.integers(2**62))))
        log_mel = self.front_end(waveform, basis)
        if augment.cross:
            log_mel = self._crossed(log_mel, rng)
        if augment.mixstyle:
            drawn = draw_styles(self.batch_size, augment.mixstyle_alpha, augment.mixstyle, rng)
            log_mel = mix_styles(log_mel, self.share.of_mixing(drawn, n, log_mel.device))
        if augment.masking == "public":
            log_mel = self._masked(log_mel, rng)
        if augment.spec_mixup:
            mixing = self.share.of_mixing(draw_mixing(self.batch_size, augment.spec_mixup, rng), n, log_mel.device)
            own = targets.mask
            log_mel, targets = mix(log_mel, mixing.partner, mixing.share), targets.mixed(*mixing)
            if augment.annotation == "public":
                targets = targets._replace(mask=own)
        if augment.masking == "clip":
            log_mel = self._masked(log_mel, rng)
        return log_mel, targets

    def _crossed(self, log_mel: Tensor, rng: np.random.Generator) -> Tensor:
        n, size = len(log_mel), self.batch_size
        is_crossed, parts = rng.random(size) < self.augment.cross, rng.integers(1, len(Crossing), size)
        drawn = Mixing(torch.from_numpy(rng.permutation(size)), torch.ones(size))
        partner = self.share.of_mixing(drawn, n, log_mel.device).partner
        chances = np.where(is_crossed, parts, Crossing.NOTHING), rng.uniform(*AMOUNT, size), rng.random(size)
        return cross(log_mel, partner, *(self.share.of(values, n) for values in chances))

    def _masked(self, log_mel: Tensor, rng: np.random.Generator) -> Tensor:
        augment, n = self.augment, len(log_mel)
        if not (augment.frequency_mask or augment.time_mask):
            return log_mel
        chances = self.share.of(rng.random((self.batch_size, 4)), n)
        value = None
        if augment.masking == "public":
            chances, value = np.repeat(chances[:1], n, axis=0), ZERO
        return spec_augment(log_mel, augment.frequency_mask, augment.time_mask, chances, value)


def log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> npt.NDArray[np.float64]:
    """Draw n numbers between two, of which each factor between them is as likely as another."""
    drawn: npt.NDArray[np.float64] = low * (high / low) ** rng.random(n)
    return drawn


def block_distance(own: Tensor, other: Tensor) -> Tensor:
    """Return the mean squared difference of two feature maps, in units of the variance of `other`."""
    other = other.float()
    return functional.mse_loss(own.float(), other) / other.var().clamp(min=1e-12)
