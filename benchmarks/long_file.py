"""Peak memory and time of `dymn tag` or `dymn events` for a very long recording.

    python benchmarks/long_file.py --model mn04_as --hours 12

Writes a sparse WAV file (44.1 kHz, 16 bit, mono) to a temporary folder: a second of noise each minute, and silence in
between. Then runs `dymn tag --per-window` or, with `--command events`, `dymn events` on it and prints its peak resident
memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RATE = 44_100
BYTES = 2
FOUND = {"tag": "windows", "events": "events"}
"""What the JSON lines of each command list of a recording."""


def write_sparse_wav(path: Path, seconds: int) -> None:
    """Write a WAV file with a second of noise at the start of each minute and holes between."""
    size = seconds * RATE * BYTES
    if size > 2**32 - 44:
        raise SystemExit(
            f"A WAV file holds at most {(2**32 - 44) / RATE / BYTES / 3600:.1f} hours; {seconds / 3600:.1f} were asked "
            "for."
        )
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + size,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        RATE,
        RATE * BYTES,
        BYTES,
        16,
        b"data",
        size,
    )
    noise = (np.random.default_rng(0).standard_normal(RATE) * 3000).astype("<i2").tobytes()
    with path.open("wb") as file:
        file.write(header)
        for minute in range(-(-seconds // 60)):
            file.seek(len(header) + minute * 60 * RATE * BYTES)
            file.write(noise[: size - minute * 60 * RATE * BYTES])
        file.truncate(len(header) + size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="A model with weights, by name or file.")
    parser.add_argument("--command", choices=FOUND, default="tag", help="The command to run.")
    parser.add_argument("--hours", type=float, default=12.0, help="Length of the recording in hours.")
    parser.add_argument("--threads", type=int, help="Number of CPU threads.")
    parser.add_argument("--batch-size", type=int, help="Number of windows per batch.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording, answer = Path(folder, "long.wav"), Path(folder, "long.jsonl")
        write_sparse_wav(recording, round(3600 * options.hours))
        command = [
            sys.executable,
            "-m",
            "dymn",
            options.command,
            str(recording),
            "--model",
            options.model,
            *(["--per-window"] if options.command == "tag" else []),
            "--output",
            str(answer),
        ]
        command += ["--threads", str(options.threads)] if options.threads else []
        command += ["--batch-size", str(options.batch_size)] if options.batch_size else []
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - started
        listed = json.loads(answer.read_text(encoding="utf-8"))[FOUND[options.command]]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    speed = 3600 * options.hours / seconds
    print(f"{options.hours:g} h, {len(listed)} {FOUND[options.command]}: {seconds:.0f} s ({speed:.0f} times real time)")
    print(f"peak resident memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
