"""Clips for classes that a corpus lacks: an evolutionary search for sounds in which the teacher detects them.

    python benchmarks/grow.py CORPORA --output grown --candidates 100000
    ln -s ../grown CORPORA/grown

The result is a folder of shards, with an `index.csv` and the teacher's logits, that `dymn train` reads next to the
other corpora. It has no labels and no new recordings: every clip is made from training clips of the corpora, which need
an `index.csv` with splits.

For each class that the teacher detects in fewer than `--below` training clips (in their first five seconds, repeated if
they are shorter), an archive keeps the `--keep` clips with the highest probability (MAP-Elites: Mouret and Clune,
"Illuminating search spaces by mapping elites", 2015; for the classes of a classifier, Nguyen, Yosinski and Clune,
"Innovation Engines", 2015). A candidate for a class is made from clips of its archive and from training clips that the
teacher scores high, by superposing, repeating, modulating, playing faster or slower, filtering, and adding
reverberation. It enters every archive where it scores higher than the lowest clip. An archive has at most three clips
with the same origin and no two to which the teacher's logits are nearly the same.

The same options give the same clips. The archives are saved every few minutes; after an interruption, the same command
continues, and with a larger `--candidates`, a finished search does. 100,000 candidates take about an hour on one busy
thread. Several searches with different seeds can run at the same time, each with its own folder; `dymn train` reads all
folders in CORPORA. `distilled.py` also counts the clips of all folders, so measure with a CORPORA without the link.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from dymn.data import Loader, PlainSampler, Source, open_source
from dymn.errors import DymnError
from dymn.runtime.backend import Backend
from dymn.runtime.opening import open_backend
from dymn.system.arrays import Floats
from dymn.system.files import atomic_write, write_csv
from dymn.training import augment
from dymn.weights import open_checkpoint

RATE, SECONDS = 32_000, 5.0
N = int(RATE * SECONDS)
BATCH = 16
HEARD = 0.3  # the teacher detects a class above this probability
LEAST = 0.02  # a class enters no archive below it
WRITTEN = 0.1  # nor is it written below it
NEAR = 0.6  # clips whose logits differ by less (root mean square) are nearly the same
SAME_ORIGIN = 3  # clips of an archive
FAVOURITES = 40  # training clips that the teacher scores highest, by class
SAVE_EVERY = 300.0  # seconds
MOST_ORIGINS = 8  # that are remembered of a clip
PER_SHARD = 1000

Integers = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]


class Grown(NamedTuple):
    """A clip of an archive."""

    key: str  # from the samples
    score: float
    logits: npt.NDArray[np.float16]  # [C]
    samples: npt.NDArray[np.float16]  # [N]
    origins: tuple[str, ...]  # training clips that it is made from, that of its first parent first


class Archives:
    """The best clips of each class, and the number of candidates so far."""

    def __init__(self, classes: Integers, keep: int) -> None:
        """Start with empty archives of at most `keep` clips for the given classes."""
        self.classes, self.keep, self.made = classes, keep, 0
        self.clips: dict[int, list[Grown]] = {int(c): [] for c in classes}

    def bounds(self) -> Floats:
        """Return the score that a clip must exceed to enter the archive of each of the classes."""
        archives = [self.clips[int(c)] for c in self.classes]
        return np.array([clips[-1].score if len(clips) >= self.keep else LEAST for clips in archives], np.float32)

    def add(self, logits: Floats, samples: npt.NDArray[np.float16], origins: tuple[str, ...]) -> bool:
        """Offer a clip [N] with logits [C] to all archives; return whether one takes it."""
        scores = 1 / (1 + np.exp(-logits[self.classes]))
        high = np.flatnonzero(scores > self.bounds())
        key = f"g{hashlib.sha256(samples.tobytes()).hexdigest()[:16]}" if len(high) else ""
        taken = False
        for i in high:
            clip = Grown(key, float(scores[i]), logits.astype(np.float16), samples, origins)
            taken |= self._add(int(self.classes[i]), clip)
        return taken

    def _add(self, c: int, clip: Grown) -> bool:
        archive = self.clips[c]
        rivals = [i for i, old in enumerate(archive) if distance(clip.logits, old.logits) < NEAR]
        related = [i for i, old in enumerate(archive) if i not in rivals and old.origins[0] == clip.origins[0]]
        if len(related) >= SAME_ORIGIN:
            rivals.append(related[-1])
        if any(archive[i].score >= clip.score for i in rivals):
            return False
        kept = [old for i, old in enumerate(archive) if i not in rivals]
        self.clips[c] = sorted([*kept, clip], key=lambda old: -old.score)[: self.keep]
        return True

    def unique(self, least: float = 0.0) -> list[Grown]:
        """Return the clips whose score in an archive is above `least`, each once."""
        found = {clip.key: clip for archive in self.clips.values() for clip in archive if clip.score > least}
        return [found[key] for key in sorted(found)]

    def summary(self) -> str:
        """Say in how many classes the teacher detects the archives' clips."""
        counts = np.array([sum(clip.score > HEARD for clip in archive) for archive in self.clips.values()])
        by_count = ", ".join(f"{int((counts >= n).sum())} with {n} or more" for n in (1, 5, 15))
        return f"{len(self.unique())} clips; of {len(counts)} classes {by_count} above {HEARD}"


