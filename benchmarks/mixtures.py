"""Synthetic recordings with known onsets and offsets, composed of clips of ESC-10 and coloured noise."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dymn.audio import reading

SECONDS = 20.0
FRAME = 0.01  # seconds in which the level of a clip is measured
QUIET_DB = 35.0  # below the loudest frame of its clip, a frame is silence
LONGEST_PAUSE = 0.3  # seconds of silence that do not end an event
SHORTEST, LONGEST = 0.15, 6.0  # seconds that an event may take
FADE = 0.02
EVENT_RMS = 0.05
NOISE_DB = (20.0, 35.0)  # by which events are louder than the noise; louder noise is rain to the networks
MAX_AT_ONCE = 2


class Truth(NamedTuple):
    """An event as it was put there."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Mixture:
    """A recording [N] at `sample_rate` and what is in it."""

    name: str
    waveform: np.ndarray
    sample_rate: int
    events: tuple[Truth, ...]


def class_indices(folder: Path) -> dict[str, list[int]]:
    """Return the AudioSet labels of each class of ESC-10."""
    classes = json.loads((folder / "audioset_map.json").read_text(encoding="utf-8"))["classes"]
    return {name: entry["indices"] for name, entry in classes.items()}


def active_stretches(waveform: np.ndarray, sample_rate: int) -> list[tuple[int, int]]:
    """Return where a clip is not silent, as first and last sample of stretches without a long pause."""
    size = round(FRAME * sample_rate)
    n = len(waveform) // size
    level = np.sqrt((waveform[: n * size].reshape(n, size) ** 2).mean(axis=1))
    active = np.flatnonzero(level > level.max() * 10 ** (-QUIET_DB / 20))
    groups = np.split(active, np.flatnonzero(np.diff(active) > LONGEST_PAUSE / FRAME) + 1)
    stretches = [(int(group[0]) * size, (int(group[-1]) + 1) * size) for group in groups]
    longest = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
    return [(first, last) for first, last in stretches if last - first >= SHORTEST * sample_rate] or [longest]


def coloured_noise(n: int, random: np.random.Generator) -> np.ndarray:
    """Return noise [n] of RMS 1 whose power falls with frequency, between white and brown."""
    slope = random.uniform(0.0, 2.0)
    spectrum = np.fft.rfft(random.standard_normal(n))
    shaped = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** (-slope / 2), n)
    return shaped / np.sqrt((shaped**2).mean())


def mixtures(
    folder: Path,
    folds: tuple[int, ...],
    count: int,
    seed: int,
    sample_rate: int = 32_000,
    noise_db: tuple[float, float] = NOISE_DB,
) -> list[Mixture]:
    """Make recordings of 20 s with two to six events each, from the clips of some folds of ESC-10."""
    random = np.random.default_rng(seed)
    by_class: dict[str, list[Path]] = {}
    with (folder / "meta" / "esc10.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["fold"]) in folds:
                by_class.setdefault(row["category"], []).append(folder / "audio" / row["filename"])
    return [_mixture(f"mixture{i:03d}", by_class, random, sample_rate, noise_db) for i in range(count)]


def _mixture(
    name: str,
    by_class: dict[str, list[Path]],
    random: np.random.Generator,
    sample_rate: int,
    noise_db: tuple[float, float],
) -> Mixture:
    n = round(SECONDS * sample_rate)
    waveform = np.zeros(n)
    events: list[Truth] = []
    wanted = int(random.integers(2, 7))
    for _ in range(8 * wanted):
        if len(events) == wanted:
            break
        label = str(random.choice(sorted(by_class)))
        sound = _sound(by_class[label], random, sample_rate)
        first = int(random.integers(0, n - len(sound)))
        start, end = first / sample_rate, (first + len(sound)) / sample_rate
        beside = [event for event in events if start < event.end + 0.5 and event.start < end + 0.5]
        if len(beside) >= MAX_AT_ONCE or any(event.label == label for event in beside):
            continue
        waveform[first : first + len(sound)] += sound
        events.append(Truth(label, start, end))
    noise = coloured_noise(n, random) * EVENT_RMS * 10 ** (-random.uniform(*noise_db) / 20)
    return Mixture(
        name, (waveform + noise).astype(np.float32), sample_rate, tuple(sorted(events, key=lambda event: event.start))
    )


def _sound(clips: list[Path], random: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Return one stretch of a clip, at most `LONGEST` seconds, faded at its ends, at the level of events."""
    clip = reading.read(clips[int(random.integers(len(clips)))], sample_rate)
    stretches = active_stretches(clip, sample_rate)
    first, last = stretches[int(random.integers(len(stretches)))]
    longest = round(random.uniform(1.5, LONGEST) * sample_rate)
    if last - first > longest:
        first += int(random.integers(last - first - longest + 1))
        last = first + longest
    sound = clip[first:last].astype(np.float64)
    fade = np.linspace(0, 1, round(FADE * sample_rate))
    sound[: len(fade)] *= fade
    sound[-len(fade) :] *= fade[::-1]
    return sound * (EVENT_RMS * 10 ** (random.uniform(-4, 4) / 20) / np.sqrt((sound**2).mean()))
