"""The length of a FLAC stream (RFC 9639) according to STREAMINFO, and according to its last frames."""

from __future__ import annotations

import re
from typing import NamedTuple

from dymn.audio.content import Content

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_LEAST, _MOST = 2**16, 2**21  # bytes at the end in which the last two frames are looked for


class StreamInfo(NamedTuple):
    """The first block of a stream: maximum sizes of its blocks and frames, and its length in samples (0 if unknown)."""

    most_samples: int
    most_bytes: int
    rate: int
    channels: int
    total: int


class _Frame(NamedTuple):
    start: int
    """In samples."""
    samples: int


def stream_info(content: Content, base: int = 0) -> StreamInfo | None:
    """Return the contents of STREAMINFO; None if no FLAC stream begins at `base`."""
    head = content.at(base, 42)
    if head[:4] != b"fLaC" or len(head) < 42 or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26], "big")
    return StreamInfo(
        int.from_bytes(head[10:12], "big"),
        int.from_bytes(head[15:18], "big"),
        packed >> 44,
        (packed >> 41 & 7) + 1,
        packed & (2**36 - 1),
    )


def last_sample(content: Content, info: StreamInfo) -> int | None:
    """Return how many samples the stream has by the header of its last frame; None if its end cannot be made out."""
    size = min(_MOST, max(_LEAST, 4 * info.most_bytes))
    tail = content.at(max(0, content.size - size), size)
    found = [
        frame for match in _SYNC.finditer(tail) if (frame := _frame(tail[match.start() : match.start() + 16], info))
    ]
    ends = {frame.start + frame.samples for frame in found} | {0}
    for frame in reversed(found):
        if frame.start in ends:
            return frame.start + frame.samples
    return None


def _frame(head: bytes, info: StreamInfo) -> _Frame | None:
    """Return the contents of a frame header; None if its checksum is wrong, or it does not fit the stream."""
    if len(head) < 6 or head[3] & 1:
        return None
    lead = head[4]
    extra = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1 if 0xC0 <= lead < 0xFF else -1
    if extra < 0:
        return None
    number = lead if lead < 0x80 else lead & ((1 << (6 - extra)) - 1 if extra < 6 else 0)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    place = 5 + extra
    size, rate = head[2] >> 4, head[2] & 15
    width = {6: 1, 7: 2}.get(size, 0)
    samples = int.from_bytes(head[place : place + width], "big") + 1
    place += width + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if size == 0 or rate == 15 or place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    if width == 0:
        samples = 192 if size == 1 else 576 << (size - 2) if size < 6 else 256 << (size - 8)
    start = number if head[1] & 1 else number * max(samples, info.most_samples)
    return _Frame(start, samples)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
        table.append(crc)
    return table


_CRC8 = _table()
