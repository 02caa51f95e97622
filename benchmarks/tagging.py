"""Speed of `dymn tag` on a folder, compared with a straightforward script.

The script reads each file with librosa and computes front end and network, one file after the other.

    python benchmarks/tagging.py --model dymn04_open --files 500 --workers 2 --json
    python benchmarks/tagging.py --model dymn04_open --wav

Creates recordings of ten seconds in a temporary folder (WAV, FLAC, Ogg and MP3 with several sample rates, mono and
stereo; with --wav, only 16-bit mono WAV at the network's rate), from those in --from or from synthetic ones. The two
alternate, each in its own process, including start-up. The script uses the textbook form of front end and network
(`benchmarks/textbook.py`) or, with --plain, those of dymn as PyTorch modules.

`ratio` is that of the medians of the times, `times_real_time_per_core` the seconds of audio per second and core,
`per_cpu_second` the seconds of audio per second of CPU time, and `without_start` the same without the start-up, which
is the time for one file. `max_abs_error` is the largest difference of a probability between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SECONDS = 10
RATE = 32_000
KINDS = (("wav", 44_100, 2), ("flac", 48_000, 2), ("ogg", 44_100, 1), ("mp3", 44_100, 2), ("wav", 32_000, 1))


def make(folder: Path, n_files: int, wav: bool, origin: Path | None) -> None:
    """Write recordings of ten seconds: pieces of those in `origin`, or tones and noise that change each half second."""
    import soundfile

    from dymn.audio import reading

    random = np.random.default_rng(0)
    paths = [] if origin is None else reading.find(origin)
    for i in range(n_files):
        kind, rate, channels = ("wav", RATE, 1) if wav else KINDS[i % len(KINDS)]
        if paths:
            samples = np.resize(reading.read(paths[i % len(paths)], rate), SECONDS * rate)
        else:
            steps = np.repeat(random.uniform(0, 0.3, (2, 2 * SECONDS)), rate // 2, axis=1)
            tone = np.sin(np.arange(SECONDS * rate) * random.uniform(0.01, 0.5))
            samples = steps[0] * tone + steps[1] * random.normal(0, 0.3, SECONDS * rate)
        soundfile.write(folder / f"{i:04d}.{kind}", np.stack([samples] * channels, axis=1), rate)


def script(folder: str, model: str, threads: int, plain: bool) -> None:
    """Tag as most scripts do: a file after the other, a clip at a time."""
    import librosa
    import torch

    from dymn import LogMel, load_model
    from textbook import TextbookLogMel, textbook_of

    torch.set_num_threads(threads)
    network = load_model(model)
    labels = network.card.labels
    front_end, form = (LogMel(), network) if plain else (TextbookLogMel(), textbook_of(network))
    with torch.no_grad():
        for path in sorted(Path(folder).iterdir()):
            waveform, _ = librosa.load(path, sr=RATE, mono=True)
            waveform = np.resize(waveform, SECONDS * RATE)
            scores = torch.sigmoid(form(front_end(torch.from_numpy(waveform)[None])).logits)[0]
            best = scores.topk(10)
            tags = [
                {"label": labels[i], "score": float(score)}
                for score, i in zip(best.values, best.indices.tolist(), strict=True)
            ]
            print(json.dumps({"file": str(path), "tags": tags}))


def run(command: list[str], answer: Path) -> tuple[float, float]:
    """Run a command into a file; return its time and its processor time in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with answer.open("wb") as file:
        subprocess.run(command, check=True, stdout=file)
    taken, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of the probabilities that two answers give for the same label of the same file."""
    answers = []
    for path in (one, other):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        answers.append({(Path(row["file"]).name, tag["label"]): tag["score"] for row in rows for tag in row["tags"]})
    both = answers[0].keys() & answers[1].keys()
    if len(both) < 0.8 * len(answers[0]):
        raise SystemExit(f"The two disagree: of {len(answers[0])} labels {len(both)} are the same.")
    return max(abs(answers[0][key] - answers[1][key]) for key in both)


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Make the recordings, let the two take turns, and return what was measured."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, one = Path(temporary, "recordings"), Path(temporary, "one")
        folder.mkdir()
        one.mkdir()
        make(folder, options.files, options.wav, options.origin)
        first = min(folder.iterdir())
        (one / first.name).write_bytes(first.read_bytes())
        tag = [sys.executable, "-m", "dymn", "tag", "--model", options.model, "--format", "jsonl", "--quiet"]
        tag += ["--threads", str(options.threads), "--workers", str(options.workers)]
        again = [sys.executable, __file__, "--model", options.model, "--threads", str(options.threads)]
        again += ["--plain"] if options.plain else []
        commands = {"script": [*again, "--script", str(folder)], "dymn": [*tag, str(folder)], "start": [*tag, str(one)]}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.runs):
            for name, command in commands.items():
                taken[name].append(run(command, Path(temporary, name)))
        error = difference(Path(temporary, "script"), Path(temporary, "dymn"))
    times, cpu = ({name: statistics.median(values[i] for values in taken[name]) for name in taken} for i in (0, 1))
    sound, cores = (
        options.files * SECONDS,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    cores = min(cores, max(options.threads, options.workers))
    return {
        "ratio": round(times["script"] / times["dymn"], 2),
        "max_abs_error": error,
        "times_real_time_per_core": round(sound / times["dymn"] / cores),
        "without_start": round((sound - SECONDS) / max(1e-9, times["dymn"] - times["start"]) / cores),
        "per_cpu_second": round(sound / cpu["dymn"]),
        "script_s": round(times["script"], 2),
        "dymn_s": round(times["dymn"], 2),
        "start_s": round(times["start"], 2),
        "files": options.files,
        "cores": cores,
        "workers": options.workers,
        "threads": options.threads,
        "runs": options.runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dymn04_open", help="A DyMN with weights, by name or file.")
    parser.add_argument("--files", type=int, default=500, help="Number of recordings of ten seconds.")
    parser.add_argument("--wav", action="store_true", help="Only 16-bit mono WAV at the network's rate.")
    parser.add_argument(
        "--from",
        dest="origin",
        type=Path,
        help="A folder with recordings to create them from; by default, they are synthetic.",
    )
    parser.add_argument("--plain", action="store_true", help="Use dymn's own front end and network in the script.")
    parser.add_argument("--workers", type=int, default=2, help="Number of dymn's decoding threads.")
    parser.add_argument("--threads", type=int, default=2, help="Number of computing threads, in both.")
    parser.add_argument("--runs", type=int, default=3, help="Number of measurements of each.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    parser.add_argument("--script", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.script:
        script(options.script, options.model, options.threads, options.plain)
        return
    found = compare(options)
    print(json.dumps(found) if options.json else "\n".join(f"{name:26}{value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
