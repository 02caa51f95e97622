"""The base class of all decoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dymn.audio.pcm_files import PcmLayout
from dymn.errors import AudioError
from dymn.system.arrays import Floats

MIN_RATE, MAX_RATE = 1_000, 768_000
MIN_PLAYED_RATE = 100
"""The lowest sample rate of a recording as played; below, a block would become too many samples when resampled."""
MAX_CHANNELS = 256
CHUNK_SAMPLES = 2**19
"""The most samples, of all channels, in a block: 10 s at 48 kHz come in one piece."""


class UnknownFormatError(Exception):
    """A decoder does not support the format of a recording."""


class MissingDecoderError(AudioError, ImportError):
    """A recording needs FFmpeg, and PyAV, which brings it, cannot be imported."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name} needs PyAV, which brings FFmpeg, and it cannot be imported ({reason}). Install it with: pip "
            "install av"
        )


class Block(NamedTuple):
    """Decoded samples [n, channels], and their rate in Hz."""

    samples: Floats
    rate: int


@dataclass
class Decoder:
    """An open decoder.

    Attributes:
        rate: in Hz, of the first samples.
        channels: how many.
        frames: number of samples per channel; None if the format does not state it.
        format: the names of container and codec.
        blocks: the samples.
        seconds: how long it is by its header, where that is known without `frames`.
        omni: whether the first channel is to be read instead of the mix of all, as in ambisonics.
        plain: the layout of its samples, if they are uncompressed.
    """

    rate: int
    channels: int
    frames: int | None
    format: str
    blocks: Iterator[Block]
    seconds: float | None = None
    omni: bool = False
    plain: PcmLayout | None = None

    @property
    def mix(self) -> str:
        """The channel that is read as the mix of all: "1" if that is the first alone, otherwise "mix"."""
        return "1" if self.omni else "mix"


def check_format(name: str, rate: int, channels: int) -> None:
    """Raise an AudioError if the sample rate or the number of channels is none that a recording has."""
    remedy = (
        "Its header is damaged, or it is not audio; if it is, convert it with: ffmpeg -i IN -ar 32000 -ac 1 OUT.wav"
    )
    if not 1 <= rate <= MAX_RATE:
        raise AudioError(f"{name} has a sample rate of {rate} Hz; it must be from 1 to {MAX_RATE} Hz. {remedy}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{name} has {channels} channels; allowed: 1 to {MAX_CHANNELS}. {remedy}")


def check_played_rate(name: str, rate: int, speed: float = 1.0) -> None:
    """Raise an AudioError if the sample rate of a recording, at this speed, is too low or too high."""
    if not MIN_PLAYED_RATE <= rate * speed <= MAX_RATE:
        raise AudioError(
            f"{name} has a sample rate of {rate} Hz, which --speed {speed:g} turns into {rate * speed:g} Hz; "
            f"it must be from {MIN_PLAYED_RATE} to {MAX_RATE} Hz. Check the rate in its header, or give another speed."
        )
