"""The stored samples of a recording: all channels, at their own rate, in a type that represents them exactly."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from dymn.audio import pcm_files
from dymn.audio.content import Content
from dymn.audio.decoder import CHUNK_SAMPLES, Decoder, check_played_rate
from dymn.audio.decoding import open_decoder
from dymn.audio.notes import Report
from dymn.audio.recording import chosen
from dymn.audio.resampling import resampled
from dymn.audio.samples import mean, to_float32
from dymn.audio.sources import FileLike, display, opened
from dymn.errors import AudioError
from dymn.system.arrays import Array, Floats

SampleRange = tuple[int, int]

SUBTYPES = {"i3": "PCM_24", "i4": "PCM_32", "i8": "DOUBLE", "f8": "DOUBLE"} | {
    **dict.fromkeys(("u8", "s8"), "PCM_U8"),
    **dict.fromkeys(("i2", "alaw", "ulaw"), "PCM_16"),
}
"""The subtype of libsndfile in which a WAV contains samples, by how they are stored; all others are FLOAT."""
FLAC_CHANNELS, FLAC_RATE = 8, 655_350
"""The maximum of both in a FLAC file."""

SILENT_PEAK = 1e-4
"""A passage whose samples are at most this far from 0, -80 dBFS, is silent; lossy formats leave less than that."""


class StoredBlock(NamedTuple):
    """Consecutive samples of a recording.

    Attributes:
        samples: [n, channels], int32 for whole numbers, which are in its upper bits, or float32 or float64 with full
            scale 1.
        place: the index of the first one, counted from `begin`.
        rate: in Hz.
        begin: when the recording has this rate and these channels from, in seconds: 0 unless they change in it.
    """

    samples: Array
    place: int
    rate: int
    begin: float = 0.0

    @property
    def end(self) -> int:
        """The index after the last sample."""
        return self.place + len(self.samples)

    def range(self, start: float, end: float) -> SampleRange:
        """Return the first and the last sample (exclusive) from start to end in seconds of the recording."""
        return _sample_range(start - self.begin, end - self.begin, self.rate)

    def part(self, first: int, last: int) -> Array:
        """Return those of its samples that are from first to last (exclusive)."""
        return self.samples[max(0, first - self.place) : max(0, last - self.place)]


@dataclass(frozen=True)
class StoredAudio:
    """An open recording.

    Attributes:
        name: for messages.
        rate: in Hz, at its start.
        channels: how many, at its start.
        container: the format of a file for its samples, "WAV" or "FLAC".
        subtype: libsndfile's name of their encoding in it.
        mix: the channel that is read as the mix of all, as in `dymn.audio.recording`.
    """

    name: str
    rate: int
    channels: int
    container: str
    subtype: str
    mix: str
    _content: Content
    _decoder: Decoder

    def blocks(self, spans: Sequence[tuple[float, float]]) -> Iterator[StoredBlock]:
        """Yield blocks that cover spans from start to end (or `math.inf`) in seconds.

        Samples between spans are not read if the format allows it.

        Raises:
            AudioError: if the recording is damaged.
        """
        plain = self._decoder.plain
        if plain is not None:
            for first, last in _united([_sample_range(start, end, self.rate) for start, end in spans]):
                last = min(last, plain.length // plain.frame)
                for place, data in pcm_files.chunks(self._content, plain, first, last, CHUNK_SAMPLES):
                    yield StoredBlock(exact(data, plain.coding or "", plain.channels), place, self.rate)
            return
        whole = self.subtype != "FLOAT"
        place, begin, before, latest = 0, 0.0, (self.rate, self.channels), max((end for _, end in spans), default=0.0)
        for samples, rate in self._decoder.blocks:
            if (now := (rate, samples.shape[1])) != before:
                place, begin, before = 0, begin + place / before[0], now
            block = StoredBlock(np.rint(samples * 2.0**31).astype(np.int32) if whole else samples, place, rate, begin)
            yield block
            place = block.end
            if place >= block.range(0, latest)[1]:
                return


@contextlib.contextmanager
def stored(source: FileLike, *, partial: bool = False) -> Iterator[StoredAudio]:
    """Open a recording to read its samples as they are stored.

    Uncompressed and FLAC files keep their sample format; others, such as MP3, give what the decoder does, in float32.

    Raises:
        AudioError: if it cannot be opened or is not audio.
    """
    report = Report(display(source), partial=partial)
    with ExitStack() as stack:
        content = stack.enter_context(opened(source))
        decoder = open_decoder(content, report, stack)
        rate, plain = decoder.rate, decoder.plain
        container, subtype, channels = "WAV", "FLOAT", decoder.channels
        if plain is not None and plain.coding is not None:
            subtype = SUBTYPES.get(plain.coding.lstrip("<>"), "FLOAT")
        elif decoder.format.startswith("FLAC PCM_"):
            subtype = decoder.format.partition(" ")[2]
            fits = channels <= FLAC_CHANNELS and rate <= FLAC_RATE
            container, subtype = ("FLAC", subtype) if fits else ("WAV", subtype.replace("S8", "U8"))
        yield StoredAudio(report.name, rate, channels, container, subtype, decoder.mix, content, decoder)


def passage(source: FileLike, start: float, end: float, rate: int) -> Floats:
    """Return a passage of a recording, from start to end (or `math.inf`) in seconds, as mono float32 [N] at `rate` Hz.

    Raises:
        AudioError: if it cannot be read, or the recording ends before the start of the passage.
    """
    with stored(source) as sound:
        blocks: list[Floats] = []
        for own_rate, parts in groupby(_mono(sound, start, end), key=lambda part: part[0]):
            check_played_rate(sound.name, own_rate)
            blocks += resampled((samples for _, samples in parts), own_rate, rate)
        if not blocks:
            raise AudioError(f"{sound.name} ends before {start:g} s. Give an earlier time.")
        return np.concatenate(blocks)


def is_silent(path: str, start: float, end: float) -> bool:
    """Return whether no sample from start to end (or `math.inf`) in seconds is above `SILENT_PEAK`; false for a pipe.

    Raises:
        AudioError: if it cannot be read.
    """
    if not os.path.isfile(path):
        return False
    with stored(path) as sound:
        return all(np.abs(samples).max() <= SILENT_PEAK for _, samples in _mono(sound, start, end))


def _mono(sound: StoredAudio, start: float, end: float) -> Iterator[tuple[int, Floats]]:
    """Yield what is read as the mix of all channels from start to end in seconds: rates, and blocks [n], none empty."""
    for block in sound.blocks([(start, end)]):
        if len(part := block.part(*block.range(start, end))):
            yield block.rate, mean(chosen(to_float32(part), sound.mix, sound.name))


def exact(data: bytes, coding: str, channels: int) -> Array:
    """Return stored samples, whose `coding` is that of a `PcmLayout`, as [n, channels] of int32, float32 or float64."""
    kind = coding.lstrip("<>")
    if kind == "i4":
        return np.frombuffer(data, coding).reshape(-1, channels).astype(np.int32)
    if kind == "i8":
        return np.frombuffer(data, coding).reshape(-1, channels) * 2.0**-63
    if kind == "f8":
        return np.frombuffer(data, coding).reshape(-1, channels).astype(np.float64)
    samples = pcm_files.decoded(data, coding, channels)  # float32 holds 24 bits
    return samples if kind in ("f2", "f4") else np.rint(samples * 2.0**31).astype(np.int32)


def _sample_range(start: float, end: float, rate: int) -> SampleRange:
    return round(start * rate), 2**62 if end == math.inf else round(end * rate)


def _united(spans: Sequence[SampleRange]) -> list[SampleRange]:
    """Return spans with those joined that overlap or touch, in order."""
    united: list[SampleRange] = []
    for first, last in sorted(spans):
        if united and first <= united[-1][1]:
            united[-1] = united[-1][0], max(last, united[-1][1])
        else:
            united.append((first, last))
    return united
