"""Speed of the forms of a DyMN, relative to the textbook form with the same weights (`textbook.py`).

    python benchmarks/network.py --width 0.4 --batch 1 --threads 1 --path fastest --json
    python benchmarks/network.py --table

Both forms compute the same clips alternately until the time is up; the ratio is that of their medians. The outputs of
the network depend on the clip (`lively.py`), and the largest difference of the logits is printed with the ratio. The
share of the peak is twice the paper's number of multiply-adds divided by the time, relative to the rate of a product of
large matrices on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dymn import create_model
from dymn.models.mobilenet import MobileNet
from dymn.profiling import count
from dymn.runtime.accelerate import accelerate
from dymn.runtime.fused import fuse

sys.path.insert(0, str(Path(__file__).parent))
from lively import clips, lively
from textbook import textbook_of

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MIN_ROUNDS, MAX_ROUNDS = 3, 200
WARM_UP = 2
CALIBRATION_CLIPS = 8
MIN_SPREAD = 0.1
CLASSES = 527

Logits = Callable[[Tensor], Tensor]
"""A form of the network: log-mel spectrograms to logits."""


def logits_of(network: Callable[[Tensor], Any]) -> Logits:
    @torch.no_grad()
    def logits(log_mel: Tensor) -> Tensor:
        return network(log_mel).logits

    return logits


def trained(network: torch.nn.Module) -> Logits:
    """Return a form that also computes the gradients of all weights.

    The network is in training mode, but without dropout, which draws at random.
    """
    target = torch.full((1, CLASSES), 0.1)

    def step(log_mel: Tensor) -> Tensor:
        network.train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        network.zero_grad(set_to_none=True)
        logits = network(log_mel).logits
        torch.nn.functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits)).backward()
        return logits.detach()

    return step


def onnx(model: MobileNet) -> Logits:
    """Return the form for one clip at a time, computed by ONNX Runtime with as many threads as PyTorch uses."""
    from dymn.export import build
    from dymn.runtime.onnx_backend import OnnxBackend

    backend = OnnxBackend(build(model, input="log-mel", dynamic_time=True), torch.get_num_threads())
    return lambda log_mel: torch.from_numpy(backend.outputs(log_mel.numpy())[1])


PATHS: dict[str, tuple[str, Callable[[MobileNet], Logits]]] = {
    "modules": ("the modules as they train", logits_of),
    "torch": ("pure torch", lambda model: logits_of(fuse(model))),
    "fastest": ("fastest path", lambda model: logits_of(accelerate(model))),
    "onnx": ("ONNX Runtime", onnx),
    "train": ("training step (forward + backward)", trained),
}

# The goals: path, batch, threads, and the ratio to reach at each width.
WIDTHS = (0.4, 1.0, 2.0)
GOALS = (
    ("torch", 1, 1, (2.0, 1.9, 1.7)),
    ("torch", 32, 1, (2.0, 1.9, 1.9)),
    ("fastest", 1, 1, (4.0, 3.0, 2.4)),
    ("fastest", 32, 1, (4.0, 4.0, 3.0)),
    ("fastest", 1, 2, (4.0, 3.0, 2.4)),
    ("onnx", 1, 1, (2.8, 2.0, 1.8)),
    ("train", 16, 1, (1.5, 1.5, 1.5)),
)


def rounds(forms: Sequence[Callable[[], object]], seconds: float, clock: Callable[[], float]) -> Iterator[list[float]]:
    """Yield the times of one call of each form, until `seconds` are over; which comes first alternates."""
    end = time.perf_counter() + seconds
    for i in range(MAX_ROUNDS):
        if i >= MIN_ROUNDS and time.perf_counter() > end:
            return
        times = [0.0] * len(forms)
        for j in range(len(forms)) if i % 2 else reversed(range(len(forms))):
            start = clock()
            forms[j]()
            times[j] = clock() - start
        yield times


def peak_gflops(clock: Callable[[], float], size: int = 1536) -> float:
    """Return what the largest product of matrices reaches on the threads that PyTorch uses: the best of a few tries."""
    a, b = torch.randn(2, size, size)
    times = [times[0] for times in rounds([lambda: a @ b], 1.5, clock)]
    return 2 * size**3 / min(times) / 1e9


def measure(
    width: float, batch: int, threads: int, path: str, seconds: float, clock: str = "wall", frames: int = 1000
) -> dict[str, Any]:
    """Measure one form against the textbook form.

    Raises:
        SystemExit: if the outputs of the network do not depend on the clip.
    """
    torch.set_num_threads(threads)
    model = create_model("dymn10", CLASSES, generator=torch.Generator().manual_seed(0), width=width)
    log_mel = clips(max(batch, CALIBRATION_CLIPS), n_frames=frames)
    lively(model, log_mel)
    forms = {"textbook": (trained if path == "train" else logits_of)(textbook_of(model)), path: PATHS[path][1](model)}
    spread = float(logits_of(model.eval())(log_mel).std(dim=0).mean())
    if spread < MIN_SPREAD:
        raise SystemExit(f"The logits spread by {spread:.3f} over the clips; equality would say little.")
    log_mel = log_mel[:batch]
    expected, got = (form(log_mel) for form in forms.values())
    for form in forms.values():
        for _ in range(WARM_UP - 1):
            form(log_mel)
    calls = [lambda form=form: form(log_mel) for form in forms.values()]
    times = list(rounds(calls, seconds, CLOCKS[clock]))
    baseline, own = (statistics.median(column) for column in zip(*times, strict=True))
    macs = count(model.config, n_frames=frames).macs * batch * (3 if path == "train" else 1)
    peak = peak_gflops(CLOCKS[clock])
    return {
        "width": width,
        "batch": batch,
        "threads": threads,
        "path": path,
        "ratio": round(baseline / own, 3),
        "max_abs_error": float((expected - got).abs().max()),
        "spread": round(spread, 3),
        "baseline_ms": round(1e3 * baseline, 2),
        "ms": round(1e3 * own, 2),
        "rounds": len(times),
        "clock": clock,
        "gflops": round(2 * macs / own / 1e9, 1),
        "peak_gflops": round(peak, 1),
        "fraction_of_peak": round(2 * macs / own / 1e9 / peak, 3),
        "baseline_fraction_of_peak": round(2 * macs / baseline / 1e9 / peak, 3),
        "torch": torch.__version__,
    }


def table(seconds: float, clock: str) -> Iterator[str]:
    """Yield the lines of the table of all goals: reached (goal), share of the peak, difference."""
    yield "| | " + " | ".join(f"width {width}" for width in WIDTHS) + " |"
    yield "|---" * (1 + len(WIDTHS)) + "|"
    for path, batch, threads, goals in GOALS:
        cells = []
        for width, goal in zip(WIDTHS, goals, strict=True):
            found = measure(width, batch, threads, path, seconds, clock)
            share = f"{100 * found['fraction_of_peak']:.0f} % of peak"
            cells.append(f"**{found['ratio']:.2f}** (goal {goal}); {share}; {found['max_abs_error']:.0e}")
        name = f"{PATHS[path][0]}, batch {batch}" + (f", {threads} threads" if threads > 1 else "")
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--width", type=float, default=0.4, help="The width of the network: 0.4, 1.0 and 2.0 are DyMN-S, M and L."
    )
    parser.add_argument("--batch", type=int, default=1, help="Number of clips of 10 s per batch.")
    parser.add_argument("--threads", type=int, default=1, help="Number of CPU threads.")
    parser.add_argument("--path", choices=PATHS, default="fastest", help="The form to measure.")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="Seconds of measurement; there are at least three rounds."
    )
    parser.add_argument("--frames", type=int, default=1000, help="Frames per clip; 1000 are 10 s.")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="Wall time, or CPU time, which other programs affect less.",
    )
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    parser.add_argument(
        "--table", action="store_true", help="Measure all cells and print a Markdown table; takes long."
    )
    options = parser.parse_args()
    if min(options.batch, options.threads, options.frames) < 1:
        parser.error("--batch, --threads and --frames are at least 1.")
    if options.table:
        print(f"PyTorch {torch.__version__}, {os.cpu_count()} CPUs, clock: {options.clock}\n")
        for line in table(options.seconds, options.clock):
            print(line, flush=True)
        return
    found = measure(
        options.width, options.batch, options.threads, options.path, options.seconds, options.clock, options.frames
    )
    if options.json:
        print(json.dumps(found))
        return
    print("\n".join(f"{name:26}{value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
