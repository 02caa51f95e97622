"""The costs of a network, its speed on this machine, and dymn's counts of the paper's rows next to the printed ones."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dymn.architectures import Variant
from dymn.config import FrontEndConfig, ModelConfig, check
from dymn.models import paper
from dymn.profiling.counting import Count, count
from dymn.profiling.memory import PeakMemory, ReceptiveField, peak_memory, receptive_field
from dymn.profiling.networks import Network, front_end_of, is_checkpoint, open_network, resolve

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

MILLION = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """A row of the paper: dymn's counts, and the printed numbers (None if the available text lacks one)."""

    table: str
    row: str
    macs: int
    parameters: int
    paper_macs: int | None
    paper_parameters: int | None
    paper_map: float | None

    @property
    def macs_difference(self) -> int | None:
        """The count of dymn minus the paper's."""
        return None if self.paper_macs is None else self.macs - self.paper_macs

    @property
    def parameters_difference(self) -> int | None:
        """The count of dymn minus the paper's."""
        return None if self.paper_parameters is None else self.parameters - self.paper_parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison, including the differences, as plain JSON types."""
        return {
            **dataclasses.asdict(self),
            "macs_difference": self.macs_difference,
            "parameters_difference": self.parameters_difference,
        }


def compare(tables: str | Sequence[str] = "all") -> list[Comparison]:
    """Count the networks of the paper's tables for 128 bands and 1000 frames.

    Args:
        tables: Roman numbers from "II" to "XIII" except III, which has no costs, or "all".

    Raises:
        ConfigError: if there is no such table.
    """
    names = [tables] if isinstance(tables, str) else tables
    wanted = paper.TABLES.values() if "all" in names else [paper.table(name) for name in names]
    return [_compared(table.number, row) for table in wanted for row in table.rows]


def _compared(number: str, row: paper.PaperRow) -> Comparison:
    counted = count(row.variant)
    return Comparison(
        table=number,
        row=row.name,
        macs=counted.macs,
        parameters=counted.parameters,
        paper_macs=None if row.macs is None else row.macs * MILLION,
        paper_parameters=None if row.parameters is None else round(row.parameters * MILLION),
        paper_map=row.map,
    )


def rows_of(model: Network) -> list[Comparison]:
    """Return the rows of the paper's tables with this network, independent of its training."""
    config = resolve(model)
    if config.sequence is not None:  # a frame-wise network, which is of another paper
        return []
    config = dataclasses.replace(config, num_classes=527, temperature=1.0)
    return [
        _compared(table.number, row)
        for table in paper.TABLES.values()
        for row in table.rows
        if dataclasses.replace(row.variant, temperature=1.0).config() == config
    ]


class Latency(NamedTuple):
    """Seconds from spectrogram to logits on this machine."""

    median: float
    fastest: float
    runs: int
    threads: int


def latency(network: MobileNet, n_mels: int = 128, n_frames: int = 1000, runs: int = 5) -> Latency:
    """Measure the time for single spectrograms of zeros, after a warm-up run, on the current device and threads."""
    import torch

    check(
        min(n_mels, n_frames, runs) >= 1,
        f"n_mels, n_frames, runs are {n_mels}, {n_frames}, {runs}; each must be at least 1.",
    )
    training = network.training
    device = next(network.parameters()).device
    log_mel = torch.zeros(1, 1, n_mels, n_frames, device=device)
    seconds = []
    try:
        network.eval()
        with torch.inference_mode():
            for _ in range(runs + 1):
                start = time.perf_counter()
                network(log_mel).logits.cpu()  # waits for the device
                seconds.append(time.perf_counter() - start)
    finally:
        network.train(training)
    return Latency(statistics.median(seconds[1:]), min(seconds[1:]), runs, torch.get_num_threads())


@dataclass(frozen=True)
class Profile:
    """All costs of one network for one length of input."""

    name: str
    input_seconds: float
    n_mels: int
    n_frames: int
    count: Count
    memory: PeakMemory
    receptive_field: ReceptiveField
    latency: Latency | None
    paper: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain JSON types."""
        return {
            "model": self.name,
            "input_seconds": self.input_seconds,
            "n_mels": self.n_mels,
            "n_frames": self.n_frames,
            "parameters": self.count.parameters,
            "macs": self.count.macs,
            "kinds": self.count.kinds,
            "blocks": self.count.parts,
            "peak_memory": dataclasses.asdict(self.memory),
            "receptive_field": dataclasses.asdict(self.receptive_field),
            "latency": self.latency._asdict() if self.latency is not None else None,
            "paper": [row.to_dict() for row in self.paper],
        }


def profile(
    model: Network,
    input_seconds: float = 10.0,
    front_end: FrontEndConfig | None = None,
    runs: int = 5,
) -> Profile:
    """Profile a network for recordings of `input_seconds`.

    Args:
        model: the network, as for `resolve`.
        input_seconds: length of the recording; the paper's counts are for 10 s.
        front_end: settings of the spectrogram; by default, those of the published model, otherwise the standard ones.
        runs: number of runs in PyTorch to measure the latency; with 0, it is not measured, and PyTorch is not needed.

    Raises:
        ConfigError: if `input_seconds` is not above 0 and at most an hour; also as for `resolve`.
    """
    check(0 < input_seconds <= 3600, f"input_seconds is {input_seconds}; it must be above 0 and at most 3600.")
    name = str(model) if isinstance(model, (str, Path)) else ""
    stored = open_network(model) if is_checkpoint(model) else None
    config = resolve(model) if stored is None else stored.config
    front_end = front_end or (front_end_of(model) if stored is None else stored.card.front_end)
    n_frames = 1 + max(0, round(input_seconds * front_end.sample_rate) - 1) // front_end.hop_length
    counted = count(config, front_end.n_mels, n_frames)
    return Profile(
        name=name,
        input_seconds=input_seconds,
        n_mels=front_end.n_mels,
        n_frames=n_frames,
        count=counted,
        memory=peak_memory(config, front_end.n_mels, n_frames),
        receptive_field=receptive_field(config, front_end),
        latency=latency(_network(model, config), front_end.n_mels, n_frames, runs) if runs else None,
        paper=tuple(rows_of(config)),
    )


def _network(model: Network, config: ModelConfig) -> MobileNet:
    """Return the network itself, or one of this configuration with random weights."""
    if not isinstance(model, (str, Path, Variant, ModelConfig)):
        return model
    import torch

    from dymn.models.mobilenet import MobileNet

    return MobileNet(config).initialise(torch.Generator())
