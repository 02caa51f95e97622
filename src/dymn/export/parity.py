"""Comparison of an exported file with PyTorch on clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from dymn.config import FrontEndConfig
from dymn.evaluation.metrics import mean_average_precision
from dymn.export.plan import PRECISIONS, Bound, Exportable, Plan, sequence_of
from dymn.models.frontend import LogMel
from dymn.models.mobilenet import MobileNet
from dymn.native.log_mel import ArrayLogMel

BEST = 10
"""How many of a clip's classes, PyTorch's best, the mean difference is over; most others are near 0 in any case."""
PRESENT = 3
"""How many of them count as present for the mAP."""

FileRunner = Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.float32], ...]]
"""A file that was opened: what it takes to probabilities [B, C], logits [B, C] and embedding [B, D]; the files of
frame-wise networks give the probabilities of frames [B, T, C], too."""


@dataclass(frozen=True)
class Parity:
    """How a file agrees with PyTorch on clips.

    Attributes:
        clips: how many clips were compared.
        largest: the largest difference of a probability, of frames too where the file gives them.
        mean: the mean difference of the probabilities of each clip's ten best classes.
        logit: the largest difference of a logit.
        agreement: the share of clips whose best class is the same.
        mean_average_precision: mean over clips of the average precision with which the file ranks PyTorch's three best
            classes first.
        bound: what was allowed.
    """

    clips: int
    largest: float
    mean: float
    logit: float
    agreement: float
    mean_average_precision: float
    bound: Bound

    @property
    def holds(self) -> bool:
        """Whether the file keeps to the bound."""
        return (
            bool(getattr(self, self.bound.measure) <= self.bound.tolerance) and self.agreement >= self.bound.agreement
        )

    def __str__(self) -> str:
        """Say it in a line."""
        if self.bound.measure == "largest":
            return (
                f"on {self.clips} clips, probabilities differ from PyTorch's by at most {self.largest:.1e} "
                f"({self.bound.tolerance:.1e} allowed), logits by {self.logit:.1e}"
            )
        return (
            f"on {self.clips} clips, the probabilities of the {BEST} best classes differ from PyTorch's by "
            f"{self.mean:.4f} on average ({self.bound.tolerance:.4g} allowed) and {self.largest:.2f} at most, the "
            f"best class is the same on {100 * self.agreement:.1f} % ({100 * self.bound.agreement:.0f} % required), "
            f"and the mAP is {self.mean_average_precision:.3f} with PyTorch's {PRESENT} best as the truth"
        )


def compare(
    run: FileRunner,
    model: Exportable,
    plan: Plan,
    clips: Sequence[npt.NDArray[np.float32]],
    tolerance: float | None = None,
) -> Parity:
    """Compare a file's numbers with those of PyTorch.

    Args:
        run: the file.
        model: the network, its card with it.
        plan: what the file is.
        clips: waveforms [N] at the model's sample rate, each cut or repeated to the file's length. A few made sounds
            are compared on too; for int8, whose errors have no bound on sounds that are unlike any recording, only if
            there are no clips.
        tolerance: in place of that of `PRECISIONS`. Without it, a frame-wise network that takes waveforms may differ by
            ten times as much as it does from itself behind a front end that rounds otherwise.
    """
    card, bound = model.card, PRECISIONS[plan.precision]
    n_samples = plan.n_samples(card)
    lengths = [n_samples, max(n_samples // 3, card.front_end.n_fft)] if plan.dynamic_time else [n_samples]
    made = [] if plan.precision == "int8" and len(clips) else made_sounds(n_samples, card.front_end)
    front_end, other_front_end = LogMel(card.front_end), ArrayLogMel(card.front_end)
    rounds = sequence_of(model) is not None and plan.input == "waveform"
    model.eval()
    got, expected = [], []
    frames = rounding = 0.0  # the largest differences of a probability of a frame: of the file, of the other front end
    for i, waveform in enumerate([*clips, *made]):
        clip = plan.clip(waveform, card, lengths[i % len(lengths)])
        found = run(plan.feed(clip, card))
        got.append([part[0] for part in found[:2]])
        *of_clips, of_frames = _outputs(model, front_end(torch.from_numpy(clip)))
        expected.append(of_clips)
        if sequence_of(model):
            frames = max(frames, float(abs(of_frames - found[3][0]).max()))
        if rounds:
            again = _outputs(model, torch.from_numpy(other_front_end(clip[0])[None]))[2]
            rounding = max(rounding, float(abs(of_frames - again).max()))
    (p, logits_of_file), (q, logits_of_model) = (np.stack(parts, axis=1) for parts in (got, expected))
    difference = abs(p - q)
    order = q.argsort(axis=1)[:, ::-1]
    present = np.zeros_like(q)
    np.put_along_axis(present, order[:, :PRESENT], 1, axis=1)
    return Parity(
        clips=len(p),
        largest=max(frames, float(difference.max())),
        mean=float(np.take_along_axis(difference, order[:, :BEST], axis=1).mean()),
        logit=float(abs(logits_of_file - logits_of_model).max()),
        agreement=float((p.argmax(axis=1) == order[:, 0]).mean()),
        mean_average_precision=mean_average_precision(p.T, present.T),
        bound=replace(bound, tolerance=max(bound.tolerance, 10 * rounding) if tolerance is None else tolerance),
    )


def _outputs(model: Exportable, log_mel: torch.Tensor) -> tuple[npt.NDArray[np.float32], ...]:
    """Return probabilities [C] and logits [C] of one clip, and the probabilities of its frames, if it has some."""
    with torch.no_grad():
        if isinstance(model, MobileNet) and model.config.sequence is not None:
            maps = model.features(log_mel)
            frames, logits = model.scores(maps, maps.mean(dim=(2, 3)))
        else:
            logits = model(log_mel).logits
            frames = logits[:, None][:, :0]
        values = model.probabilities(logits), logits, model.probabilities(frames)
        return tuple(part[0].numpy() for part in values)


def made_sounds(n_samples: int, front_end: FrontEndConfig) -> list[npt.NDArray[np.float32]]:
    """Return a rising tone, noise in bursts, and near silence.

    Behind the tone there is noise if nothing is added to mel bands before the logarithm: next to a loud tone they hold
    nothing but the rounding of the transform.
    """
    seconds = np.arange(n_samples) / front_end.sample_rate
    rng = np.random.default_rng(0)
    rising = 0.5 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    bursts = 0.2 * rng.standard_normal(n_samples) * (np.sin(2 * np.pi * 1.5 * seconds) > 0.6)
    quiet = 1e-4 * rng.standard_normal(n_samples)
    if not front_end.log_offset:
        rising = rising + 1e-2 * rng.standard_normal(n_samples)
    return [sound.astype(np.float32) for sound in (rising, bursts, quiet)]
