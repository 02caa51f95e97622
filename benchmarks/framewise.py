"""Speed of a frame-wise network in compiled code, PyTorch and ONNX Runtime: frames of clips of ten seconds.

    python benchmarks/framewise.py --model fmn10 --sequences none tf gru hybrid --threads 1

The three runtimes compute the same spectrograms alternately until the time is up. Prints medians, the other runtimes'
times as multiples of the compiled code's, and the largest difference of the probabilities. The outputs of the network
depend on the clip (`lively.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dymn import create_model
from dymn.export import build
from dymn.runtime.compiled_backend import CompiledBackend
from dymn.runtime.onnx_backend import OnnxBackend
from dymn.runtime.torch_backend import TorchBackend
from dymn.system.arrays import Floats
from dymn.weights.labels import strong_labels
from dymn.weights.registry import EFFICIENTSED_FRONT_END

sys.path.insert(0, str(Path(__file__).parent))
from lively import clips, lively
from network import CLOCKS, rounds

COLUMNS = ("compiled code", "PyTorch", "ONNX Runtime")


def measure(name: str, sequence: str, size: int, batch: int, threads: int, seconds: float, clock: str) -> list[str]:
    """Return the cells of a row of the table."""
    torch.manual_seed(0)
    labels = strong_labels()
    model = create_model(name, len(labels), sequence=sequence, sequence_size=size, scores="frames")
    model = lively(model, clips(4, n_frames=400))
    model.card = dataclasses.replace(model.card, front_end=EFFICIENTSED_FRONT_END, labels=labels)
    log_mel = clips(batch).numpy()
    backends = CompiledBackend(model.stored(), threads), TorchBackend(model, "cpu", threads)
    onnx = OnnxBackend(build(model, input="log-mel", dynamic_batch=True, seconds=10.0), threads)
    forms: list[Callable[[], Floats]] = [lambda each=each: each.frame_run(log_mel).frames for each in backends]
    forms.append(lambda: onnx.outputs(log_mel)[3])
    compiled, *others = (form() for form in forms)
    difference = max(float(np.abs(compiled - other).max()) for other in others)
    times = [statistics.median(column) for column in zip(*rounds(forms, seconds, CLOCKS[clock]), strict=True)]
    cells = [f"{1e3 * time:.1f} ms" + (f" ({time / times[0]:.1f})" if i else "") for i, time in enumerate(times)]
    return [name + (f", {sequence}, {size} values" if sequence != "none" else ""), *cells, f"{difference:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fmn10", help="An architecture, from fmn04 to fmn30.")
    parser.add_argument("--sequences", nargs="+", default=["none", "tf", "gru", "hybrid"], help="Sequence models.")
    parser.add_argument("--size", type=int, default=256, help="Values of a frame in the sequence model.")
    parser.add_argument("--batch", type=int, default=1, help="Number of clips per batch.")
    parser.add_argument("--threads", type=int, default=1, help="Number of CPU threads.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Seconds of measurement per network.")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="Wall time, or CPU time, which other programs affect less.",
    )
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {os.cpu_count()} CPUs, clock: {options.clock}\n")
    print(f"| network | {' | '.join(COLUMNS)} | difference |\n{'| --- ' * (len(COLUMNS) + 2)}|")
    for sequence in options.sequences:
        row = measure(
            options.model, sequence, options.size, options.batch, options.threads, options.seconds, options.clock
        )
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
