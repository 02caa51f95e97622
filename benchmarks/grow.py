"""Clips for classes that a corpus lacks: an evolutionary search for sounds in which the teacher detects them.

    python benchmarks/grow.py CORPORA --output grown --seconds 3600

The result is a folder of shards, with an `index.csv` and the teacher's logits, that `dymn train` reads next to the
other corpora. It has no labels and no new recordings: every clip is made from training clips of the corpora.

For each class that the teacher detects in fewer than `--below` training clips, an archive keeps the `--keep` clips with
the highest probability (MAP-Elites: Mouret and Clune, "Illuminating search spaces by mapping elites", 2015; for the
classes of a classifier, Nguyen, Yosinski and Clune, "Innovation Engines", 2015). A candidate for a class is made from
clips of its archive and from training clips that the teacher scores high, by superposing, repeating, modulating,
playing faster or slower, filtering, adding reverberation. It enters every archive where it scores higher than the
lowest clip. An archive has at most three clips with the same origin and no two to which the teacher's logits are nearly
the same.

The archives are saved every few minutes and after Ctrl-C; the same command with another `--seed` continues the search.
A candidate takes about 15 ms on one thread. `--seed` runs in parallel need folders of their own; `dymn train` reads all
folders of shards in CORPORA.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from dymn.data import Loader, PlainSampler, Source, open_source
from dymn.runtime.backend import Backend
from dymn.runtime.opening import open_backend
from dymn.system.arrays import Floats
from dymn.system.files import atomic_write, write_csv
from dymn.training import augment

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
PER_SHARD = 1000

Integers = npt.NDArray[np.int64]


class Grown(NamedTuple):
    """A clip of an archive."""

    score: float
    logits: npt.NDArray[np.float16]  # [C]
    samples: npt.NDArray[np.float16]  # [N]
    origins: tuple[int, ...]  # training clips that it is made from, the main one first


class Archives:
    """The best clips of each class."""

    def __init__(self, classes: Integers, keep: int) -> None:
        """Start with empty archives of at most `keep` clips for the given classes."""
        self.classes, self.keep = classes, keep
        self.clips: dict[int, list[Grown]] = {int(c): [] for c in classes}

    def bounds(self) -> Floats:
        """Return the score that a clip must exceed to enter the archive of each of the classes."""
        full = [self.clips[int(c)] for c in self.classes]
        return np.array([e[-1].score if len(e) >= self.keep else LEAST for e in full], np.float32)

    def add(self, logits: Floats, samples: npt.NDArray[np.float16], origins: tuple[int, ...]) -> bool:
        """Offer a clip to all archives; return whether one takes it."""
        scores = 1 / (1 + np.exp(-logits[self.classes]))
        taken = False
        for i in np.flatnonzero(scores > self.bounds()):
            clip = Grown(float(scores[i]), logits.astype(np.float16), samples, origins)
            taken |= self._add(self.clips[int(self.classes[i])], clip)
        return taken

    def _add(self, archive: list[Grown], clip: Grown) -> bool:
        distances = [np.sqrt(np.mean((clip.logits - other.logits).astype(np.float32) ** 2)) for other in archive]
        rivals = [other for other, distance in zip(archive, distances, strict=True) if distance < NEAR]
        if not rivals:
            related = [other for other in archive if other.origins[0] == clip.origins[0]]
            rivals = related[-1:] if len(related) >= SAME_ORIGIN else []
        if any(other.score >= clip.score for other in rivals):
            return False
        archive[:] = [other for other in archive if not any(other is rival for rival in rivals)]
        archive.append(clip)
        archive.sort(key=lambda other: -other.score)
        del archive[self.keep :]
        return True

    def all(self) -> list[Grown]:
        """Return the clips of all archives, each once."""
        clips = {id(clip.samples): clip for archive in self.clips.values() for clip in archive}
        return list(clips.values())

    def summary(self) -> str:
        """Say in how many classes the teacher detects the archives' clips."""
        counts = np.array([sum(clip.score > HEARD for clip in archive) for archive in self.clips.values()])
        by_count = ", ".join(f"{int((counts >= n).sum())} with {n} or more" for n in (1, 5, 15))
        return f"{len(self.all())} clips; of {len(counts)} classes {by_count} above {HEARD}"


