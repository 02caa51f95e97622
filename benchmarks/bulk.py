"""Memory and rate of `dymn tag` for many short clips, some of which are not audio, with a journal.

    python benchmarks/bulk.py --folder FOLDER --clips 20000
    python benchmarks/bulk.py --folder FOLDER --clips 20000 --kill

The first command creates the clips (all different, 64 kB each) unless they exist, and prints resident memory and rate
during the run. The second kills `dymn tag` with SIGKILL after half of the time of the first run and starts it again. It
fails unless each recording was computed once and the output equals that of the first run. Needs Linux, because memory
is read from /proc.
"""

import argparse
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import soundfile

ROWS = 10
RATE = 32_000
BAD_EACH = 1000
TOLERANCE = 1e-6
"""Of scores, where windows are computed in other company than before."""


class Ran(NamedTuple):
    """What a run told."""

    code: int
    seconds: float
    memory: list[tuple[float, float]]  # seconds, MiB
    errors: str


def make(folder: Path, clips: int) -> None:
    """Write clips of a second in folders of a thousand; one in a thousand is no audio."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.1, 2 * RATE)
    time_axis = np.arange(RATE) / RATE
    for i in range(clips):
        path = folder / f"{i // 1000:04d}" / f"{i:07d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % BAD_EACH == BAD_EACH - 1:
            path.write_text("this is no audio")
        else:
            tone = 0.5 * np.sin(2 * np.pi * (100 + 3000 * i / clips) * time_axis)
            soundfile.write(path, noise[i : i + RATE] * (i % 7) / 7 + tone, RATE)


def resident(pid: int) -> float:
    """Return a process's memory in MiB; 0 if it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else 0.0


def run(folder: Path, name: str, model: str, kill_after: float = float("inf")) -> Ran:
    """Tag the clips, and kill the command after so many seconds."""
    words = ["tag", str(folder / "clips"), "-m", model, "--window", "1", "--top-k", "3", "-o", str(folder / name)]
    seen: list[tuple[float, float]] = []
    begun = time.monotonic()
    with (folder / "errors.txt").open("w+") as errors:
        with subprocess.Popen([sys.executable, "-m", "dymn", *words], stderr=errors) as running:
            while running.poll() is None:
                seen.append((time.monotonic() - begun, resident(running.pid)))
                if seen[-1][0] > kill_after:
                    running.send_signal(signal.SIGKILL)
                time.sleep(0.2)
        errors.seek(0)
        return Ran(running.returncode, time.monotonic() - begun, seen, errors.read())


def straight(folder: Path, clips: int, model: str) -> None:
    ran = run(folder, "straight.parquet", model)
    (folder / "seconds.txt").write_text(str(ran.seconds))
    print(f"{clips} clips in {ran.seconds:.0f} s, {clips / ran.seconds:.0f} a second, exit code {ran.code}")
    print("share of the time, MiB at most in that tenth")
    for i in range(ROWS):
        part = [memory for at, memory in ran.memory if i <= ROWS * at / ran.seconds < i + 1]
        print(f"{(i + 1) / ROWS:4.0%}  {max(part, default=0.0):7.1f}")
    output = folder / "straight.parquet"
    journal = folder / "straight.parquet.journal"
    print(f"output {output.stat().st_size / 2**20:.1f} MiB, journal {journal.stat().st_size / 2**20:.1f} MiB")


def killed(folder: Path, clips: int, model: str) -> list[str]:
    """Return what is wrong."""
    ran = run(folder, "killed.parquet", model, float((folder / "seconds.txt").read_text()) / 2)
    print(f"killed after {ran.seconds:.0f} s, exit code {ran.code}")
    if ran.code != -signal.SIGKILL or (folder / "killed.parquet").exists():
        return ["it was not killed in the midst of its work"]
    with closing(sqlite3.connect(folder / "killed.parquet.journal")) as journal:
        kept = journal.execute("SELECT count(*) FROM done").fetchone()[0]
    again = run(folder, "killed.parquet", model)
    print(f"{kept} recordings were kept, the other {clips - kept} took {again.seconds:.0f} s")
    wrong = []
    if f"{kept:,} of {clips:,} recordings are already complete" not in again.errors:
        wrong.append("what was kept is not gone on with")
    tables = [pyarrow.parquet.read_table(folder / name) for name in ("straight.parquet", "killed.parquet")]
    first, second = (table.to_pydict() for table in tables)
    names = dict.fromkeys(second["file"])
    if len(names) != clips or first["file"] != second["file"] or first["error"] != second["error"]:
        wrong.append("recordings are missing, or there twice, or in another order")
    unlike = sum(a != b for a, b in zip(first["label"], second["label"], strict=True))
    worst = max(abs((a or 0) - (b or 0)) for a, b in zip(first["score"], second["score"], strict=True))
    print(
        f"{len(second['file'])} rows of {len(names)} recordings; labels that differ {unlike}, scores at most "
        f"{worst:.1e} apart"
    )
    return [*wrong, *(["the result is another"] if unlike or worst > TOLERANCE else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the clips and results")
    parser.add_argument("--clips", type=int, default=20_000, metavar="NUMBER")
    parser.add_argument("--model", default="dymn04_open")
    parser.add_argument("--kill", action="store_true", help="kill the run halfway, resume it, and compare")
    parser.add_argument("--make", action="store_true", help="only create the clips")
    options = parser.parse_args()
    if not (options.folder / "clips").exists():
        make(options.folder / "clips", options.clips)
    if options.make:
        return
    if options.kill:
        if wrong := killed(options.folder, options.clips, options.model):
            sys.exit("\n".join(wrong))
    else:
        straight(options.folder, options.clips, options.model)


if __name__ == "__main__":
    main()
