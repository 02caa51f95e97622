"""Checks that a GPU computes what a CPU computes: one line of JSON for each check. A failure does not stop the others.

python benchmarks/gpu_checks.py
python benchmarks/gpu_checks.py --device cpu --only precision train_fp32   # a trial without a GPU
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from dymn import Tagger
from dymn.audio import reading
from dymn.data import Loader, PlainSampler, Resident, open_source
from dymn.system.devices import COMPUTE_PRECISIONS

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
MODEL = "dymn04_open"
RATE, SECONDS = 32_000, 10
LIMIT = 120.0  # seconds of a command
Check = Callable[[str, Path], dict[str, Any]]


def waveforms() -> np.ndarray:
    """Return the examples, repeated to ten seconds [B, N]."""
    return np.stack([np.resize(reading.read(path, RATE), RATE * SECONDS) for path in sorted(EXAMPLES.glob("*.ogg"))])


def precision(device: str, folder: Path) -> dict[str, Any]:
    """Compare a tagger's probabilities in every precision with those of the CPU."""
    sound = waveforms()
    exact = Tagger.from_pretrained(MODEL, "cpu").probabilities(sound)
    found = {"clips": len(sound)}
    for name in COMPUTE_PRECISIONS:
        got = Tagger.from_pretrained(MODEL, device, precision=name).probabilities(sound)
        changed = int((got.argmax(axis=1) != exact.argmax(axis=1)).sum())
        found[name] = {"difference": float(abs(got - exact).max()), "best_class_changed": changed}
    return found


def compiled(device: str, folder: Path) -> dict[str, Any]:
    """Compare a compiled tagger with the CPU, and say how long the first answer and a later one take."""
    sound = waveforms()
    exact = Tagger.from_pretrained(MODEL, "cpu").probabilities(sound)
    tagger = Tagger.from_pretrained(MODEL, device, precision="float16", compile=True)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        got = tagger.probabilities(sound)
        times.append(round(time.perf_counter() - start, 4))
    return {"difference": float(abs(got - exact).max()), "seconds": times}


def frames(device: str, folder: Path) -> dict[str, Any]:
    """Compare frames' probabilities and embeddings with those of the CPU."""
    sound = waveforms()
    one, other = (Tagger.from_pretrained(MODEL, name) for name in ("cpu", device))
    difference = max(
        abs(one.embedder("last").vectors(clip[None]) - other.embedder("last").vectors(clip[None])).max()
        for clip in sound
    )
    return {"embedding_difference": float(difference)}


def resident(device: str, folder: Path) -> dict[str, Any]:
    """Compare batches of clips in the device's memory with those that are decoded."""
    source = open_source("folder", write_clips(folder / "clips"), "train")
    held = Resident(source, torch.device(device))
    loaders = [
        Loader(source, PlainSampler(len(source)), 8, seconds=seconds, fill="repeat", resident=where)
        for seconds in (0.5, 2.0)
        for where in (None, held)
    ]
    batches = [[batch.waveform.cpu() for batch in loader.epoch(0)] for loader in loaders]
    pairs = [pair for i in (0, 2) for pair in zip(batches[i], batches[i + 1], strict=True)]
    return {"difference": max(float((one - other).abs().max()) for one, other in pairs)}


def commands(device: str, folder: Path) -> dict[str, Any]:
    """Compare what commands print with --device and on the CPU."""
    found: dict[str, Any] = {}
    for command in (["tag", "--format", "csv"], ["events", "--format", "csv"]):
        said = []
        for name in ("cpu", device):
            start = time.perf_counter()
            answer = dymn(command[0], str(EXAMPLES), "-m", MODEL, "--device", name, "--quiet", *command[1:])
            said.append(answer)
            found[f"{command[0]} {name} seconds"] = round(time.perf_counter() - start, 2)
        lines = [text.splitlines() for text in said]
        found[f"{command[0]} lines"] = [len(text) for text in lines]
        found[f"{command[0]} lines that differ"] = len(set(lines[0]) ^ set(lines[1]))
    return found


def train(device: str, folder: Path, precision: str, *settings: str) -> dict[str, Any]:
    """Train some steps, once at one go and once killed and continued; the numbers should be near each other."""
    data = write_clips(folder / "clips")
    told = ["train", "--data", str(data), "--model", MODEL, "--device", device, "--epochs", "2", "--quiet"]
    told += ["--set", f"optim.precision={precision}", "--set", "data.least_draws=64", "--set", "optim.batch_size=8"]
    told += [
        "--set",
        "run.save_steps=2",
        "--set",
        "data.seconds=2.0",
        *(part for setting in settings for part in ("--set", setting)),
    ]
    start = time.perf_counter()
    dymn(*told, "--out", str(folder / "whole"))
    seconds = time.perf_counter() - start
    killed = subprocess.Popen(
        [sys.executable, "-m", "dymn", *told, "--out", str(folder / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (folder / "killed" / "state.pt").exists() and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    dymn(*told, "--out", str(folder / "killed"))
    logs = [
        [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    return {
        "seconds": round(seconds, 2),
        "killed_by": killed.returncode,
        "losses": [[round(record["loss"], 5) for record in log] for log in logs],
        "clips_per_second": [round(record["clips_per_second"], 1) for record in logs[0]],
    }


def write_clips(folder: Path) -> Path:
    """Write noisy tones of two classes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        length = int(RATE * rng.uniform(0.5, 2.5))
        tone = np.sin(2 * np.pi * (300 if i % 2 else 1800) * np.arange(length) / RATE)
        path = folder / ("high", "low")[i % 2] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * tone + 0.03 * rng.standard_normal(length), RATE)
    return folder


def dymn(*arguments: str) -> str:
    """Run a command of dymn and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "dymn", *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"dymn {' '.join(arguments[:2])} ended with {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


CHECKS: dict[str, Check] = {
    "precision": precision,
    "frames": frames,
    "resident": resident,
    "commands": commands,
    "train_fp32": lambda device, folder: train(device, folder, "fp32"),
    "train_bf16": lambda device, folder: train(
        device, folder, "bf16", "data.resident=true", "optim.ema=0.9", "optim.norm_clips=16"
    ),
    "train_fp16": lambda device, folder: train(device, folder, "fp16", "optim.clip_norm=1.0"),
    "compiled": compiled,
}


def checked(name: str, device: str) -> dict[str, Any]:
    """Do one check and return its row."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = CHECKS[name](device, Path(folder))
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:1500], "where": traceback.format_exc()[-600:]}
    return {"check": name, "took": round(time.perf_counter() - start, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=[name for name in CHECKS if name != "compiled"])
    parser.add_argument("--at-once", type=int, default=1, help="Number of checks that run at the same time.")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
        waiting = [pool.submit(checked, name, options.device) for name in options.only]
        for done in concurrent.futures.as_completed(waiting):
            print(json.dumps(done.result()), flush=True)


if __name__ == "__main__":
    main()
