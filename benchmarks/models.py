"""The table of models in the README: parameters, multiply-adds, mAP, size, and time for ten seconds of audio.

    python benchmarks/models.py
    python benchmarks/models.py --names dymn04_as mn04_as --seconds 5 --json

Times are those of the compiled network for a log-mel spectrogram, plus those of the compiled front end, on one thread
and with random weights, which do not affect the time. The networks alternate in rounds, and medians are printed.
Nothing is downloaded, and PyTorch is not needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from dymn.architectures import model_config
from dymn.config import FrontEndConfig
from dymn.native import libraries
from dymn.native.log_mel import CompiledLogMel
from dymn.native.network import CompiledNetwork
from dymn.runtime.compiled import compile_network
from dymn.runtime.fold import fold
from dymn.weights import REGISTRY
from dymn.weights.format import COUNTER
from dymn.weights.shapes import state_shapes

NAMES = ("dymn02_open", "dymn04_open", "dymn04_as", "dymn10_as", "dymn20_as", "mn04_as", "mn10_as", "mn20_as")
SECONDS = 10


def network(name: str) -> CompiledNetwork:
    """Return the compiled network of a published model, with random weights."""
    published, rng = REGISTRY[name], np.random.default_rng(0)
    config = model_config(published.architecture, **published.settings)
    shapes = {key: shape for key, shape in state_shapes(config).items() if not key.endswith(COUNTER)}
    state = {
        key: rng.uniform(0.5, 1.0, shape).astype(np.float32) / max(np.prod(shape[1:], dtype=int), 1)
        for key, shape in shapes.items()
    }
    return compile_network(fold(config, state))


def front_end_milliseconds(seconds: float) -> float:
    """Return the median time of the compiled front end on ten seconds of noise."""
    front_end = FrontEndConfig()
    log_mel = CompiledLogMel(front_end)
    waveform = np.random.default_rng(0).normal(0, 0.1, SECONDS * front_end.sample_rate).astype(np.float32)
    return statistics.median(timed(lambda: log_mel(waveform, 1), seconds))


def timed(call: Any, seconds: float) -> list[float]:
    """Call for some seconds, five times at least; return milliseconds."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def measure(names: list[str], seconds: float) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    front_end = front_end_milliseconds(seconds)
    log_mel = np.random.default_rng(1).normal(0, 0.5, (1, 1, 128, 100 * SECONDS)).astype(np.float32)
    networks = {name: network(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds * len(names)
    while time.perf_counter() < end or len(times[names[0]]) < 5:
        for name, compiled in networks.items():
            start = time.perf_counter()
            compiled.embed(log_mel, 1)
            times[name].append(1000 * (time.perf_counter() - start))
    return [
        {
            "model": name,
            "parameters_millions": round(REGISTRY[name].parameters / 1e6, 2),
            "macs_millions": round(REGISTRY[name].macs / 1e6),
            "map": REGISTRY[name].mean_ap,
            "megabytes_half_precision": round(2 * REGISTRY[name].parameters / 1e6, 1),
            "network_ms": round(statistics.median(times[name]), 1),
            "with_front_end_ms": round(statistics.median(times[name]) + front_end, 1),
        }
        for name in names
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=list(NAMES), choices=list(REGISTRY), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=4.0, help="Seconds of measurement per network.")
    parser.add_argument("--json", action="store_true", help="Print a line of JSON for each row instead of a table.")
    options = parser.parse_args()
    if not libraries():
        parser.error("There is no compiled code for this CPU.")
    rows = measure(options.names, options.seconds)
    if options.json:
        for row in rows:
            print(json.dumps(row))
        return
    print("| model | parameters | multiply-adds | mAP | size | ms for 10 s |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        score = "" if row["map"] is None else f"{100 * row['map']:.1f}"
        print(
            f"| `{row['model']}` | {row['parameters_millions']:.2f} M | {row['macs_millions']:,} M | {score} "
            f"| {row['megabytes_half_precision']:.1f} MB | {row['with_front_end_ms']:.1f} |"
        )


if __name__ == "__main__":
    main()
