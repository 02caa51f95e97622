"""Time of the compiled network by part, and the speed of each part relative to the measured peak.

The peak is the rate of multiply-adds in registers.

    python benchmarks/where.py --widths 0.4 1.0 2.0 --plot where.png

Compiles `dymn/native` again with timers around each part (which cost a few per cent); needs a C compiler. One clip of
ten seconds, one thread, medians over runs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dymn import create_model, native
from dymn.models.mobilenet import MobileNet
from dymn.profiling import count
from dymn.runtime.accelerate import NativeNetwork

sys.path.insert(0, str(Path(__file__).parent))
from lively import clips

PARTS = ("stem", "context, gates", "expand", "depthwise", "project", "last convolution")
FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-march=native", "-DDYMN_PROFILE"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-ffp-contract=fast"),
)


def clocked_build(folder: Path) -> ctypes.CDLL:
    """Compile the code with clocks for this machine."""
    sources = sorted(Path(native.__file__).parent.glob("*.c"))
    target = folder / "clocked.so"
    command = [*os.environ.get("CC", "cc").split(), *FLAGS, "-o", str(target), *map(str, sources)]
    subprocess.run(command, check=True)
    build = ctypes.CDLL(str(target))
    build.dymn_workspace.restype, build.dymn_peak.restype = ctypes.c_int64, ctypes.c_double
    return build


def macs_by_part(model: MobileNet, n_frames: int) -> dict[str, int]:
    """Return the multiply-adds of the parts that are convolutions, from the count of each module."""
    found = dict.fromkeys(PARTS, 0)
    config, bands, frames = model.config, 64, (n_frames + 1) // 2
    found["stem"] = 9 * config.blocks[0].c_in * bands * frames
    for block in config.blocks:
        if block.c_exp != block.c_in:
            found["expand"] += block.c_in * block.c_exp * bands * frames
        bands, frames = -(-bands // block.stride), -(-frames // block.stride)
        found["depthwise"] += block.c_exp * block.kernel_size**2 * bands * frames
        found["project"] += block.c_exp * block.c_out * bands * frames
    found["last convolution"] = config.blocks[-1].c_out * config.c_last * bands * frames
    head = config.c_last * config.c_hidden + config.c_hidden * config.num_classes
    found["context, gates"] = count(config, n_frames=n_frames).macs - sum(found.values()) - head
    return found


def measure(build: ctypes.CDLL, width: float, runs: int, n_frames: int = 1000) -> dict[str, Any]:
    """Return milliseconds and the share of the peak by part."""
    torch.set_num_threads(1)
    model = create_model("dymn10", width=width, generator=torch.Generator().manual_seed(0)).eval()
    network, log_mel = NativeNetwork(model), clips(1, n_frames=n_frames)
    network.compiled._library = build
    spent = (ctypes.c_double * len(PARTS))()
    rows, totals = [], []
    for _ in range(runs + 3):
        start = time.perf_counter()
        network.embed(log_mel)
        totals.append(time.perf_counter() - start)
        build.dymn_spent(spent)
        rows.append(list(spent))
    milliseconds = {
        part: 1e3 * statistics.median(column) for part, column in zip(PARTS, zip(*rows[3:], strict=True), strict=True)
    }
    peak, macs = max(build.dymn_peak() for _ in range(5)), macs_by_part(model, n_frames)
    return {
        "width": width,
        "ms": round(1e3 * statistics.median(totals[3:]), 2),
        "parts_ms": {part: round(value, 2) for part, value in milliseconds.items()},
        "fraction_of_peak": {part: round(2e-6 * macs[part] / value / peak, 3) for part, value in milliseconds.items()},
        "peak_gflops": round(peak, 1),
    }


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw one bar for each width, a colour for each part, with its share of the peak."""
    from matplotlib.figure import Figure

    colours = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7")  # Okabe and Ito
    figure = Figure(figsize=(9, 0.9 + 0.8 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, result in enumerate(found):
        left = 0.0
        for part, colour in zip(PARTS, colours, strict=True):
            share = result["parts_ms"][part] / sum(result["parts_ms"].values())
            axes.barh(row, share, left=left, color=colour, label=part if row == 0 else None, edgecolor="white")
            if share > 0.05:
                text = f"{100 * share:.0f} %\n({100 * result['fraction_of_peak'][part]:.0f} % of peak)"
                axes.text(left + share / 2, row, text, ha="center", va="center", color="black", fontsize=8)
            left += share
    axes.set_yticks(range(len(found)), [f"width {result['width']}: {result['ms']} ms" for result in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_title("Where the compiled network spends its time, one clip of 10 s, one thread")
    axes.spines[:].set_visible(False)
    axes.legend(ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.4, 1.0, 2.0])
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--plot", type=Path, help="The picture to write.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build = clocked_build(Path(folder))
        found = [measure(build, width, options.runs) for width in options.widths]
    for result in found:
        print(json.dumps(result))
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
