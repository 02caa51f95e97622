"""Tables II-XIII of the paper as data: the network of each row, and the printed numbers.

F. Schmid, K. Koutini, G. Widmer, "Dynamic Convolutional Neural Networks as Efficient Pre-Trained Audio Models",
IEEE/ACM TASLP 2024. Multiply-adds and parameters are in millions as printed, mAP on AudioSet and accuracies in per
cent. Numbers that are missing in the available text of the paper are None. `dymn.profiling.compare` compares these
numbers with dymn's counts.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from dataclasses import replace as but
from typing import Any

from dymn.architectures import Variant
from dymn.config import check


def _architecture(variant: Variant) -> str:
    """Return the name of the architecture of a variant's family and width."""
    return f"{'mn' if variant.dynamic_blocks == 'none' else 'dymn'}{round(10 * variant.width):02d}"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table about AudioSet: a network, differences in its training, and the printed numbers."""

    name: str
    macs: int | None  # millions
    parameters: float | None  # millions
    map: float | None
    variant: Variant
    distilled: bool = True
    imagenet: bool = False
    temperature: float | None = None  # of the kernel attention during training; None is 30 falling to 1

    @property
    def architecture(self) -> str:
        """The architecture on which the row is based: `create_model(row.architecture, **row.settings)` builds it."""
        return _architecture(self.variant)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `Variant` that differ from the `architecture`; "none" stands for no attention."""
        base = dataclasses.asdict(MN if self.variant.dynamic_blocks == "none" else DYMN)
        own = dataclasses.asdict(self.variant)
        different = {name: value for name, value in own.items() if value != base[name] and name != "width"}
        return {name: "none" if value is None else value for name, value in different.items()}

    @property
    def recipe(self) -> str:
        """The recipe that trains the row, together with `assignments`: `dymn train RECIPE --set ... --data FOLDER`."""
        if self.distilled and self.imagenet:
            return f"audioset_kd:{self.architecture}"
        family = self.architecture[:-2]
        return f"audioset_ablation:{family}_{'kd' if self.distilled else 'no_kd'}_{'pt' if self.imagenet else 'no_pt'}"

    @property
    def assignments(self) -> tuple[str, ...]:
        """The changes to the `recipe`, such as "model.settings.n_kernels=2"."""
        changes = {f"model.settings.{name}": value for name, value in self.settings.items()}
        if self.temperature is not None:
            changes |= {"schedule.tau_start": self.temperature, "schedule.tau_end": self.temperature}
        return tuple(f"{name}={json.dumps(value)}" for name, value in changes.items())

    @property
    def command(self) -> str:
        """The command that trains the row on AudioSet in FOLDER."""
        changes = [f"--set {shlex.quote(assignment)}" for assignment in self.assignments]
        return " ".join(["dymn train", self.recipe, "--data FOLDER", *changes])


@dataclass(frozen=True)
class Table:
    """A table of the paper: number, subject, and rows in the printed order."""

    number: str
    title: str
    rows: tuple[PaperRow, ...]

    def __getitem__(self, name: str) -> PaperRow:
        """Return the row of this name.

        Raises:
            ConfigError: if the table has no such row.
        """
        rows = {row.name: row for row in self.rows}
        check(name in rows, f"Table {self.number} has no row {name!r}. Its rows: {', '.join(rows)}.")
        return rows[name]


DOWNSTREAM_TASKS = {"openmic": "OpenMIC", "esc50": "ESC-50", "fsd50k": "FSD50K", "dcase20": "DCASE20"}


@dataclass(frozen=True)
class DownstreamRow:
    """One row of Table III: mAP on OpenMIC and FSD50K, accuracy on ESC-50 and TAU Urban Acoustic Scenes 2020 Mobile."""

    name: str
    openmic: float
    esc50: float
    fsd50k: float
    dcase20: float
    variant: Variant | None = None  # None for the work of others

    @property
    def figures(self) -> dict[str, float]:
        """The printed figures by the recipe of their task."""
        return {task: getattr(self, task) for task in DOWNSTREAM_TASKS}

    @property
    def commands(self) -> dict[str, str]:
        """The commands that train the row on the data in FOLDER, by task; empty for networks of other authors."""
        if self.variant is None:
            return {}
        name = _architecture(self.variant)
        return {
            task: f"dymn train {task}:{name} --data FOLDER{' --fold all' * (task == 'esc50')}"
            for task in DOWNSTREAM_TASKS
        }


DYMN = Variant()
MN = Variant(dynamic_blocks="none", attention="se", attention_blocks="se")
MN_STATIC = but(MN, attention=None)
ALL_BLOCKS = but(MN, attention_blocks="all")


