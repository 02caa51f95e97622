"""`python -m fuzz --cases 40000 --seed 1 [TARGET ...]`.

Run cases, print a table, and end with 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Feed dymn with hostile input.")
    parser.add_argument("targets", nargs="*", help="Ways in; all without it.")
    parser.add_argument("--cases", type=int, default=40_000, help="How many cases in all.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--alone", action="store_true", help="Run one target in this process, with all cases; print JSON."
    )
    options = parser.parse_args()
    if options.alone:
        return alone(options.targets[0], options.cases, options.seed)
    from fuzz.targets import WAYS

    names = options.targets or list(WAYS)
    whole = sum(WAYS[name].share for name in names)
    failed, total, begun = [], 0, time.monotonic()
    print("slowest case in CPU seconds, largest case and what was kept in MiB")
    print(f"{'way in':<14}{'cases':>8}{'taken':>8}{'refused':>9}{'CPU s':>8}{'slowest':>9}{'largest':>10}{'kept':>8}")
    for name in names:
        cases = max(1, round(options.cases * WAYS[name].share / whole))
        words = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "fuzz",
            name,
            "--alone",
            "--cases",
            str(cases),
            "--seed",
            str(options.seed),
        ]
        ended = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            failed.append(name)
            lines = [line[:300] for line in f"{ended.stdout}{ended.stderr}".splitlines()]
            print("\n".join([f"{name:<14} failed with {ended.returncode}:", *lines[-60:]]), flush=True)
            continue
        found = json.loads(ended.stdout.splitlines()[-1])
        if WAYS[name].takes and found["cases"] >= 100 and not found["taken"]:
            failed.append(f"{name} (no case was taken: are they out of date?)")
        total += found["cases"]
        counts = f"{found['cases']:>8}{found['taken']:>8}{found['cases'] - found['taken']:>9}{found['seconds']:>8.0f}"
        row = f"{counts}{found['slowest']:>9.2f}{found['largest']:>10.0f}{found['megabytes']:>8.0f}"
        print(f"{name:<14}{row}  {', '.join(f'{kind} {n}' for kind, n in found['refused'].items())}", flush=True)
    print(
        f"{total:,} cases with seed {options.seed} in {time.monotonic() - begun:.0f} s; "
        f"{f'failed: {failed}' if failed else 'none failed'}"
    )
    return 1 if failed else 0


def alone(name: str, cases: int, seed: int) -> int:
    from fuzz.harness import limit_memory, run
    from fuzz.targets import WAYS

    target = WAYS[name].make()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(target, 20, seed, Path(folder))  # what is loaded once is there before the limit
        limit_memory()
        outcome = run(target, cases, seed, Path(folder), limits=True)
    print(json.dumps({**vars(outcome), "cases": outcome.cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
