"""Raw PCM: samples without a header, as programs write them to pipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.config import check

_TYPES = {
    "s8": "i1",
    "u8": "u1",
    "s16le": "<i2",
    "s16be": ">i2",
    "s24le": "<i3",
    "s32le": "<i4",
    "s32be": ">i4",
    "f32le": "<f4",
    "f32be": ">f4",
}
FORMATS = tuple(_TYPES)
"""The names of sample formats, which are those of FFmpeg."""


class PcmReader:
    """Turns bytes that come in pieces of any size into samples; a sample that is cut in two waits for its rest."""

    def __init__(self, format: str, channels: int) -> None:
        """Say how the bytes are meant.

        Raises:
            ConfigError: if the format is unknown, or there are no channels.
        """
        check(format in _TYPES, f"The sample format is {format!r}; allowed: {', '.join(FORMATS)}.")
        check(1 <= channels <= 256, f"channels is {channels}; it must be from 1 to 256.")
        self._type, self._channels = _TYPES[format], channels
        self._frame = int(self._type[-1]) * channels
        self._rest = b""

    @property
    def rest(self) -> int:
        """How many bytes of a sample that is not complete are waiting."""
        return len(self._rest)

    def feed(self, data: bytes) -> npt.NDArray[Any]:
        """Return the samples [n, channels] that are complete with `data`: integers, or floats with full scale 1."""
        data = self._rest + data
        n = len(data) // self._frame
        whole, self._rest = data[: n * self._frame], data[n * self._frame :]
        if self._type == "<i3":
            samples = np.zeros((n * self._channels, 4), np.uint8)
            samples[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
            return samples.view("<i4").reshape(n, self._channels)
        array = np.frombuffer(whole, self._type).reshape(n, self._channels)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
