"""The ways into dymn by which files and messages of strangers come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dymn import audio
from fuzz import inputs
from fuzz.harness import Target

LONGEST = 120.0
"""Seconds of a recording that a case listens to."""


class Way(NamedTuple):
    """A way in: what makes its target, how many of a thousand cases it gets, and the package that it cannot do without."""

    make: Callable[[], Target]
    share: int
    needs: str = "dymn"


def audio_target() -> Target:
    return Target(inputs.variants(inputs.recordings(), inputs.mended_ogg), hear)


def hear(case: tuple[str, bytes], folder: Path) -> bool:
    path = folder / f"case.{case[0]}"
    path.write_bytes(case[1])
    heard = 0
    for block in audio.stream(path, block_seconds=1.0):
        heard += len(block)
        if heard > LONGEST * audio.SAMPLE_RATE:
            break
    audio.probe(path)
    return True


def of_models(name: str) -> Callable[[], Target]:
    def make() -> Target:
        from fuzz import models

        cases, take = models.WAYS[name]
        return Target(cases(), take)

    return make


WAYS = {
    "audio": Way(audio_target, 250, "av"),
    "safetensors": Way(of_models("safetensors"), 150),
    "torch": Way(of_models("torch"), 100),
    "state-dict": Way(of_models("state-dict"), 20),
    "onnx": Way(of_models("onnx"), 50, "onnxruntime"),
    "recipes": Way(of_models("recipes"), 60),
}
