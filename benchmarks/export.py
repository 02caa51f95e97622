"""Comparison of files of each precision: size, time to open, time per clip, agreement with PyTorch.

    python benchmarks/export.py --model mn04_as --calibrate FOLDER --clips FOLDER

The files alternate in rounds. Times are medians of CPU time of one thread for a clip of ten seconds, from samples to
probabilities. `--keep FOLDER` keeps the files, for `benchmarks/zero_shot.py --backend onnx`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dymn.commands.export import recordings
from dymn.export import Plan, build
from dymn.export.parity import compare, made_sounds
from dymn.runtime.onnx_backend import OnnxBackend
from dymn.weights import load_model

ROUNDS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dymn04_open", help="A model with weights, by name or file.")
    parser.add_argument("--input", choices=("waveform", "log-mel"), default="waveform", help="The input.")
    parser.add_argument("--calibrate", type=Path, nargs="+", default=[], help="Recordings for the calibration of int8.")
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="Recordings to compare on.")
    parser.add_argument("--keep", type=Path, help="A folder in which the files are kept.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    rate = model.card.front_end.sample_rate
    clips, calibrate = recordings(options.clips, rate), recordings(options.calibrate, rate)
    forms: dict[str, tuple[str, Any]] = {name: (name, ()) for name in ("fp32", "fp16", "int8")}
    if calibrate:
        forms["int8, calibrated"] = ("int8", calibrate)
    sound = made_sounds(10 * rate, model.card.front_end)[1][None]
    files, backends, feeds, opening = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (precision, used) in forms.items():
            plan = Plan(input=options.input, precision=precision)
            files[name] = folder / f"{Path(options.model).stem}.{name.replace(', ', '-')}.onnx"
            files[name].write_bytes(build(model, input=options.input, precision=precision, calibrate=used))
            start = time.process_time()
            backends[name] = OnnxBackend(files[name], threads=1)
            opening[name] = time.process_time() - start
            feeds[name] = plan.feed(sound.astype(np.float32), model.card)
            print(
                f"{name}: {files[name].stat().st_size / 1e6:.2f} MB; "
                f"{compare(backends[name].outputs, model, plan, clips)}",
                flush=True,
            )
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            start = time.process_time()
            backend.outputs(feeds[name])
            times[name].append(time.process_time() - start)
    for name, column in times.items():
        print(f"{name}: {1e3 * statistics.median(column):.2f} ms a clip, opened in {1e3 * opening[name]:.0f} ms")


if __name__ == "__main__":
    main()