class Breeder:
    """Makes candidates from training clips and archives."""

    def __init__(self, pool: Floats, logits: Floats, archives: Archives, seed: int) -> None:
        """Use a pool of training clips [n, N] with the teacher's logits [n, C]."""
        self.pool, self.archives = pool, archives
        self.favourites = np.argsort(-logits, axis=0)[:FAVOURITES]  # [FAVOURITES, C]
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def candidates(self) -> tuple[Floats, list[tuple[int, ...]]]:
        """Return a batch of candidates [BATCH, N], each for a random class, and their origins."""
        rng = self.rng
        pairs = [self._candidate(int(rng.choice(self.archives.classes))) for _ in range(BATCH)]
        waves = torch.from_numpy(np.stack([levelled(wave) for wave, _ in pairs]))
        speeds = np.where(self._some(0.5), np.exp(rng.normal(0, 0.35, BATCH)).clip(0.35, 2.8), 1.0)
        waves = augment.change_speed(waves, speeds)
        spreads = np.where(self._some(0.5), np.exp(rng.uniform(np.log(1.5), np.log(15), BATCH)), 0.0)  # decibels
        waves = augment.colour(waves, rng.normal(size=(BATCH, 8)) * spreads[:, None])
        decays = rng.uniform(0.1, 2, BATCH) * RATE
        levels = np.where(self._some(0.15), rng.uniform(0.1, 1.5, BATCH), 0.0)
        waves = augment.reverberate(waves, decays, levels, self.generator)
        waves = augment.gain(waves, np.where(self._some(0.3), rng.uniform(-20, 6, BATCH), 0.0))
        peaks = waves.abs().amax(dim=1, keepdim=True)
        return (waves * (0.9 / peaks.clamp(min=0.9))).numpy(), [origins for _, origins in pairs]

    def _some(self, probability: float) -> npt.NDArray[np.bool_]:
        return self.rng.random(BATCH) < probability

    def _candidate(self, c: int) -> tuple[Floats, tuple[int, ...]]:
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
        return wave, origins[:8]

    def _parent(self, c: int) -> tuple[Floats, tuple[int, ...]]:
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
        return np.roll(wave, int(rng.integers(N)) if rng.random() < 0.5 else 0), (i,)


def levelled(wave: Floats) -> Floats:
    """Bring the peak of a very soft or loud waveform to half of full scale."""
    peak = float(np.abs(wave).max())
    return wave if 0.05 <= peak <= 0.99 else wave * np.float32(0.5 / max(peak, 1e-6))