def _proposed(imagenet: bool = False, name: str = "Proposed DyMN") -> PaperRow:
    return PaperRow(name, 582, 10.55, 47.7 if imagenet else 47.5, DYMN, imagenet=imagenet)


TABLE_II = Table(
    "II",
    "MobileNets and DyMNs by width",
    (
        PaperRow("MN (α = 0.4)", 111, 0.98, 43.0, but(MN, width=0.4), imagenet=True),
        PaperRow("MN (α = 0.5)", 160, 1.43, 44.2, but(MN, width=0.5), imagenet=True),
        PaperRow("DyMN-S", 117, 1.96, 45.0, but(DYMN, width=0.4), imagenet=True),
        PaperRow("MN (α = 1.0)", 541, 4.88, 47.0, MN, imagenet=True),
        _proposed(imagenet=True, name="DyMN-M"),
        PaperRow("MN (α = 2.0)", 2060, 17.91, 47.8, but(MN, width=2.0), imagenet=True),
        PaperRow("MN (α = 3.0)", 4550, 39.09, 48.2, but(MN, width=3.0), imagenet=True),
        PaperRow("MN (α = 4.0)", 8030, 68.43, 48.3, but(MN, width=4.0), imagenet=True),
        PaperRow("DyMN-L", 2220, 39.97, 49.0, but(DYMN, width=2.0), imagenet=True),
    ),
)

TABLE_III = (
    DownstreamRow("Baseline", 79.5, 76.9, 43.4, 54.1),
    DownstreamRow("SOTA", 84.3, 98.1, 69.7, 76.6),
    DownstreamRow("SOTA CNN", 83.1, 96.7, 58.6, 73.7),
    DownstreamRow("PaSST-S", 84.3, 96.8, 65.3, 75.6),
    DownstreamRow("MN (α = 0.4)", 82.0, 93.2, 59.7, 69.5, but(MN, width=0.4)),
    DownstreamRow("DyMN-S", 83.6, 96.4, 61.9, 72.9, but(DYMN, width=0.4)),
    DownstreamRow("MN (α = 1.0)", 83.8, 96.4, 65.1, 72.1, MN),
    DownstreamRow("DyMN-M", 84.4, 96.4, 64.2, 73.6, DYMN),
    DownstreamRow("MN (α = 2.0)", 84.7, 96.9, 65.4, 73.2, but(MN, width=2.0)),
    DownstreamRow("DyMN-L", 85.5, 97.4, 65.5, 75.7, but(DYMN, width=2.0)),
    DownstreamRow("MN (α = 3.0)", 84.8, 96.8, 65.6, 73.5, but(MN, width=3.0)),
)

TABLE_IV = Table(
    "IV",
    "Knowledge distillation (KD) and ImageNet pre-training (PT)",
    (
        PaperRow("DyMN, KD, PT", 582, 10.55, 47.7, DYMN, distilled=True, imagenet=True),
        PaperRow("MN, KD, PT", 541, 4.88, 47.0, MN, distilled=True, imagenet=True),
        PaperRow("DyMN, KD", 582, 10.55, 47.5, DYMN, distilled=True, imagenet=False),
        PaperRow("MN, KD", 541, 4.88, 45.8, MN, distilled=True, imagenet=False),
        PaperRow("DyMN, PT", 582, 10.55, 43.2, DYMN, distilled=False, imagenet=True),
        PaperRow("MN, PT", 541, 4.88, 44.1, MN, distilled=False, imagenet=True),
        PaperRow("DyMN", 582, 10.55, 43.0, DYMN, distilled=False, imagenet=False),
        PaperRow("MN", 541, 4.88, 42.4, MN, distilled=False, imagenet=False),
    ),
)

TABLE_V = Table(
    "V",
    "Dy-Conv, Dy-ReLU and Coordinate Attention in the dynamic block",
    (
        _proposed(),
        PaperRow("MN Baseline", 541, 4.88, 45.8, MN),
        PaperRow("MN Static (no SE)", 540, 3.36, 44.4, MN_STATIC),
        PaperRow("- Dy-Conv", 577, 6.69, 47.2, but(DYMN, dynamic_convs=())),
        PaperRow("- Dy-ReLU", 580, 8.40, 46.9, but(DYMN, dynamic_relus=())),
        PaperRow("- CA", 554, 9.47, 46.9, but(DYMN, attention=None)),
        PaperRow("- Dy-Conv, Dy-ReLU", 574, 4.54, 46.7, but(DYMN, dynamic_convs=(), dynamic_relus=())),
        PaperRow("- Dy-Conv, CA", 548, 5.62, 46.6, but(DYMN, dynamic_convs=(), attention=None)),
        PaperRow("- Dy-ReLU, CA", 551, 7.32, 46.1, but(DYMN, dynamic_relus=(), attention=None)),
    ),
)

