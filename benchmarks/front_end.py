"""Time of the front end and its difference from the textbook form, which computes its mel filters at each call.

    python benchmarks/front_end.py --batch 1 --threads 1 --json

The two alternate on the same clips of noise, and medians are compared. `max_abs_error` is the largest difference of
log-mel values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dymn.models.frontend import LogMel
from textbook import TextbookLogMel


def compare(batch: int = 1, seconds: float = 10.0, runs: int = 15, threads: int = 1) -> dict[str, float]:
    """Return medians in milliseconds a clip, their ratio, and the largest difference."""
    torch.set_num_threads(threads)
    forms: dict[str, Callable[[Tensor], Tensor]] = {"textbook": TextbookLogMel(), "dymn": LogMel()}
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(batch, round(32_000 * seconds), generator=generator)
    taken: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        error = float((forms["dymn"](waveform) - forms["textbook"](waveform)).abs().max())
        for _ in range(runs):
            for name, form in forms.items():
                started = time.perf_counter()
                form(waveform)
                taken[name].append(time.perf_counter() - started)
    textbook, ours = (1000 * statistics.median(taken[name]) / batch for name in ("textbook", "dymn"))
    return {
        "ratio": round(textbook / ours, 2),
        "max_abs_error": error,
        "textbook_ms": round(textbook, 3),
        "dymn_ms": round(ours, 3),
        "batch": batch,
        "threads": threads,
        "seconds": seconds,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="Number of clips per batch.")
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of the clips in seconds.")
    parser.add_argument("--threads", type=int, default=1, help="Number of PyTorch's CPU threads.")
    parser.add_argument("--runs", type=int, default=15, help="Number of measurements of each form.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    options = parser.parse_args()
    found = compare(options.batch, options.seconds, options.runs, options.threads)
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{found['textbook_ms']:.2f} ms a clip in textbook form, {found['dymn_ms']:.2f} ms in dymn: "
        f"{found['ratio']:.2f} times as fast"
    )
    print(f"largest difference {found['max_abs_error']:.1e}")


if __name__ == "__main__":
    main()
