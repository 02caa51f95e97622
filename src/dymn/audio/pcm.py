"""Raw PCM: samples without a header, as programs write them to pipes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.audio.mpeg import follow_each_other
from dymn.audio.samples import INTEGER_PEAK, MAX_PEAK
from dymn.config import check
from dymn.errors import AudioError

logger = logging.getLogger(__name__)

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
PCM_FORMATS = tuple(_TYPES)
"""The names of sample formats, which are those of FFmpeg."""
_FILES = {
    "WAV": (b"RIFF", b"RF64", b"RIFX"),
    "FLAC": (b"fLaC",),
    "Ogg": (b"OggS",),
    "MP3": (b"ID3",),
    "AIFF": (b"FORM",),
    "AU": (b".snd",),
    "CAF": (b"caff",),
    "WebM or Matroska": (b"\x1aE\xdf\xa3",),
    "AMR": (b"#!AMR",),
    "FLV": (b"FLV\1",),
    "ASF (WMA)": (b"0&\xb2u\x8ef\xcf\x11",),
}
"""Encoded audio by its first bytes; read as samples, it would be noise."""
_HEAD = 4096


class PcmReader:
    """Converts bytes that arrive in pieces of any size to samples; incomplete samples are kept for the next piece."""

    def __init__(self, format: str, channels: int) -> None:
        """Prepare to read samples of a format and a number of channels.

        Raises:
            ConfigError: if the format is unknown, or there are no channels.
        """
        check(format in _TYPES, f"The sample format is {format!r}; allowed: {', '.join(PCM_FORMATS)}.")
        check(1 <= channels <= 256, f"channels is {channels}; it must be from 1 to 256.")
        self._type, self._channels = _TYPES[format], channels
        self._frame = int(self._type[-1]) * channels
        self._rest = b""
        self._head = b""
        self._checked = False
        self._warned = False

    @property
    def rest(self) -> int:
        """The number of bytes of an incomplete sample that are kept."""
        return len(self._rest)

    def feed(self, data: bytes) -> npt.NDArray[Any]:
        """Return the samples [n, channels] that are complete with `data`: integers, or floats with full scale 1.

        Raises:
            AudioError: if the first bytes are those of encoded sound.
        """
        if not self._checked:
            self._head += data[:_HEAD]
            self._checked = len(self._head) >= _HEAD
            kind = encoded_kind(self._head)
            if kind:
                raise AudioError(
                    f"These are not raw samples: they begin like {kind}. Decode them first, for example with: "
                    "ffmpeg -i - -f s16le -ar 32000 -ac 1 -, or give the file to dymn tag."
                )
        data = self._rest + data
        n = len(data) // self._frame
        whole, self._rest = data[: n * self._frame], data[n * self._frame :]
        if self._type == "<i3":
            samples = np.zeros((n * self._channels, 4), np.uint8)
            samples[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
            return samples.view("<i4").reshape(n, self._channels)
        array = np.frombuffer(whole, self._type).reshape(n, self._channels)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.kind == "f" and array.size and not self._warned:
            peak = np.abs(array).max()
            self._warned = bool(INTEGER_PEAK < peak < MAX_PEAK)
            if self._warned:
                logger.warning(
                    "Samples reach %.0f, and full scale is 1. If they are integers, specify their format.", peak
                )
        return array


def encoded_kind(head: bytes) -> str:
    """Return the kind of encoded sound that the first bytes belong to; "" for raw samples.

    Example:
        >>> encoded_kind(b"fLaC" + bytes(38))
        'FLAC'
    """
    for kind, starts in _FILES.items():
        if head.startswith(starts):
            return kind
    if head[4:8] == b"ftyp":
        return "MP4"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47 and head.count(0x47, 0, 376) < 40:
        return "MPEG-TS"
    return "MP3" if follow_each_other(head) else ""