TABLE_VI = Table(
    "VI",
    "Which blocks are dynamic",
    (
        _proposed(),
        PaperRow("MN Baseline", 541, 4.88, 45.8, MN),
        PaperRow("First 5 blocks dynamic", 543, 3.52, 46.2, but(DYMN, dynamic_blocks="first5")),
        PaperRow("Mid 5 blocks dynamic", 545, 4.09, 46.3, but(DYMN, dynamic_blocks="mid5")),
        PaperRow("Last 5 blocks dynamic", 572, 9.67, 46.9, but(DYMN, dynamic_blocks="last5")),
        PaperRow("Replace SE", 574, 9.83, 47.1, but(DYMN, dynamic_blocks="se")),
    ),
)

TABLE_VII = Table(
    "VII",
    "Positions of Dy-Conv and Dy-ReLU in the dynamic block",
    (
        _proposed(),
        PaperRow("Dy-Conv Pos. 2", 577, 6.97, 47.1, but(DYMN, dynamic_convs=("depthwise",))),
        PaperRow("Dy-ReLU Pos. 1", 582, 10.55, 47.2, but(DYMN, dynamic_relus=("expand",))),
        PaperRow("Dy-ReLU Pos. 2 + 1", 584, 12.70, 47.4, but(DYMN, dynamic_relus=("depthwise", "expand"))),
        PaperRow("Dy-ReLU Pos. 2 + 3", 582, 11.0, 47.2, but(DYMN, dynamic_relus=("depthwise", "project"))),
    ),
)

TABLE_VIII = Table(
    "VIII",
    "MobileNetV3 with an attention mechanism in all fifteen blocks",
    (
        PaperRow("MN Static", 540, 3.36, 44.4, MN_STATIC),
        PaperRow("MN w. CA", 615, 5.78, 46.7, but(ALL_BLOCKS, attention="ca_original")),
        PaperRow("MN w. TA", 577, 3.37, 46.1, but(ALL_BLOCKS, attention="ta")),
        PaperRow("MN w. SRM", 540, 3.38, 45.9, but(ALL_BLOCKS, attention="srm")),
        PaperRow("MN w. SE", 541, 4.97, 45.8, but(ALL_BLOCKS, attention="se")),
        PaperRow("MN w. GRN", 540, 3.36, 45.3, but(ALL_BLOCKS, attention="grn")),
        PaperRow("MN w. CBAM", 548, 4.96, 44.6, but(ALL_BLOCKS, attention="cbam")),
        PaperRow("MN w. GC", 548, 4.98, 44.2, but(ALL_BLOCKS, attention="gc")),
    ),
)

TABLE_IX = Table(
    "IX",
    "Channel-frequency and channel-time weights of Coordinate Attention (the body of the table is missing in the "
    "version that was available)",
    (
        PaperRow("channel-frequency and channel-time", None, None, None, DYMN),
        PaperRow("channel-frequency", None, None, None, but(DYMN, attention="ca_frequency")),
        PaperRow("channel-time", None, None, None, but(DYMN, attention="ca_time")),
    ),
)

TABLE_X = Table(
    "X",
    "Number of kernels K and temperature τ of Dy-Conv",
    (
        PaperRow("K = 2", 579, 7.98, 47.3, but(DYMN, n_kernels=2)),
        _proposed(name="K = 4"),
        PaperRow("K = 6", 584, 13.12, 47.5, but(DYMN, n_kernels=6)),
        _proposed(name="τ annealing"),
        PaperRow("τ = 1", 582, 10.55, 47.4, but(DYMN, temperature=1.0), temperature=1.0),
        PaperRow("τ = 10", 582, 10.55, 47.4, but(DYMN, temperature=10.0), temperature=10.0),
        PaperRow("τ = 30", 582, 10.55, 47.4, but(DYMN, temperature=30.0), temperature=30.0),
    ),
)

TABLE_XI = Table(
    "XI",
    "Number of linear maps M of Dy-ReLU",
    (
        PaperRow("M = 1", 581, 9.47, 47.2, but(DYMN, n_maps=1)),
        _proposed(name="M = 2"),
        PaperRow("M = 3", 583, 11.62, 47.4, but(DYMN, n_maps=3)),
    ),
)

