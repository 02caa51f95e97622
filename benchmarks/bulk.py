"""Memory and rate of `dymn tag` over many short clips, with a journal, a small random network, and bad files among the clips.

    python benchmarks/bulk.py --clips 20000

prints resident memory and rate over the run, then how long a second start takes that has nothing left to do but write the output.
Needs Linux, which tells a process's memory in /proc.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from dymn import create_model, hub
from dymn.config import ModelCard

ROWS = 10
SECONDS_OF_A_CLIP = 0.5


def make(folder: Path, clips: int) -> None:
    """Write clips in folders of a thousand, links to a hundred files, and a file in a thousand that is no audio."""
    random = np.random.default_rng(0)
    for i in range(clips):
        path = folder / f"{i // 1000:04d}" / f"{i:07d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 100:
            soundfile.write(path, random.normal(0, 0.1, round(32_000 * SECONDS_OF_A_CLIP)).astype(np.float32), 32_000)
        elif i % 1000 == 999:
            path.write_text("this is no audio")
        else:
            os.link(folder / "0000" / f"{i % 100:07d}.wav", path)


def resident(pid: int) -> float:
    """Return a process's memory in MiB; 0 if it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000, metavar="NUMBER")
    parser.add_argument("--format", default="parquet", choices=("csv", "jsonl", "parquet"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "clips", options.clips)
        network = create_model("mn01", num_classes=527)
        network.card = ModelCard(name="random", labels=tuple(f"label {i}" for i in range(527)))
        hub.save(network, folder / "random.safetensors")
        output = folder / f"tags.{options.format}"
        asked = [str(folder / "clips"), "-m", str(folder / "random.safetensors"), "--window", "0.5", "-o", str(output), "--quiet"]
        command = [sys.executable, "-m", "dymn", "tag", *asked]
        seen: list[tuple[float, float]] = []
        begun = time.monotonic()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None:
                seen.append((time.monotonic() - begun, resident(running.pid)))
                time.sleep(0.2)
        took = time.monotonic() - begun
        print(f"{options.clips} clips in {took:.0f} s, {options.clips / took:.0f} a second, exit code {running.returncode}")
        print("share of the time, MiB at most in that tenth")
        for i in range(ROWS):
            part = [memory for at, memory in seen if i <= ROWS * at / took < i + 1]
            print(f"{(i + 1) / ROWS:4.0%}  {max(part, default=0.0):7.1f}")
        journal = output.with_name(f"{output.name}.journal")
        print(f"output {output.stat().st_size / 2**20:.1f} MiB, journal {journal.stat().st_size / 2**20:.1f} MiB")
        begun = time.monotonic()
        subprocess.run([*command, "--retry-failed"], stderr=subprocess.DEVNULL, check=False)
        print(f"again with --retry-failed, {options.clips // 1000} to do: {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
