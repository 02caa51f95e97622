"""The state from which a run resumes, in one file that is replaced atomically."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dymn.errors import DataError
from dymn.system.files import atomic_write

FORMAT = "dymn-run/2"
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error)


@dataclass
class PartialEpoch:
    """Progress within an epoch; `loss` and `terms` (of eq. 8) are sums over its clips, `loader` is its position."""

    steps: int = 0
    batches: int = 0
    loss: float = 0.0
    clips: int = 0
    seconds: float = 0.0
    loader: dict[str, int] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)

    def add(self, clips: int, loss: float, terms: Mapping[str, float]) -> None:
        """Count a batch. Terms that were not counted from the beginning of the epoch stay out."""
        known = self.terms if self.clips else dict.fromkeys(terms, 0.0)
        self.terms = {name: total + clips * terms[name] for name, total in known.items()}
        self.loss, self.clips = self.loss + clips * loss, self.clips + clips


@dataclass
class RunState:
    """The state of a run. Chance needs no state: it is drawn again from (seed, epoch, step)."""

    epoch: int = 0  # epochs that are done
    part: dict[str, Any] = field(default_factory=dict)  # the `PartialEpoch` of the next one that is done
    model: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int = 0  # counted from 1, as in the history; 0 for none yet
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    # of the clips that were used, by part of the data
    fingerprints: dict[str, Tensor] = field(default_factory=dict)
    clock: float = 0.0  # seconds since the run began, its measuring and writing included, its pauses not
    digest: str = ""  # of config and data: a run continues only what it began


def save_state(state: RunState, path: Path) -> None:
    """Write a run's state, or raise a `DataError` and keep the previous file, such as if the disk is full."""
    try:
        with atomic_write(path) as file:
            # In memory first: a signal in the middle of writing closes the file, and PyTorch's writer would abort the
            # process.
            content = io.BytesIO()
            torch.save({"format": FORMAT, **vars(state)}, content)
            file.write(content.getbuffer())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise DataError(
            f"{path} cannot be written: {error}. The previous state is intact: free some space and run the command "
            "again to resume."
        ) from error


def load_state(path: Path) -> RunState:
    """Read a run's state without executing code; a `DataError` if it is none, or differs from its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # PyTorch itself compares none of them
                raise ValueError("checksum")
        values = torch.load(path, map_location="cpu", weights_only=True)
        if values.pop("format") != FORMAT:
            raise KeyError("format")
        return RunState(**values)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except (*UNREADABLE, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} is not the state of a run, or is damaged ({type(error).__name__}). Remove it to start over."
        ) from error
