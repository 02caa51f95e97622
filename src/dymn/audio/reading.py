"""Reading recordings: any file, stream or array as mono float32 at 32 kHz (Sec. IV-A.1), whole or in blocks.

Channels are averaged first, then resampled by soxr at its HQ setting, like the training clips of the published weights.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dymn.audio.band import band_passed, centred
from dymn.audio.decoder import Block, MissingDecoderError, check_played_rate
from dymn.audio.gain import loudest, loudness
from dymn.audio.listing import SUFFIXES, expand, find
from dymn.audio.notes import Notes
from dymn.audio.recording import AudioInfo, chosen, recording, settled
from dymn.audio.resampling import Resampler, resampled, whole_rate
from dymn.audio.samples import Levels, check_finite, mean, to_float32
from dymn.audio.settings import PLAIN, ReadSettings
from dymn.audio.sources import FileLike, display, is_stdin, opened, reason
from dymn.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

__all__ = [
    "MAX_READ_HOURS",
    "SAMPLE_RATE",
    "SUFFIXES",
    "AudioInfo",
    "FileLike",
    "MissingDecoderError",
    "Notes",
    "Resampler",
    "expand",
    "find",
    "from_array",
    "is_array",
    "probe",
    "read",
    "stream",
]

SAMPLE_RATE = 32_000
"""The sample rate that the networks expect, in Hz."""
MAX_READ_HOURS = 12.0
"""The longest recording that `read` returns (about 5.5 GB of memory); `stream` has no limit."""

_ARRAY_CHANNELS = 32
_RESAMPLE_CHUNK = 2**18


def probe(source: FileLike) -> AudioInfo:
    """Return the header of a recording without decoding it. The position of a file object does not change.

    Raises:
        AudioError: as for `read`, as far as the header shows it; also for sources that can be read only once: standard
            input, a FIFO, a file object that is not seekable.
    """
    position = _position(source)
    try:
        with recording(source) as opened:
            return opened.info
    finally:
        if position is not None:
            source.seek(position)  # type: ignore[union-attr]


def _position(source: Any) -> int | None:
    """Return the position of a file object, None for a path."""
    is_path = isinstance(source, (str, os.PathLike))
    if is_stdin(source) or (is_path and _is_fifo(source)):
        raise AudioError(
            f"{display(source)} can be read only once, so it cannot be probed. Read it, or record it to a file."
        )
    if is_path or not hasattr(source, "read"):
        return None
    try:
        return int(source.tell())
    except (AttributeError, OSError, ValueError) as error:
        raise AudioError(
            f"{display(source)} is not seekable ({reason(error)}), so it cannot be probed. Read it."
        ) from error


def _is_fifo(path: str | os.PathLike[str]) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # opening it raises the error
        return False


def read(
    source: FileLike,
    sample_rate: int = SAMPLE_RATE,
    *,
    partial: bool = False,
    notes: Notes | None = None,
    settings: ReadSettings | None = None,
) -> np.ndarray:
    """Return a whole recording as mono float32 [N] at `sample_rate` Hz.

    Args:
        source: a path, "-" for standard input, or a binary file object, which is read from its current position.
        sample_rate: sample rate of the result in Hz, a whole number from 1000 to 768000.
        partial: whether to read the intact parts of a damaged recording; lost frames are replaced by silence.
        notes: a list to which notes about unusual properties of the recording are appended; by default, they are logged
            as warnings.
        settings: further settings, such as the channel or a gain; their `partial` replaces the argument.

    Raises:
        AudioError: if the recording is missing, empty, not audio, damaged, more than 0.25 s shorter than its header
            states, longer than `MAX_READ_HOURS`, or contains samples that are not finite. A WAV without a length in its
            header, as programs write it to pipes, is read to its end.
        MissingDecoderError: an AudioError, if the format needs PyAV, which is not installed.
        ConfigError: if `sample_rate` is not allowed.
    """
    rate = whole_rate(sample_rate, "sample_rate")
    blocks: list[np.ndarray] = []
    length = 0
    for block in _resampled(source, rate, settings or ReadSettings(partial=partial), notes):
        blocks.append(block)
        length += len(block)
        if length > MAX_READ_HOURS * 3600 * rate:
            raise AudioError(
                f"{display(source)} is longer than {MAX_READ_HOURS:g} h. Read it in blocks with "
                "dymn.audio.reading.stream."
            )
    if len(blocks) == 1:
        return blocks[0]
    whole = np.empty(length, np.float32)
    end = length
    while blocks:  # from the end, so that each block is freed as soon as it is copied
        block = blocks.pop()
        whole[end - len(block) : end] = block
        end -= len(block)
    return whole


def stream(
    source: FileLike,
    sample_rate: int = SAMPLE_RATE,
    block_seconds: float = 30.0,
    *,
    partial: bool = False,
    notes: Notes | None = None,
    settings: ReadSettings | None = None,
) -> Iterator[np.ndarray]:
    """Yield a recording as mono float32 blocks [n] at `sample_rate` Hz, in memory that does not grow with its length.

    Every block but the last has round(block_seconds * sample_rate) samples, at least one; the last may be shorter.
    Concatenated, the blocks equal the result of `read`. The recording is opened with the first block and closed after
    the last, when the notes are complete; `partial`, `notes` and `settings` are those of `read`.

    Raises:
        AudioError: as for `read`, with the first block or where the recording is damaged.
        ConfigError: at once, if `sample_rate` or `block_seconds` is not allowed.
    """
    rate = whole_rate(sample_rate, "sample_rate")
    if not (isinstance(block_seconds, (int, float)) and 0 < block_seconds < math.inf):
        raise ConfigError(f"block_seconds is {block_seconds!r}; it must be a finite number above 0.")
    found = _resampled(source, rate, settings or ReadSettings(partial=partial), notes)
    return _blocks(found, max(1, round(block_seconds * rate)))


def from_array(
    array: np.ndarray | Tensor,
    sample_rate: int,
    target_rate: int = SAMPLE_RATE,
    *,
    notes: Notes | None = None,
    settings: ReadSettings = PLAIN,
) -> np.ndarray:
    """Return samples in memory as mono float32 [N] at `target_rate` Hz.

    Args:
        array: a numpy array or torch tensor [N], [channels, N] or [N, channels]: float with full scale 1, int8, int16,
            int32 or uint8. In two dimensions, the channels are the axis of length 1, otherwise the only axis of at most
            32; it is an error if both axes could be.
        sample_rate: sample rate of `array`, in Hz.
        target_rate: sample rate of the result, in Hz.
        notes: a list to which notes about unusual samples are appended; by default, they are logged as warnings.
        settings: further settings, such as the channel or a gain.

    Raises:
        AudioError: if the array is empty, has another shape or type, or contains values that are not finite.
        ConfigError: if a rate is not allowed.
    """
    source_rate = whole_rate(sample_rate, "sample_rate")
    rate = whole_rate(target_rate, "target_rate")
    samples = channels_last(array)
    channel = loudest([Block(samples, source_rate)]) if settings.channel == "loudest" else settings.channel
    samples = chosen(samples, channel, "The array")
    mono = mean(samples)
    levels = Levels()
    levels.add(samples, mono, check_finite("The array", mono, rate=source_rate))
    kept = Notes() if notes is None else notes
    levels.add_notes(kept, settings)
    parts = [mono[start : start + _RESAMPLE_CHUNK] for start in range(0, len(mono), _RESAMPLE_CHUNK)]

    def blocks_of(notes: Notes, free: bool) -> Iterator[np.ndarray]:
        return _played(parts, source_rate, rate, settings, free, "The array")

    blocks = list(_amplified(blocks_of, rate, settings, kept))
    if notes is None:
        kept.log("The array")
    if not blocks:
        raise AudioError(
            f"The array contains {len(mono)} samples at {source_rate} Hz, which is less than one sample at {rate} "
            "Hz. Give a longer array."
        )
    return np.concatenate(blocks)


def _resampled(source: FileLike, rate: int, settings: ReadSettings, notes: Notes | None) -> Iterator[np.ndarray]:
    kept = Notes() if notes is None else notes
    with opened(source) as content:
        settings = settled(settings, source, content, kept)

        def blocks_of(notes: Notes, free: bool) -> Iterator[np.ndarray]:
            with recording(source, settings, notes=notes, content=content) as found:
                yield from _played(found.chunks, found.info.sample_rate, rate, settings, free, found.name)

        empty = True
        for block in _amplified(blocks_of, rate, settings, kept):
            empty = False
            yield block
        if empty:
            raise AudioError(f"{display(source)} contains less than one sample at {rate} Hz. Record or copy it again.")
        if notes is None:
            kept.log(display(source))


def _played(
    chunks: Iterable[np.ndarray], source_rate: int, rate: int, settings: ReadSettings, free: bool, name: str
) -> Iterator[np.ndarray]:
    """Yield mono samples for the network, before the gain: at its rate, faster or slower, in a band.

    They are free of an offset if `free`, or if the band has a lower limit.
    """
    speed, band = settings.speed, settings.band
    check_played_rate(name, source_rate, speed)
    if free or settings.is_high_pass:
        chunks = centred(chunks, source_rate, offsets_only=not settings.is_high_pass)
    blocks = resampled(chunks, source_rate * speed if speed != 1 else source_rate, rate)
    if band is None:
        return blocks
    low, high = (None if edge is None else edge * speed for edge in band)
    if low is not None and low >= source_rate * speed / 2:
        raise AudioError(
            f"{name}: the band starts at {low / speed:g} Hz, but the highest frequency of the recording is "
            f"{source_rate / 2:g} Hz, half its sample rate. Give another --band."
        )
    if low is not None and low >= rate / 2:
        raise AudioError(
            f"{name}: the band starts at {low / speed:g} Hz, but at --speed {speed:g} the highest frequency is "
            f"{rate / 2 / speed:g} Hz. Give a lower --speed, which lowers frequencies, or another --band."
        )
    return band_passed(blocks, rate, low, high)


def _amplified(
    blocks_of: Callable[[Notes, bool], Iterator[np.ndarray]], rate: int, settings: ReadSettings, notes: Notes
) -> Iterator[np.ndarray]:
    """Yield blocks with their gain; with "auto" their level is measured first, so they are computed twice.

    An offset would limit that gain and be amplified; it is removed from what is amplified.
    """
    gain, free = settings.gain, False
    if isinstance(gain, str):
        level = loudness(blocks_of(Notes(), True), rate)
        gain, free = level.gain, level.gain > 0
        if gain:
            notes.add(
                f"it is quiet: its loudest second is at {level.second:.1f} dBFS, its largest sample at "
                f"{level.peak:.1f} dBFS; it was read twice and amplified by {gain:.1f} dB."
            )
    factor = np.float32(10 ** (gain / 20))
    for block in blocks_of(notes, free):
        yield block if gain == 0 else block * factor


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
            f"Samples are {type(array).__name__}; a numpy array or torch tensor is needed. For a file use "
            "dymn.audio.reading.read."
        )
    return array


def channels_last(array: np.ndarray | Tensor) -> np.ndarray:
    """Return samples in memory, [N] or [channels, N] or [N, channels], as float32 [N, channels]; see `from_array`."""
    samples = to_float32(_as_numpy(array))
    shape = list(samples.shape)
    if samples.size == 0:
        raise AudioError(f"The array has shape {shape}: it contains no samples. Give at least one.")
    if samples.ndim == 1:
        return samples[:, np.newaxis]
    if samples.ndim != 2:
        raise AudioError(
            f"The array has shape {shape}; [N], [channels, N] or [N, channels] is allowed. Pass one recording at a "
            "time."
        )
    small = [axis for axis in (0, 1) if shape[axis] == 1] or [axis for axis in (0, 1) if shape[axis] <= _ARRAY_CHANNELS]
    if len(small) != 1 and shape != [1, 1]:
        raise AudioError(
            f"The array has shape {shape}: it is ambiguous which axis holds the channels (at most "
            f"{_ARRAY_CHANNELS}). Average the channels and pass a one-dimensional array."
        )
    return samples.T if small[0] == 0 else samples
