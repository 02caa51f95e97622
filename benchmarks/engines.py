"""Run times of the local engine and of Ray with different numbers of actors, for the same clips.

    python benchmarks/engines.py --clips 400 --actors 1 2 [FOLDER]

tags the clips of a folder, or five-second clips of noise, with `dymn04_open`. The engines alternate for several rounds.
Prints the medians of the total time and of the time until the first result.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from dymn import Tagger
from dymn.audio import reading
from dymn.ray import Engine, _running


def noise(folder: Path, clips: int) -> None:
    random = np.random.default_rng(0)
    for i in range(clips):
        soundfile.write(folder / f"{i:05d}.wav", 0.1 * random.standard_normal(5 * 44_100), 44_100)


def timed(results) -> tuple[float, float]:  # noqa: ANN001
    """Return seconds to the first result and to the last.

    Ray gives results in bursts, so a rate between them would say nothing.
    """
    begun = time.perf_counter()
    next(results)
    first = time.perf_counter() - begun
    for _ in results:
        pass
    return first, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tagger = Tagger.from_pretrained("dymn04_open", "cpu", threads=1)
    with tempfile.TemporaryDirectory() as name:
        if options.folder is None:
            noise(Path(name), options.clips)
        found = reading.find(options.folder or name)[: options.clips]
        begun = time.perf_counter()
        with _running("local"):
            print(f"Ray starts in {time.perf_counter() - begun:.1f} s", flush=True)
            ways = {f"local, {n} decoding": lambda n=n: tagger.tag_files(found, workers=n) for n in options.actors}
            ways |= {f"Ray, {n} actors": lambda n=n: Engine(workers=n).tag_files(tagger, found) for n in options.actors}
            measured = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, begin in ways.items():
                    measured[way].append(timed(begin()))
    for way, rounds in measured.items():
        first, last = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{way:20} {last:6.1f} s, {len(found) / last:6.1f} recordings/s, the first after {first:5.1f} s", flush=True
        )


if __name__ == "__main__":
    main()
