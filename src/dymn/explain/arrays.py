"""The decisions of the dynamic parts of a network for one recording, as arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dymn.audio import reading
from dymn.config import BlockConfig, FrontEndConfig, check
from dymn.errors import AudioError
from dymn.inference.windows import AudioLike
from dymn.models.frontend import LogMel
from dymn.models.layers import DynamicConv2d, DynamicReLU
from dymn.models.mobilenet import MobileNet
from dymn.system.arrays import Floats
from dymn.system.files import atomic_write

POSITIONS = BlockConfig.POSITIONS
MAX_SECONDS = 60.0


@dataclass(frozen=True)
class BlockDecisions:
    """The decisions of one block; mappings contain its dynamic positions out of "expand", "depthwise" and "project".

    Attributes:
        number: number of the block, from 1.
        kernels: share of each of the K kernels in the mixture [K] (eq. 2).
        slopes: slopes of the M linear maps of each channel [C, M] (eq. 3).
        intercepts: intercepts of the same maps [C, M].
        frequency: channel-frequency attention [C, F'], or None (eq. 7).
        time: channel-time attention [C, T'], or None.
    """

    number: int
    kernels: dict[str, Floats] = field(default_factory=dict)
    slopes: dict[str, Floats] = field(default_factory=dict)
    intercepts: dict[str, Floats] = field(default_factory=dict)
    frequency: Floats | None = None
    time: Floats | None = None


@dataclass(frozen=True)
class Explanation:
    """One recording, its probabilities, and the decisions of the blocks.

    Attributes:
        name: name of the recording.
        model: name of the network.
        waveform: the explained passage [N], at the front end's sample rate.
        start: start of the passage in the recording, in seconds.
        front_end: settings of the spectrogram.
        log_mel: the network's input [n_mels, T].
        labels: those with the highest probability in any window of the timeline, best first.
        scores: their probabilities for the whole passage [k].
        times: the middles of the timeline's windows in seconds from `start` [W].
        timeline: the probabilities of `labels` in these windows [W, k].
        window: the length of these windows in seconds.
        blocks: the decisions, block by block.
    """

    name: str
    model: str
    waveform: Floats = field(repr=False)
    start: float
    front_end: FrontEndConfig
    log_mel: Floats = field(repr=False)
    labels: tuple[str, ...]
    scores: Floats
    times: Floats = field(repr=False)
    timeline: Floats = field(repr=False)
    window: float
    blocks: tuple[BlockDecisions, ...] = field(repr=False)

    @property
    def seconds(self) -> float:
        """The length of the passage."""
        return len(self.waveform) / self.front_end.sample_rate

    def arrays(self) -> dict[str, Floats]:
        """Return all arrays by flat names such as "block05.kernels.expand"."""
        arrays = {name: getattr(self, name) for name in ("waveform", "log_mel", "scores", "times", "timeline")}
        for block in self.blocks:
            prefix = f"block{block.number:02d}"
            for kind in ("kernels", "slopes", "intercepts"):
                arrays |= {f"{prefix}.{kind}.{position}": values for position, values in getattr(block, kind).items()}
            arrays |= {
                f"{prefix}.{axis}": getattr(block, axis)
                for axis in ("frequency", "time")
                if getattr(block, axis) is not None
            }
        return arrays

    def save(self, path: str | Path) -> None:
        """Write `arrays` and the labels as a NumPy archive (.npz), which `numpy.load` reads."""
        values: dict[str, Any] = {**self.arrays(), "labels": np.array(self.labels)}
        with atomic_write(Path(path)) as file:
            np.savez_compressed(file, **values)


def explain(
    model: MobileNet,
    source: AudioLike,
    sample_rate: int | None = None,
    *,
    top_k: int = 6,
    start: float = 0.0,
    seconds: float = 10.0,
    window: float = 2.0,
    hop: float = 0.1,
) -> Explanation:
    """Run a network on a passage of one recording and return the decisions of its dynamic parts.

    The decisions are those for the whole passage. The timeline is computed from short overlapping windows in separate
    runs.

    Args:
        model: the network; it is run in evaluation mode, and its mode is restored afterwards.
        source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
        sample_rate: sample rate of an array, in Hz.
        top_k: number of labels to keep.
        start: start of the passage, in seconds.
        seconds: maximum length of the passage; the networks were trained on 10 seconds.
        window: length of the windows of the timeline in seconds; windows at the ends are shorter.
        hop: distance between two values of the timeline, in seconds.

    Raises:
        AudioError: if the source cannot be read, or ends before `start`.
        ConfigError: if a setting is not allowed.
    """
    check(1 <= top_k <= model.config.num_classes, f"top_k is {top_k}; it must be from 1 to {model.config.num_classes}.")
    check(start >= 0, f"start is {start}; it must be at least 0 seconds.")
    check(0.1 <= seconds <= MAX_SECONDS, f"seconds is {seconds}; it must be from 0.1 to {MAX_SECONDS:g}.")
    check(0.1 <= window <= MAX_SECONDS, f"window is {window}; it must be from 0.1 to {MAX_SECONDS:g} seconds.")
    check(0.02 <= hop <= MAX_SECONDS, f"hop is {hop}; it must be from 0.02 to {MAX_SECONDS:g} seconds.")
    front_end = model.card.front_end
    waveform = _stretch(source, sample_rate, front_end.sample_rate, start, seconds)
    device = next(model.parameters()).device
    log_mel_of = LogMel(front_end).to(device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            log_mel = log_mel_of(torch.as_tensor(waveform, device=device)[None])
            with _recorded(model) as blocks:
                scores = model.probabilities(model(log_mel).logits)[0]
            times, timeline = _timeline(model, log_mel_of, waveform, front_end.sample_rate, window, hop)
    finally:
        model.train(training)
    best = np.argsort(-timeline.max(axis=0), kind="stable")[:top_k]
    return Explanation(
        name=_name(source),
        model=model.card.name or "network",
        waveform=waveform,
        start=start,
        front_end=front_end,
        log_mel=_array(log_mel[0, 0]),
        labels=tuple(model.card.labels[i] for i in best),
        scores=_array(scores)[best],
        times=times,
        timeline=timeline[:, best],
        window=window,
        blocks=tuple(blocks),
    )


def _stretch(source: AudioLike, sample_rate: int | None, target_rate: int, start: float, seconds: float) -> Floats:
    first, last = round(start * target_rate), round((start + seconds) * target_rate)
    if isinstance(source, (np.ndarray, Tensor)):
        check(sample_rate is not None, "sample_rate is missing. Give the sample rate of the array in Hz.")
        samples = reading.from_array(source, sample_rate or target_rate, target_rate)[first:last]
    else:
        blocks, length = [], 0
        for block in reading.stream(source, target_rate):
            blocks.append(block[max(0, first - length) : max(0, last - length)])
            length += len(block)
            if length >= last:
                break
        samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if len(samples) == 0:
        raise AudioError(f"{_name(source)} ends before {start:g} s. Give an earlier start, or a longer recording.")
    return samples


def _name(source: AudioLike) -> str:
    if isinstance(source, (str, Path)):
        return "standard input" if str(source) == "-" else Path(source).name
    return str(getattr(source, "name", "recording"))


def _timeline(
    model: MobileNet, log_mel_of: LogMel, waveform: Floats, sample_rate: int, window: float, hop: float
) -> tuple[Floats, Floats]:
    """Return the middles [W] of overlapping windows and the probabilities of all labels in them [W, C]."""
    half = round(window * sample_rate / 2)
    step = max(1, round(hop * sample_rate))
    middles = range(step // 2, max(len(waveform), step // 2 + 1), step)
    cuts = [waveform[max(0, middle - half) : middle + half] for middle in middles]
    rows = []
    for _, group in groupby(cuts, key=len):
        equal = list(group)
        for i in range(0, len(equal), 16):
            batch = torch.as_tensor(np.stack(equal[i : i + 16]), device=log_mel_of.basis.device)
            rows.append(model.probabilities(model(log_mel_of(batch)).logits))
    return np.array(middles, np.float32) / np.float32(sample_rate), _array(torch.cat(rows))


@contextmanager
def _recorded(model: MobileNet) -> Iterator[list[BlockDecisions]]:
    """While the context lasts, a run of the model over one clip fills in the decisions of its blocks.

    Only dynamic parts are watched: hooks see the context that they are given, and ask them what they make of it.
    """
    kept: list[dict[str, Any]] = [defaultdict(dict) for _ in model.blocks]
    decisions: list[BlockDecisions] = []
    handles = []

    def keep_kernels(store: dict[str, Any], position: str, module: DynamicConv2d, inputs: tuple[Any, ...]) -> None:
        store["kernels"][position] = _array(module.kernel_attention(inputs[1])[0])

    def keep_maps(store: dict[str, Any], position: str, module: DynamicReLU, inputs: tuple[Any, ...]) -> None:
        slopes, intercepts = module.maps(inputs[1])
        store["slopes"][position], store["intercepts"][position] = _array(slopes[0]), _array(intercepts[0])

    def keep_coordinates(store: dict[str, Any], module: Any, inputs: tuple[Any, ...]) -> None:
        store |= {axis: _array(values[0].flatten(1)) for axis, values in module.coordinates(*inputs).items()}

    for store, block in zip(kept, model.blocks, strict=True):
        for name, module in block.named_modules():
            hook: Any = None
            if isinstance(module, DynamicConv2d):
                hook = partial(keep_kernels, store, name.split(".")[0])
            elif isinstance(module, DynamicReLU):
                hook = partial(keep_maps, store, name.split(".")[0])
            elif hasattr(module, "coordinates"):
                hook = partial(keep_coordinates, store)
            if hook is not None:
                handles.append(module.register_forward_pre_hook(hook))
    try:
        yield decisions
    finally:
        for handle in handles:
            handle.remove()
    decisions.extend(BlockDecisions(i, **store) for i, store in enumerate(kept, start=1))


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()


def is_dynamic(model: nn.Module) -> bool:
    """Return whether any part of a network is dynamic."""
    return any(
        isinstance(module, (DynamicConv2d, DynamicReLU)) or hasattr(module, "coordinates") for module in model.modules()
    )
