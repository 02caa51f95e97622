"""Runs that take a second: a network of width 0.1, two of its blocks dynamic, on half-second clips at 8 kHz."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from dymn.training import TrainConfig
from dymn.training.settings import parse

RATE = 8_000
FRONT_END = {"sample_rate": RATE, "n_fft": 256, "win_length": 200, "hop_length": 80, "n_mels": 32, "f_max": 3500.0}

NETWORK = {"width": 0.1, "dynamic_blocks": [1, 14]}


def write_clips(folder: Path, n: int, bad: int = 0) -> Path:
    """Write n clips of two classes that are easily told apart, low and high tones, and some files that are no audio."""
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE // 2) / RATE
    for i in range(n):
        tone = 0.3 * np.sin(2 * np.pi * (300 if i % 2 else 1800) * seconds) + 0.03 * rng.standard_normal(len(seconds))
        path = folder / ("high", "low")[i % 2] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone.astype(np.float32), RATE, subtype="FLOAT")
    for i in range(bad):
        (folder / "low" / f"bad{i}.wav").write_bytes(b"RIFF no audio")
    return folder


def settings(clips: Path, out: Path, /, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a recipe: two epochs of short batches, without augmentation unless a section says otherwise."""
    defaults: dict[str, dict[str, Any]] = {
        "model": {"name": "dymn04", "settings": NETWORK, "front_end": FRONT_END},
        "data": {"path": str(clips), "holdout": 0.3, "test": "", "seconds": 0.5},
        "augment": {"jitter": False},
        "optim": {"batch_size": 4},
        "schedule": {"epochs": 2, "warm_up": 1, "ramp_start": 4},
        "run": {"out": str(out), "device": "cpu", "threads": 1},
    }
    merged = {name: values | sections.get(name, {}) for name, values in ({"teacher": {}} | defaults).items()}
    merged["model"].setdefault("front_end", FRONT_END)
    return merged


def run(clips: Path, out: Path, /, **sections: dict[str, Any]) -> TrainConfig:
    return parse(settings(clips, out, **sections))
