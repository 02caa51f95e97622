"""Recordings as windows, and windows through a network in common batches: what tags and embeddings have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dymn import audio
from dymn.config import check
from dymn.errors import AudioError, ConfigError, DymnError
from dymn.windows import Samples, cut, fill

if TYPE_CHECKING:
    import torch

Source: TypeAlias = "str | Path | BinaryIO | npt.NDArray[Any] | torch.Tensor"
Rows: TypeAlias = npt.NDArray[np.float32]


@dataclass
class Opened:
    """A recording while its windows are on their way: its name as given, and how many samples have been read of it."""

    name: str
    n_samples: int = 0


class Piece(NamedTuple):
    """A window of a recording, filled, with its place in seconds; or the end of the recording (no samples), or its failure."""

    recording: Opened
    start: float = 0.0
    end: float = 0.0
    samples: Samples | None = None
    error: DymnError | None = None


def blocks(source: Source, rate: int, sample_rate: int | None = None) -> Iterable[Samples]:
    """Return a source as blocks [n] of mono samples at `rate` Hz.

    Args:
        source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
        rate: wanted, in Hz.
        sample_rate: of an array, in Hz; files bring their own.

    Raises:
        AudioError: if the source cannot be read; of a file, with the first block or where the damage is.
        ConfigError: if `sample_rate` is missing.
    """
    if audio.is_array(source):
        if sample_rate is None:
            raise ConfigError("An array has no sample rate of its own. Give sample_rate in Hz.")
        return [audio.from_array(source, sample_rate, rate)]
    return audio.stream(source, rate)


def pieces(sources: Iterable[Source], rate: int, sample_rate: int | None, window: float, hop: float | None, how: str) -> Iterator[Piece]:
    """Cut recordings into windows, one after the other, reading no more than is asked for; an error ends only its own recording.

    Args:
        sources: as in `blocks`.
        rate: of the windows, in Hz.
        sample_rate: of the arrays among the sources.
        window: seconds of a window.
        hop: seconds from the start of one window to the next; `window` if None.
        how: what a shorter recording or remainder is filled up with, a key of `dymn.windows.FILLS`.
    """
    length, step = round(window * rate), round((hop or window) * rate)
    for source in sources:
        recording = Opened(source_name(source))
        error: DymnError | None = None
        try:
            for start, samples in cut(_counted(blocks(source, rate, sample_rate), recording), length, step):
                yield Piece(recording, start / rate, (start + len(samples)) / rate, fill(samples, length, how))
            if recording.n_samples == 0:
                raise AudioError(f"{recording.name or 'The array'} has no samples. Give a recording that is not empty.")
        except DymnError as failure:
            error = failure
        except OSError as failure:
            error = AudioError(f"{recording.name}: {failure.strerror or failure}. Check that the file is there and readable.")
        yield Piece(recording, error=error)


def computed(found: Iterable[Piece], compute: Callable[[Rows], Rows], batch_size: int) -> Iterator[tuple[Piece, Rows | None]]:
    """Yield pieces in their order, windows with what `compute` makes of them [B, N] → [B, ...], in batches of one length."""
    check(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1.")
    return _computed(found, compute, batch_size)


def _computed(found: Iterable[Piece], compute: Callable[[Rows], Rows], batch_size: int) -> Iterator[tuple[Piece, Rows | None]]:
    batch: list[Piece] = []
    lengths: list[int] = []
    for piece in found:
        if piece.samples is not None:
            if len(lengths) == batch_size or (lengths and lengths[0] != len(piece.samples)):
                yield from _run(batch, compute)
                batch, lengths = [], []
            lengths.append(len(piece.samples))
        batch.append(piece)
    yield from _run(batch, compute)


def _run(batch: list[Piece], compute: Callable[[Rows], Rows]) -> Iterator[tuple[Piece, Rows | None]]:
    waveforms = [piece.samples for piece in batch if piece.samples is not None]
    rows = iter(compute(np.stack(waveforms)) if waveforms else ())
    for piece in batch:
        yield piece, (None if piece.samples is None else next(rows))


def _counted(found: Iterable[Samples], recording: Opened) -> Iterator[Samples]:
    for block in found:
        recording.n_samples += len(block)
        yield block


def source_name(source: Source) -> str:
    """Return a source's name as printable text, also where a file's name is no valid text."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsencode(source).decode("utf-8", "replace")
    return str(getattr(source, "name", ""))