def noise(rng: np.random.Generator) -> Floats:
    """Return noise [N] whose power falls with frequency, by 0 to 6 dB per octave."""
    bins = np.maximum(np.arange(N // 2 + 1), 20)
    spectrum = (rng.standard_normal(len(bins)) + 1j * rng.standard_normal(len(bins))) * bins ** -rng.uniform(0, 1)
    wave = np.fft.irfft(spectrum, N)
    return np.asarray(0.3 * wave / np.abs(wave).max(), np.float32)


def pulsate(wave: Floats, rng: np.random.Generator) -> Floats:
    """Modulate the amplitude with 0.3 to 40 Hz."""
    rate, depth = np.exp(rng.uniform(np.log(0.3), np.log(40))), rng.uniform(0.2, 1)
    phase = 2 * np.pi * (rate * np.arange(N) / RATE + rng.random())
    curve = 1 - depth + depth * (0.5 + 0.5 * np.sin(phase)) ** rng.uniform(0.5, 4)
    return wave * curve.astype(np.float32)


def repeat_part(wave: Floats, rng: np.random.Generator) -> Floats:
    """Repeat a part of 0.06 to 1.5 s, more or less regularly."""
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
    """Put grains of 0.02 to 0.6 s at other places."""
    n = int(RATE * np.exp(rng.uniform(np.log(0.02), np.log(0.6))))
    shape, result = np.hanning(n).astype(np.float32), np.zeros(N, np.float32)
    for _ in range(int(N / n * rng.uniform(0.3, 3))):
        source, place = rng.integers(N - n, size=2)
        result[place : place + n] += wave[source : source + n] * shape
    return result


def strike(wave: Floats, rng: np.random.Generator) -> Floats:
    """Begin suddenly and decay with a time constant of 0.05 to 3 s."""
    age = np.arange(N) - int(rng.uniform(0, 0.6) * N)
    floor, decay = rng.uniform(0, 0.2), RATE * np.exp(rng.uniform(np.log(0.05), np.log(3)))
    curve = floor + (1 - floor) * np.where(age < 0, 0.0, np.exp(-np.maximum(age, 0) / decay))
    return wave * curve.astype(np.float32)


def reverse(wave: Floats, rng: np.random.Generator) -> Floats:
    """Play backwards."""
    return wave[::-1].copy()


SHAPES, SHARES = (pulsate, repeat_part, scatter, strike, reverse), (0.3, 0.3, 0.15, 0.15, 0.1)


def crowd(wave: Floats, rng: np.random.Generator) -> Floats:
    """Add one to four copies at other places and speeds."""
    result = wave.copy()
    for _ in range(int(rng.integers(1, 5))):
        places = (np.arange(N) * np.exp(rng.uniform(-0.25, 0.25)) + rng.integers(N)) % N
        result += wave[places.astype(np.int64)] * np.float32(10 ** (-rng.uniform(0, 10) / 20))
    return result


def to_logits(probabilities: npt.ArrayLike) -> Floats:
    """Return the logits of probabilities."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p), np.float32)


def load_pool(source: Source, folder: Path) -> Floats:
    """Return the first five seconds of all clips [n, N], shorter ones repeated; a file in `folder` keeps them, decoded.

    Raises:
        SystemExit: if a clip cannot be read.
    """
    path = folder / f"pool-{source.digest[:16]}.npy"
    if not path.is_file():
        sampler = PlainSampler(len(source), shuffle=False)
        loader = Loader(source, sampler, 32, seconds=SECONDS, crop="start", fill="repeat", max_bad=1.0)
        waves = [batch.waveform.numpy().astype(np.float16) for batch in loader.epoch(0)]
        if loader.bad:
            name, reason = next(iter(loader.bad.items()))
            raise SystemExit(f"{len(loader.bad)} clips cannot be read ({name}: {reason}). List them in exclude.csv.")
        with atomic_write(path) as file:
            np.save(file, np.concatenate(waves))
    pool: Floats = np.load(path, mmap_mode="r")
    return pool


def save_archives(archives: Archives, path: Path, digest: str) -> None:
    """Save all archives in one file, with the digest of the training clips."""
    clips = [(c, clip) for c, archive in archives.clips.items() for clip in archive]
    samples = {id(clip.samples): clip.samples for _, clip in clips}
    places = {name: i for i, name in enumerate(samples)}
    with atomic_write(path) as file:
        np.savez(
            file,
            digest=np.array(digest),
            samples=np.array(list(samples.values())),
            classes=np.array([c for c, _ in clips]),
            places=np.array([places[id(clip.samples)] for _, clip in clips]),
            logits=np.array([clip.logits for _, clip in clips]),
            origins=np.array(json.dumps([clip.origins for _, clip in clips])),
        )


def load_archives(archives: Archives, path: Path, digest: str) -> None:
    """Add the clips that `save_archives` saved.

    Raises:
        SystemExit: if they were made from other training clips.
    """
    with np.load(path, allow_pickle=False) as saved:
        if str(saved["digest"]) != digest:
            raise SystemExit(f"{path} was made from other training clips. Use another folder as --output.")
        samples, origins = list(saved["samples"]), json.loads(str(saved["origins"]))
        for c, place, logits, origin in zip(saved["classes"], saved["places"], saved["logits"], origins, strict=True):
            if int(c) in archives.clips:
                score = float(1 / (1 + np.exp(-np.float32(logits[c]))))
                archives.clips[int(c)].append(Grown(score, logits, samples[place], tuple(origin)))
    for archive in archives.clips.values():
        del archive[archives.keep :]


def write_shards(archives: Archives, folder: Path, keys: list[str], teacher: str) -> int:
    """Write the clips in which the teacher may detect a class, as FLAC in shards; return their number."""
    best = {id(clip.samples) for archive in archives.clips.values() for clip in archive if clip.score > WRITTEN}
    clips = [clip for clip in archives.all() if id(clip.samples) in best]
    for old in (folder / "shards").glob("grown-*.tar"):
        old.unlink()
    rows = []
    for shard, part in enumerate(clips[i : i + PER_SHARD] for i in range(0, len(clips), PER_SHARD)):
        name = f"grown-{shard:04d}.tar"
        with atomic_write(folder / "shards" / name) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for i, clip in enumerate(part, start=shard * PER_SHARD):
                key, audio = f"g{i:06d}", io.BytesIO()
                soundfile.write(audio, clip.samples.astype(np.float32), RATE, format="FLAC", subtype="PCM_16")
                origins = json.dumps({"origins": [keys[j] for j in clip.origins]}).encode()
                for member, content in ((f"{key}.flac", audio.getvalue()), (f"{key}.json", origins)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                rows.append((key, name, "train"))
    write_csv(folder / "index.csv", [("key", "shard", "split"), *rows])
    with atomic_write(folder / f"teacher_logits_{teacher}.npy") as file:
        np.save(file, np.array([clip.logits for clip in clips]))
    return len(clips)


def search(breeder: Breeder, teacher: Backend, seconds: float, save: Callable[[], None]) -> None:
    """Make candidates for some time, and save the archives every few minutes."""
    start = last = time.monotonic()
    made = 0
    while time.monotonic() - start < seconds:
        waves, origins = breeder.candidates()
        samples = waves.astype(np.float16)
        found = to_logits(teacher.run_waveforms(samples.astype(np.float32)).probabilities)
        for logits, wave, parents in zip(found, samples, origins, strict=True):
            breeder.archives.add(logits, wave.copy(), parents)
        made += len(waves)
        if time.monotonic() - last > SAVE_EVERY:
            last = time.monotonic()
            save()
            print(f"{last - start:.0f} s, {made} candidates: {breeder.archives.summary()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", default="mn04_as")
    parser.add_argument("--below", type=int, default=15, help="Training clips of a class that has an archive.")
    parser.add_argument("--keep", type=int, default=16, help="Clips of an archive.")
    parser.add_argument("--seconds", type=float, default=3600.0, help="Time of the search.")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (options.output / "shards").mkdir(parents=True, exist_ok=True)
    teacher = open_backend(options.teacher, threads=1)
    source = open_source("shards", options.corpora, "train").at(RATE)
    pool = load_pool(source, options.output)
    logits = np.concatenate(
        [
            to_logits(teacher.run_waveforms(np.asarray(pool[i : i + BATCH], np.float32)).probabilities)
            for i in range(0, len(pool), BATCH)
        ]
    )
    few = np.flatnonzero((logits > to_logits(HEARD)).sum(axis=0) < options.below)
    archives, saved = Archives(few, options.keep), options.output / "archives.npz"
    if saved.is_file():
        load_archives(archives, saved, source.digest)
    print(f"{len(pool)} training clips; {len(few)} classes with fewer than {options.below}", flush=True)
    save = partial(save_archives, archives, saved, source.digest)
    try:
        search(Breeder(pool, logits, archives, options.seed), teacher, options.seconds, save)
    except KeyboardInterrupt:
        print("Interrupted; the archives are written.")
    save()
    n = write_shards(archives, options.output, source.keys, Path(options.teacher).stem)
    print(f"{archives.summary()}; {n} clips written to {options.output}")


if __name__ == "__main__":
    main()