TABLE_XII = Table(
    "XII",
    "Context generation",
    (
        _proposed(),
        PaperRow("no shared context", 583, 12.09, 47.3, but(DYMN, context="own")),
        PaperRow("no shared seq. parameters", 582, 10.65, 47.4, but(DYMN, context="separate")),
        PaperRow("concat pooled seq.", 584, 12.69, 47.4, but(DYMN, context="concatenated")),
    ),
)

TABLE_XIII = Table(
    "XIII",
    "Size of the context H",
    (
        _proposed(name="r = 4"),
        PaperRow("r = 8", 573, 9.85, 47.4, but(DYMN, reduction=8)),
        PaperRow("r = 16", 562, 8.69, 47.3, but(DYMN, reduction=16)),
        PaperRow("H_min = 16", 581, 10.53, 47.4, but(DYMN, h_min=16)),
        _proposed(name="H_min = 32"),
        PaperRow("H_min = 64", 587, 10.7, 47.4, but(DYMN, h_min=64)),
        PaperRow("H_max = 64", 568, 9.09, 47.2, but(DYMN, h_max=64)),
        _proposed(name="H_max = 128"),
        PaperRow("H_max = 256", 595, 12.21, 47.5, but(DYMN, h_max=256)),
    ),
)

TABLES: dict[str, Table] = {
    table.number: table
    for table in (
        TABLE_II,
        TABLE_IV,
        TABLE_V,
        TABLE_VI,
        TABLE_VII,
        TABLE_VIII,
        TABLE_IX,
        TABLE_X,
        TABLE_XI,
        TABLE_XII,
        TABLE_XIII,
    )
}


def table(number: str) -> Table:
    """Return a table by its Roman number, in either case.

    Raises:
        ConfigError: if there is no such table, or it has no costs (Table III).
    """
    key = number.upper()
    check(
        key in TABLES,
        f"There is no table {number!r} with multiply-adds and parameters. Available: {', '.join(TABLES)}.",
    )
    return TABLES[key]


@dataclass(frozen=True)
class Reading:
    """One interpretation of a row whose details the paper leaves open, with its counts in millions."""

    table: str
    row: str
    kept: bool
    text: str
    macs: float
    parameters: float


# Those of each row, the one that dymn builds first.
_READINGS: dict[tuple[str, str], tuple[tuple[str, float, float], ...]] = {
    ("VIII", "MN w. CA"): (
        (
            "hidden size c/4 rounded to a multiple of 8, first layer with bias, as in the published code of Coordinate "
            "Attention",
            615.49,
            5.7757,
        ),
        ("same, without that bias", 615.49, 5.7745),
        ("hidden size c/4, not rounded", 614.73, 5.7675),
        ("hidden size max(8, c/32), the default of that code", 550.14, 3.6848),
        ("hidden size H of the dynamic blocks (r = 4, 32 to 128)", 595.75, 4.9752),
    ),
    ("VIII", "MN w. GRN"): (
        ("one scale and one shift per block ('only two learnable parameters', Sec. II-B)", 539.57, 3.3646),
        ("one scale and one shift per channel, as published with ConvNeXt V2", 539.57, 3.3746),
    ),
    ("VIII", "MN w. CBAM"): (
        ("hidden size c/4 rounded, perceptron without biases, as in CBAM's equations", 548.39, 4.9642),
        ("same, with biases", 548.39, 4.9705),
        ("hidden size c/16, CBAM's default", 545.99, 3.7633),
    ),
    ("VIII", "MN w. GC"): (
        ("hidden size c/4 rounded, layer norm, as GCNet with its ratio set to 1/4", 548.26, 4.9766),
        ("hidden size c/16, GCNet's default", 547.06, 3.7728),
    ),
    ("XII", "no shared context"): (
        (
            "mean of a part's own input, hidden size c/4 (Dy-Conv) and c/8 (Dy-ReLU) as in their original papers, "
            "rounded",
            583.21,
            12.0855,
        ),
        ("same, not rounded", 583.15, 12.0301),
        ("hidden size c/4 rounded for both", 585.16, 14.0442),
        ("hidden size c/8 rounded for both", 582.41, 11.2833),
        ("hidden size H of the block for both", 583.37, 12.2491),
        ("hidden size by the rule for H, from a part's own input channels", 583.31, 12.1846),
        ("each of the four parts has its own mean and linear layer on the block input", 582.07, 10.9463),
    ),
}
READINGS = tuple(
    Reading(number, row, i == 0, text, macs, parameters)
    for (number, row), readings in _READINGS.items()
    for i, (text, macs, parameters) in enumerate(readings)
)
