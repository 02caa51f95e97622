"""The ways into dymn by which files and messages of strangers come in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dymn.audio import reading
from dymn.errors import AudioError
from fuzz import inputs
from fuzz.harness import Target

LONGEST = 120.0
"""Seconds of a recording that a case listens to."""


class Way(NamedTuple):
    """A way in: what makes its target, how many of a thousand cases it gets, and the package that it cannot do without.

    `takes` says that some of a hundred cases are taken; if none is, what they are made of is out of date.
    """

    make: Callable[[], Target]
    share: int
    needs: str = "dymn"
    takes: bool = True


def audio_target() -> Target:
    return Target(inputs.variants(inputs.recordings(), inputs.mended_ogg), hear)


def hear(case: tuple[str, bytes], folder: Path) -> bool:
    path = folder / f"case.{case[0]}"
    path.write_bytes(case[1])
    whole = True
    for partial in (False, True):
        heard = 0
        try:
            for block in reading.stream(path, block_seconds=1.0, partial=partial, notes=reading.Notes()):
                heard += len(block)
                if heard > LONGEST * reading.SAMPLE_RATE:
                    break
        except AudioError:
            whole = False
    reading.probe(path)
    return whole


def of(module: str, name: str) -> Callable[[], Target]:
    """Return what makes a target of another module, which is imported only then."""

    def make() -> Target:
        cases, *rest = importlib.import_module(f"fuzz.{module}").WAYS[name]
        return Target(cases(), *rest)

    return make


WAYS = {
    "audio": Way(audio_target, 250, "av"),
    "safetensors": Way(of("models", "safetensors"), 150),
    "torch": Way(of("models", "torch"), 100),
    "state-dict": Way(of("models", "state-dict"), 20, takes=False),
    "onnx": Way(of("models", "onnx"), 50, "onnxruntime"),
    "recipes": Way(of("models", "recipes"), 60),
    "datasets": Way(of("datasets", "datasets"), 150, "h5py"),
    "pickles": Way(of("datasets", "pickles"), 80),
    "tables": Way(of("datasets", "tables"), 40),
    "journal": Way(of("datasets", "journal"), 60),
    "http": Way(of("service", "http"), 60, "uvicorn"),
    "live": Way(of("service", "live"), 20, "websockets"),
    "openapi": Way(of("service", "openapi"), 30, "schemathesis"),
}
