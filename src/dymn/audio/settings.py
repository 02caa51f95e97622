"""Settings for reading recordings: channel, track, gain, speed, frequency band and clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dymn.config import check, check_number
from dymn.errors import AudioError

CHANNELS = ("mix", "left", "right", "loudest", "each")
CLOCKS = ("none", "auto")
_SIDES = {"left": 1, "right": 2}


class Channel(NamedTuple):
    """One of the channels of a recording, counted from 1, and how many there are."""

    number: int
    of: int


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """Settings for reading recordings; the settings of tags, events and embeddings include them.

    Attributes:
        channel: "mix" (the mean of all channels), "left", "right", a number from 1, "loudest" (the one with the most
            power), or "each" (a result for each channel). "loudest" needs an additional pass over a recording.
        track: number of the audio track of files with several tracks, from 1; by default, the file's default track.
        gain: amplification in dB, or "auto": quiet recordings are amplified until their loudest second reaches -20 dBFS
            or their largest sample reaches -1 dBFS, whichever comes first. "auto" needs an additional pass over a
            recording, and a note states the gain.
        speed: playback speed of the signal that the network receives: at 0.1, 40 kHz become 4 kHz. Lengths of windows
            refer to the signal as played; times in results refer to the recording.
        band: lowest and highest frequency of the recording to keep, in Hz, as a pair (None is no limit) or as text:
            "2000-8000", "20-", "-500".
        clock: "auto" looks up the absolute time at which a recording starts, see `dymn.audio.clocks`; "none" does not.
        partial: whether to read the intact parts of damaged recordings instead of rejecting them.

    Example:
        >>> ReadSettings(channel="left", band="20-").band
        (20.0, None)
    """

    channel: str = "mix"
    track: int | None = None
    gain: float | str = 0.0
    speed: float = 1.0
    band: tuple[float | None, float | None] | None = None
    clock: str = "none"
    partial: bool = False

    def __post_init__(self) -> None:
        channel = str(self.channel).strip().lower()
        number = len(channel) <= 3 and channel.isascii() and channel.isdigit() and 1 <= int(channel) <= 256
        check(
            channel in CHANNELS or number,
            f"channel is {self.channel!r}; allowed: {', '.join(CHANNELS)}, or a number from 1 to 256.",
        )
        object.__setattr__(self, "channel", str(int(channel)) if number else channel)
        if self.track is not None:
            check_number("track", self.track, 1, 1000, whole=True)
        if self.gain != "auto":
            object.__setattr__(self, "gain", _gain(self.gain))
        check_number("speed", self.speed, 0.001, 1000)
        object.__setattr__(self, "band", _band(self.band))
        check(self.clock in CLOCKS, f"clock is {self.clock!r}; allowed: {', '.join(CLOCKS)}.")

    @property
    def read(self) -> ReadSettings:
        """The settings for reading, which are these settings themselves."""
        return self

    @property
    def is_high_pass(self) -> bool:
        """Whether the band has a lower limit, so that nothing is left of an offset."""
        return self.band is not None and self.band[0] is not None


def channel_index(channel: str, count: int, name: str) -> int:
    """Return the index of "left", "right" or a number; an AudioError if the recording `name` has fewer channels."""
    number = _SIDES.get(channel) or int(channel)
    if number > count:
        has = "one channel" if count == 1 else f"{count} channels"
        raise AudioError(f"{name} has {has}; there is no channel {channel}. Select another one with --channel.")
    return number - 1


def _gain(value: Any) -> float:
    try:
        decibels = float(value)
    except (TypeError, ValueError):
        decibels = float("nan")
    check(-120 <= decibels <= 120, f"gain is {value!r}; it must be auto, or a number of dB from -120 to 120.")
    return decibels


def _band(value: Any) -> tuple[float | None, float | None] | None:
    """Return a band as two numbers, of which one may be None; raise a ConfigError if it is not a band."""
    if value is None:
        return None
    low, _, high = value.partition("-") if isinstance(value, str) and "-" in value else ("none", "", "")
    pair = (low, high) if isinstance(value, str) else value
    try:
        edges = [None if edge in ("", None) else float(edge) for edge in pair]
    except (TypeError, ValueError):
        edges = []
    known = [edge for edge in edges if edge is not None]
    is_right = len(edges) == 2 and bool(known) and known[0] > 0 and known[-1] < 1e6 and known == sorted(set(known))
    check(
        is_right, f"band is {value!r}; it must be LOW-HIGH in Hz with 0 < LOW < HIGH, such as 2000-8000, 20- or -500."
    )
    return edges[0], edges[1]


PLAIN = ReadSettings()
"""All channels mixed, as loud and as fast as they are."""