def distance(a: npt.NDArray[np.float16], b: npt.NDArray[np.float16]) -> float:
    """Return the root mean square of the difference of logits [C]."""
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


class Breeder:
    """Makes candidates from training clips and archives."""

    def __init__(self, pool: Halves, keys: list[str], logits: Floats, archives: Archives, seed: int) -> None:
        """Use a pool of training clips [n, N] with their keys and the teacher's logits [n, C]."""
        self.pool, self.keys, self.archives, self.seed = pool, keys, archives, seed
        self.favourites = np.argsort(-logits, axis=0, kind="stable")[:FAVOURITES]  # [FAVOURITES, C]

    def candidates(self) -> tuple[Floats, list[tuple[str, ...]]]:
        """Return a batch of candidates [BATCH, N], each for a random class, and their origins.

        The batch depends only on the archives, the seed, and the number of candidates so far.
        """
        rng = self.rng = np.random.default_rng((self.seed, self.archives.made))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        pairs = [self._candidate(int(rng.choice(self.archives.classes))) for _ in range(BATCH)]
        waves = torch.from_numpy(np.stack([levelled(wave) for wave, _ in pairs]))
        speeds = np.where(self._some(0.5), np.exp(rng.normal(0, 0.35, BATCH)).clip(0.35, 2.8), 1.0)
        waves = augment.change_speed(waves, speeds)
        spreads = np.where(self._some(0.5), np.exp(rng.uniform(np.log(1.5), np.log(15), BATCH)), 0.0)  # decibels
        waves = augment.colour(waves, rng.normal(size=(BATCH, 8)) * spreads[:, None])
        decays = rng.uniform(0.1, 2, BATCH) * RATE
        levels = np.where(self._some(0.15), rng.uniform(0.1, 1.5, BATCH), 0.0)
        waves = augment.reverberate(waves, decays, levels, generator)
        waves = augment.gain(waves, np.where(self._some(0.3), rng.uniform(-20, 6, BATCH), 0.0))
        peaks = waves.abs().amax(dim=1, keepdim=True)
        return (waves * (0.9 / peaks.clamp(min=0.9))).numpy(), [origins for _, origins in pairs]

    def _some(self, probability: float) -> npt.NDArray[np.bool_]:
        return self.rng.random(BATCH) < probability

    def _candidate(self, c: int) -> tuple[Floats, tuple[str, ...]]:
        rng = self.rng
        wave, origins = self._parent(c)
        if rng.random() < 0.45:
            other, others = self._parent(c) if rng.random() < 0.8 else (noise(rng), ())
            ratio = np.sqrt((wave.var() + 1e-9) / (other.var() + 1e-9)) * 10 ** (-rng.uniform(-6, 18) / 20)
            wave, origins = wave + other * np.float32(ratio), tuple(dict.fromkeys(origins + others))
        if rng.random() < 0.3:
            wave = SHAPES[int(rng.choice(len(SHAPES), p=SHARES))](wave, rng)
        if rng.random() < 0.12:
            wave = crowd(wave, rng)
        if rng.random() < 0.05:
            wave = 0.5 * np.tanh(wave * np.float32(rng.uniform(2, 20) / max(float(np.abs(wave).max()), 1e-9)))
        return wave, origins[:MOST_ORIGINS]

    def _parent(self, c: int) -> tuple[Floats, tuple[str, ...]]:
        """Return a clip for class `c`, and its origins: of an archive, a favourite of the teacher, or any clip."""
        rng, kind = self.rng, self.rng.random()
        other = int(rng.choice(self.archives.classes))
        archive = self.archives.clips[c] if kind < 0.55 else self.archives.clips[other] if kind > 0.93 else []
        if archive:
            clip = archive[int(rng.integers(len(archive)))]
            return clip.samples.astype(np.float32), clip.origins
        i = int(rng.integers(len(self.pool)))
        if kind < 0.85:
            i = int(self.favourites[min(int(rng.exponential(8)), len(self.favourites) - 1), c])
        wave = np.asarray(self.pool[i], np.float32)
        return np.roll(wave, int(rng.integers(N)) if rng.random() < 0.5 else 0), (self.keys[i],)


