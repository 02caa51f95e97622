"""Recordings in: any file, stream or array to mono float32 at 32 kHz (Sec. IV-A.1), whole or in blocks.

Channels are averaged first, then resampled by soxr at its HQ setting, which is how the teachers of the published weights heard
their clips.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.audio.decoding import MAX_RATE, MIN_RATE, SUFFIXES, AudioInfo, MissingDecoderError, recording, to_float32, to_mono
from dymn.audio.sources import Source, display, is_stdin, reason
from dymn.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

__all__ = [
    "MAX_READ_HOURS",
    "SAMPLE_RATE",
    "SUFFIXES",
    "AudioInfo",
    "MissingDecoderError",
    "Resampler",
    "Source",
    "expand",
    "find",
    "from_array",
    "is_array",
    "probe",
    "read",
    "stream",
]

logger = logging.getLogger(__name__)

SAMPLE_RATE = 32_000
"""The rate that the networks expect, in Hz."""
MAX_READ_HOURS = 12.0
"""The longest recording that `read` holds in memory (about 5.5 GB); `stream` has no limit."""

_ARRAY_CHANNELS = 32
_RESAMPLE_CHUNK = 2**18


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the recordings that paths name: sorted, each once.

    A path that exists as a file is taken as it is, whatever its name and ending. A directory gives the files below it whose ending
    is in `SUFFIXES` (hidden ones are left out, links are followed); a pattern (`*`, `?`, `[...]`, `**`) those that match, and those
    below directories that match. "-", standard input, is kept as Path("-"); a file of that name is "./-". A plain path that does
    not exist is kept too: reading it tells what is wrong, and the other recordings are not lost.

    Raises:
        AudioError: if a directory or a pattern gives no recording.
    """
    found: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        for item in expand(path):
            found.setdefault("-" if is_stdin(item) else os.path.abspath(item), item)
    return sorted(found.values())