def levelled(wave: Floats) -> Floats:
    """Bring the peak of a very soft or loud waveform [N] to half of full scale."""
    peak = float(np.abs(wave).max())
    return wave if 0.05 <= peak <= 0.99 else wave * np.float32(0.5 / max(peak, 1e-6))


def noise(rng: np.random.Generator) -> Floats:
    """Return noise [N] whose power falls with frequency, by 0 to 6 dB per octave."""
    bins = np.maximum(np.arange(N // 2 + 1), 20)
    spectrum = (rng.standard_normal(len(bins)) + 1j * rng.standard_normal(len(bins))) * bins ** -rng.uniform(0, 1)
    wave = np.fft.irfft(spectrum, N)
    return np.asarray(0.3 * wave / np.abs(wave).max(), np.float32)


def pulsate(wave: Floats, rng: np.random.Generator) -> Floats:
    """Modulate the amplitude of [N] with 0.3 to 40 Hz."""
    rate, depth = np.exp(rng.uniform(np.log(0.3), np.log(40))), rng.uniform(0.2, 1)
    phase = 2 * np.pi * (rate * np.arange(N) / RATE + rng.random())
    curve = 1 - depth + depth * (0.5 + 0.5 * np.sin(phase)) ** rng.uniform(0.5, 4)
    return wave * curve.astype(np.float32)


def repeat_part(wave: Floats, rng: np.random.Generator) -> Floats:
    """Repeat a part of [N], of 0.06 to 1.5 s, more or less regularly."""
    n = int(RATE * np.exp(rng.uniform(np.log(0.06), np.log(1.5))))
    first = int(rng.integers(N - n))
    part = wave[first : first + n].copy()
    ramp = np.linspace(0, 1, min(n // 4, 400), dtype=np.float32)
    part[: len(ramp)] *= ramp
    part[-len(ramp) :] *= ramp[::-1]
    gap, jitter = n * rng.uniform(0.4, 2.5), rng.uniform(0, 0.6)
    result, place = np.zeros(N, np.float32), 0
    while place < N:
        piece = part[: N - place]
        result[place : place + len(piece)] += piece * np.float32(10 ** (-rng.uniform(0, 6 * jitter) / 20))
        place += max(int(gap * (1 + jitter * rng.uniform(-1, 1))), 300)
    return result


def scatter(wave: Floats, rng: np.random.Generator) -> Floats:
    """Put grains of [N], of 0.02 to 0.6 s, at other places."""
    n = int(RATE * np.exp(rng.uniform(np.log(0.02), np.log(0.6))))
    shape, result = np.hanning(n).astype(np.float32), np.zeros(N, np.float32)
    for _ in range(int(N / n * rng.uniform(0.3, 3))):
        source, place = rng.integers(N - n, size=2)
        result[place : place + n] += wave[source : source + n] * shape
    return result


def strike(wave: Floats, rng: np.random.Generator) -> Floats:
    """Let [N] begin suddenly and decay with a time constant of 0.05 to 3 s."""
    age = np.arange(N) - int(rng.uniform(0, 0.6) * N)
    floor, decay = rng.uniform(0, 0.2), RATE * np.exp(rng.uniform(np.log(0.05), np.log(3)))
    curve = floor + (1 - floor) * np.where(age < 0, 0.0, np.exp(-np.maximum(age, 0) / decay))
    return wave * curve.astype(np.float32)


def reverse(wave: Floats, rng: np.random.Generator) -> Floats:
    """Play [N] backwards."""
    return wave[::-1].copy()


SHAPES, SHARES = (pulsate, repeat_part, scatter, strike, reverse), (0.3, 0.3, 0.15, 0.15, 0.1)


def crowd(wave: Floats, rng: np.random.Generator) -> Floats:
    """Add to [N] one to four copies at other places and speeds."""
    result = wave.copy()
    for _ in range(int(rng.integers(1, 5))):
        places = (np.arange(N) * np.exp(rng.uniform(-0.25, 0.25)) + rng.integers(N)) % N
        result += wave[places.astype(np.int64)] * np.float32(10 ** (-rng.uniform(0, 10) / 20))
    return result


def to_logits(probabilities: npt.ArrayLike) -> Floats:
    """Return the logits of probabilities."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p), np.float32)


def load_pool(source: Source, path: Path) -> Halves:
    """Return the first five seconds of all clips [n, N], shorter ones repeated; `path` keeps them, decoded.

    Raises:
        SystemExit: if a clip cannot be read.
    """
    if not path.is_file():
        part = path.with_suffix(".part")
        pool = np.lib.format.open_memmap(part, "w+", np.float16, (len(source), N))
        sampler, place = PlainSampler(len(source), shuffle=False), 0
        loader = Loader(source, sampler, 32, seconds=SECONDS, crop="start", fill="repeat", max_bad=1.0)
        for batch in loader.epoch(0):
            pool[place : place + len(batch.keys)] = batch.waveform.numpy()
            place += len(batch.keys)
        if loader.bad:
            name, reason = next(iter(loader.bad.items()))
            raise SystemExit(f"{len(loader.bad)} clips cannot be read ({name}: {reason}). List them in exclude.csv.")
        pool.flush()
        part.replace(path)
    return cast("Halves", np.load(path, mmap_mode="r"))


def save_archives(archives: Archives, path: Path, origin: str) -> None:
    """Save all archives in one file; `origin` identifies the teacher, the training clips and the options."""
    places = [(c, clip) for c, archive in archives.clips.items() for clip in archive]
    clips = archives.unique()
    with atomic_write(path) as file:
        np.savez(
            file,
            origin=np.array(origin),
            made=np.array(archives.made),
            classes=np.array([c for c, _ in places], np.int64),
            members=np.array([clip.key for _, clip in places], np.str_),
            scores=np.array([clip.score for _, clip in places]),
            keys=np.array([clip.key for clip in clips], np.str_),
            samples=np.array([clip.samples for clip in clips], np.float16),
            logits=np.array([clip.logits for clip in clips], np.float16),
            origins=np.array(json.dumps([clip.origins for clip in clips])),
        )


def load_archives(archives: Archives, path: Path, origin: str) -> None:
    """Continue with the archives that `save_archives` saved.

    Raises:
        SystemExit: if they are of another search.
    """
    with np.load(path, allow_pickle=False) as saved:
        if str(saved["origin"]) != origin:
            raise SystemExit(f"{path} is of a search with {saved['origin']}; now: {origin}. Use another --output.")
        archives.made = int(saved["made"])
        parts = zip(saved["keys"], saved["logits"], saved["samples"], json.loads(str(saved["origins"])), strict=True)
        clips = {
            str(key): Grown(str(key), 0.0, logits, samples.copy(), tuple(origins))
            for key, logits, samples, origins in parts
        }
        for c, key, score in zip(saved["classes"], saved["members"], saved["scores"], strict=True):
            archives.clips[int(c)].append(clips[str(key)]._replace(score=float(score)))


def write_shards(clips: list[Grown], folder: Path, teacher: str) -> None:
    """Write clips as FLAC in shards, with the teacher's logits and, when all is written, an index."""
    for pattern in ("index.csv", "teacher_logits_*.npy", "shards/grown-*.tar"):
        for old in folder.glob(pattern):
            old.unlink()
    (folder / "shards").mkdir(exist_ok=True)
    rows = []
    for shard, start in enumerate(range(0, len(clips), PER_SHARD)):
        name = f"grown-{shard:04d}.tar"
        with atomic_write(folder / "shards" / name) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for clip in clips[start : start + PER_SHARD]:
                audio = io.BytesIO()
                soundfile.write(audio, clip.samples.astype(np.float32), RATE, format="FLAC", subtype="PCM_16")
                made_from = json.dumps({"origins": clip.origins}).encode()
                for member, content in ((f"{clip.key}.flac", audio.getvalue()), (f"{clip.key}.json", made_from)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                rows.append((clip.key, name, "train"))
    with atomic_write(folder / f"teacher_logits_{teacher}.npy") as file:
        np.save(file, np.array([clip.logits for clip in clips]))
    write_csv(folder / "index.csv", [("key", "shard", "split"), *rows])


def search(breeder: Breeder, teacher: Backend, candidates: int, save: Callable[[], None]) -> None:
    """Make candidates up to a number of them, and save the archives every few minutes."""
    archives, start = breeder.archives, time.monotonic()
    last = start
    while archives.made < candidates:
        waves, origins = breeder.candidates()
        samples = waves.astype(np.float16)
        found = to_logits(teacher.run_waveforms(samples.astype(np.float32)).probabilities)
        for logits, wave, parents in zip(found, samples, origins, strict=True):
            archives.add(logits, wave.copy(), parents)
        archives.made += len(waves)
        if time.monotonic() - last > SAVE_EVERY:
            last = time.monotonic()
            save()
            print(f"{last - start:.0f} s, {archives.made} candidates: {archives.summary()}", flush=True)


def check_teacher(teacher: Backend) -> None:
    """Raise a `SystemExit` for a teacher that cannot score clips of five seconds at 32 kHz with sigmoid outputs."""
    if teacher.sample_rate != RATE:
        raise SystemExit(f"The teacher's sample rate is {teacher.sample_rate} Hz; {RATE} is required.")
    if teacher.card.exclusive or teacher.frame_seconds is not None:
        raise SystemExit("The teacher must score whole clips, and each class on its own.")


def grow(options: argparse.Namespace) -> None:
    """Search, or continue a search, and write the result."""
    folder: Path = options.output
    if folder.resolve().is_relative_to(options.corpora.resolve()):
        raise SystemExit(
            f"{folder} is in {options.corpora}, where its clips would be read as training clips. Use another."
        )
    for name, least in {"below": 1, "keep": 1, "candidates": 0, "seed": 0}.items():
        if getattr(options, name) < least:
            raise SystemExit(f"--{name} is {getattr(options, name)}; at least {least} is required.")
    stored = open_checkpoint(options.teacher)
    teacher = open_backend(stored, threads=1)
    check_teacher(teacher)
    source = open_source("shards", options.corpora, "train", labels=teacher.labels).at(RATE)
    if not source.catalog.splits:
        raise SystemExit(f"The clips in {options.corpora} have no splits. Add an index.csv (key, shard, split).")
    folder.mkdir(parents=True, exist_ok=True)
    pool = load_pool(source, folder / f"pool-{source.digest[:16]}.npy")
    parts = [np.asarray(pool[i : i + BATCH], np.float32) for i in range(0, len(pool), BATCH)]
    logits = np.concatenate([to_logits(teacher.run_waveforms(part).probabilities) for part in parts])
    few = np.flatnonzero((logits > to_logits(HEARD)).sum(axis=0) < options.below)
    if not len(few):
        raise SystemExit(f"The teacher detects every class in {options.below} clips or more; nothing to do.")
    print(f"{len(pool)} training clips; {len(few)} classes with fewer than {options.below}", flush=True)
    origin = (
        f"teacher {stored.digest[:16]}, clips {source.digest[:16]}, --below {options.below}, "
        f"--keep {options.keep}, --seed {options.seed}"
    )
    archives, saved = Archives(few, options.keep), folder / "archives.npz"
    if saved.is_file():
        load_archives(archives, saved, origin)
    save = partial(save_archives, archives, saved, origin)
    try:
        search(Breeder(pool, source.keys, logits, archives, options.seed), teacher, options.candidates, save)
    except KeyboardInterrupt:
        print("Interrupted; writing what was found.", flush=True)
    save()
    clips = archives.unique(WRITTEN)
    if not clips:
        raise SystemExit(f"No candidate scores above {WRITTEN} in any of the classes; nothing was written.")
    write_shards(clips, folder, teacher.card.name or "teacher")
    print(f"{archives.summary()}; {len(clips)} clips written to {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", default="mn04_as")
    parser.add_argument("--below", type=int, default=15, help="Training clips of a class that needs no archive.")
    parser.add_argument("--keep", type=int, default=16, help="Clips of an archive.")
    parser.add_argument("--candidates", type=int, default=100_000, help="How many are made in all.")
    parser.add_argument("--seed", type=int, default=1)
    torch.set_num_threads(1)
    try:
        grow(parser.parse_args())
    except (DymnError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