def expand(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the recordings that one path names, as `find` does, but as they are met, so that none need be kept.

    What a path names that is a directory or a pattern comes in the order of the file system.

    Raises:
        AudioError: at the end, if a directory or a pattern gives no recording.
    """
    path = os.fsdecode(path)
    if is_stdin(path) or os.path.isfile(path):
        yield Path(path) if is_stdin(path) or Path(path) != Path("-") else Path.cwd() / "-"
        return
    if os.path.isdir(path):
        if not (yield from _counted(_walk(path))):
            raise AudioError(
                f"The directory {display(path)} holds no recording. Looked for files ending in {', '.join(sorted(SUFFIXES))}; "
                "give a file with another ending by its own path."
            )
        return
    if os.path.lexists(path) or not glob.has_magic(path):
        yield Path(path)
        return
    matches = found = 0
    for match in glob.iglob(path, recursive=True):
        matches += 1
        if os.path.isdir(match):
            found += yield from _counted(_walk(match))
        elif os.path.isfile(match) and _is_recording(match):
            found += 1
            yield Path(match)
    if not found:
        seen = f"matches {matches} paths, none of them a recording" if matches else "matches nothing"
        raise AudioError(f"The pattern {display(path)} {seen}. Check it; endings looked for: {', '.join(sorted(SUFFIXES))}.")


def _counted(paths: Iterable[Path]) -> Generator[Path, None, int]:
    count = 0
    for path in paths:
        count += 1
        yield path
    return count


def _walk(directory: str) -> Iterator[Path]:
    """Yield the recordings below a directory as they are met; a directory that is linked into itself is entered once.

    The names of a directory's files are not kept, and of those still to be entered only the paths; they are entered in their order,
    so that of two links to one directory it is always the same that counts.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        if not _enter(folder, entered):
            continue
        below = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_directory(entry):
                        below.append(entry.path)
                    elif _is_recording(entry.name):
                        yield Path(entry.path)
        except OSError as error:
            _warn(error)
        waiting += sorted(below, reverse=True)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one that may not be followed
        return False


def _warn(error: OSError) -> None:
    logger.warning("The directory %s is left out: %s.", display(error.filename), reason(error))


def _enter(folder: str, entered: set[tuple[int, int]]) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    new = key not in entered
    entered.add(key)
    return new


def _is_recording(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def probe(source: Source) -> AudioInfo:
    """Return what the header of a recording says, without decoding it. A file object stands afterwards where it stood.

    Raises:
        AudioError: as `read`, as far as the header tells; and for what can be read only once: standard input, a FIFO, a file object
            that cannot be sought in.
    """
    position = _position(source)
    try:
        with recording(source) as opened:
            return opened.info
    finally:
        if position is not None:
            source.seek(position)  # type: ignore[union-attr]


def _position(source: Any) -> int | None:
    """Return where a file object stands, None for a path."""
    is_path = isinstance(source, (str, os.PathLike))
    if is_stdin(source) or (is_path and _is_fifo(source)):
        raise AudioError(f"{display(source)} can be read only once, so there is no looking ahead. Read it, or record it to a file.")
    if is_path or not hasattr(source, "read"):
        return None
    try:
        return int(source.tell())
    except (AttributeError, OSError, ValueError) as error:
        raise AudioError(f"{display(source)} cannot be sought in ({reason(error)}), so there is no looking ahead. Read it.") from error


def _is_fifo(path: str | os.PathLike[str]) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # opening it tells what is wrong
        return False


def read(source: Source, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Return a whole recording as mono float32 [N] at `sample_rate` Hz.

    Args:
        source: a path, "-" for standard input, or a binary file object, which is read from where it stands.
        sample_rate: the wanted rate in Hz, a whole number from 1000 to 768000.

    Raises:
        AudioError: if the recording is missing, empty, not audio, damaged, shorter than its header says by more than 0.25 s, longer
            than `MAX_READ_HOURS`, or holds samples that are not finite. A WAV whose header leaves the length open, as programs
            write it to pipes, is read to its end.
        MissingDecoderError: an AudioError, if its format needs the extra `av`.
        ConfigError: if `sample_rate` is not allowed.
    """
    rate = _whole_rate(sample_rate, "sample_rate")
    blocks: list[np.ndarray] = []
    length = 0
    for block in _resampled(source, rate):
        blocks.append(block)
        length += len(block)
        if length > MAX_READ_HOURS * 3600 * rate:
            raise AudioError(f"{display(source)} is longer than {MAX_READ_HOURS:g} h. Read it in blocks with dymn.audio.reading.stream.")
    if len(blocks) == 1:
        return blocks[0]
    whole = np.empty(length, np.float32)
    end = length
    while blocks:  # from the end, so that each block is freed as soon as it is copied
        block = blocks.pop()
        whole[end - len(block) : end] = block
        end -= len(block)
    return whole


def stream(source: Source, sample_rate: int = SAMPLE_RATE, block_seconds: float = 30.0) -> Iterator[np.ndarray]:
    """Yield a recording as mono float32 blocks [n] at `sample_rate` Hz, in memory that does not grow with its length.

    Every block but the last has round(block_seconds * sample_rate) samples, at least one; the last may be shorter. Joined, the
    blocks are exactly what `read` returns. The recording is opened with the first block and closed after the last.

    Raises:
        AudioError: as `read`, with the first block or where the damage is.
        ConfigError: at once, if `sample_rate` or `block_seconds` is not allowed.
    """
    rate = _whole_rate(sample_rate, "sample_rate")
    if not (isinstance(block_seconds, (int, float)) and 0 < block_seconds < math.inf):
        raise ConfigError(f"block_seconds is {block_seconds!r}; it must be a finite number above 0.")
    return _blocks(_resampled(source, rate), max(1, round(block_seconds * rate)))


def from_array(array: np.ndarray | Tensor, sample_rate: int, target_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Return samples in memory as mono float32 [N] at `target_rate` Hz.

    Args:
        array: a numpy array or torch tensor [N], [channels, N] or [N, channels]: float with full scale 1, int8, int16, int32 or
            uint8. In two dimensions the channels are the axis of length 1, else the only one of at most 32; it is an error if
            both could be.
        sample_rate: the rate of `array`, in Hz.
        target_rate: the wanted rate, in Hz.

    Raises:
        AudioError: if the array is empty, has another shape or type, or holds values that are not finite.
        ConfigError: if a rate is not allowed.
    """
    source_rate = _whole_rate(sample_rate, "sample_rate")
    rate = _whole_rate(target_rate, "target_rate")
    samples = _channels_last(to_float32(_as_numpy(array)))
    mono = to_mono("The array", samples, rate=source_rate)
    parts = [mono[start : start + _RESAMPLE_CHUNK] for start in range(0, len(mono), _RESAMPLE_CHUNK)]
    resampled = list(_resample(parts, source_rate, rate))
    if not resampled:
        raise AudioError(f"The array holds {len(mono)} samples at {source_rate} Hz: less than one sample at {rate} Hz. Give more.")
    return np.concatenate(resampled) if source_rate != rate else np.array(mono)


def _resampled(source: Source, rate: int) -> Iterator[np.ndarray]:
    with recording(source) as opened:
        empty = True
        for block in _resample(opened.chunks, opened.info.sample_rate, rate):
            empty = False
            yield block
        if empty:
            raise AudioError(f"{opened.name} holds less than one sample at {rate} Hz. Record or copy it again.")


def _resample(chunks: Iterable[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Yield chunks at another rate; nothing is left over and no empty chunk comes out."""
    if source_rate == rate:
        yield from chunks
        return
    resampler = Resampler(source_rate, rate)
    for chunk in chunks:
        block = resampler.feed(chunk)
        if len(block):
            yield block
    block = resampler.finish()
    if len(block):
        yield block


class Resampler:
    """Another sample rate for mono samples that come bit by bit; into what chunks they are cut changes no bit of what comes out."""

    def __init__(self, source_rate: int, rate: int) -> None:
        """Prepare to resample from `source_rate` to `rate`, in Hz.

        Raises:
            ConfigError: if a rate is not allowed.
        """
        rates = _whole_rate(source_rate, "sample_rate"), _whole_rate(rate, "rate")
        self._stream: Any = None
        if rates[0] != rates[1]:
            import soxr

            self._stream = soxr.ResampleStream(*rates, 1, dtype="float32", quality="HQ")

    def feed(self, chunk: np.ndarray) -> np.ndarray:
        """Take float32 samples [n] and return those [m] at the new rate that are ready; the filter holds back a few milliseconds."""
        if self._stream is None or len(chunk) == 0:
            return chunk
        block: np.ndarray = self._stream.resample_chunk(np.ascontiguousarray(chunk))
        return block

    def finish(self) -> np.ndarray:
        """Return the rest [m], once nothing more will come."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)


def _blocks(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield chunks of any length as blocks of `size` samples; the last may be shorter."""
    pending: list[np.ndarray] = []
    length = 0
    for chunk in chunks:
        pending.append(chunk)
        length += len(chunk)
        if length >= size:
            joined = _joined(pending)
            whole = length // size * size
            yield from (joined[start : start + size] for start in range(0, whole, size))
            pending, length = [joined[whole:]], length - whole
    if length:
        yield _joined(pending)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _whole_rate(rate: Any, name: str) -> int:
    whole = int(rate) if isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool) and rate == rate // 1 else 0
    if not MIN_RATE <= whole <= MAX_RATE:
        raise ConfigError(f"{name} is {rate!r}; it must be a whole number of Hz from {MIN_RATE} to {MAX_RATE}.")
    return whole


def is_array(source: object) -> TypeIs[np.ndarray | Tensor]:
    """Whether `source` is samples in memory: a numpy array or a torch tensor."""
    return isinstance(source, np.ndarray) or _is_tensor(source)


def _is_tensor(value: object) -> TypeIs[Tensor]:
    torch = sys.modules.get("torch")  # a tensor exists only where torch is imported
    return torch is not None and isinstance(value, torch.Tensor)


def _as_numpy(array: Any) -> np.ndarray:
    if _is_tensor(array):
        import torch

        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if not isinstance(array, np.ndarray):
        raise AudioError(
            f"Samples are {type(array).__name__}; a numpy array or torch tensor is needed. For a file use dymn.audio.reading.read."
        )
    return array


def _channels_last(samples: np.ndarray) -> np.ndarray:
    """Return [N] or [channels, N] or [N, channels] as [N, channels]."""
    shape = list(samples.shape)
    if samples.size == 0:
        raise AudioError(f"The array has shape {shape}: it holds no samples. Give at least one.")
    if samples.ndim == 1:
        return samples[:, np.newaxis]
    if samples.ndim != 2:
        raise AudioError(f"The array has shape {shape}; [N], [channels, N] or [N, channels] is allowed. Pass one recording at a time.")
    small = [axis for axis in (0, 1) if shape[axis] == 1] or [axis for axis in (0, 1) if shape[axis] <= _ARRAY_CHANNELS]
    if len(small) != 1 and shape != [1, 1]:
        raise AudioError(
            f"The array has shape {shape}: it is not clear which axis holds the channels (at most {_ARRAY_CHANNELS}). "
            "Average them yourself and pass one dimension."
        )
    return samples.T if small[0] == 0 else samples
