"""The frames of an MPEG audio file (MP3): their number, the number in its headers, and the data between them.

A Xing or LAME header may be absent or belong to another file: concatenated files keep that of their first part. Frames
are therefore counted by their headers, which takes about a hundredth of the time of decoding.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from dymn.audio.content import Content

_READ = 2**20
_LOOK = 2**16  # how far from the start, or behind a tag, the first frame may be
_LOST = 2**20  # how far from one frame the next may be
_MOST_LOST = 2**24
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version
_V1 = {
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_V2 = {
    3: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    1: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _frames() -> dict[int, tuple[int, int, int]]:
    """Return length in bytes, samples and sample rate of a frame, by the second and third byte of its header."""
    table = {}
    for second in range(0xE0, 0x100):
        version, layer = (second >> 3) & 3, (second >> 1) & 3
        for third in range(256):
            bits, rate, padding = third >> 4, (third >> 2) & 3, (third >> 1) & 1
            if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
                continue
            hertz = _RATES[version][rate]
            kbps = (_V1 if version == 3 else _V2)[layer][bits - 1]
            samples = 384 if layer == 3 else 1152 if layer == 2 or version == 3 else 576
            slot = 4 if layer == 3 else 1
            length = (samples // 8 * 1000 * kbps // hertz // slot + padding) * slot
            table[second << 8 | third] = length, samples, hertz
    return table


_FRAMES = _frames()


@dataclass
class Part:
    """Frames that belong together: one file of those that were joined, or the only one.

    Attributes:
        start: where it starts, in bytes, at the header of Xing if it has one.
        end: where its last whole frame ends.
        rate: in Hz, of its first frame.
        claimed: how many frames its header says there are; None without a header.
        trimmed: how many samples its header takes from both ends.
        frames: how many frames there are.
        samples: how many samples they hold, without those trimmed.
        first: where the first frame of sound starts.
        changes: whether the rate changes on the way.
    """

    start: int
    end: int = 0
    rate: int = 0
    claimed: int | None = None
    trimmed: int = 0
    frames: int = 0
    samples: int = 0
    first: int = 0
    changes: bool = False

    @property
    def truthful(self) -> bool:
        """Whether a header, if there is one, states the number of frames."""
        return self.claimed is None or abs(self.claimed - self.frames) <= 2

    @property
    def length(self) -> int:
        """The number of samples from a decoder that trims as a truthful header states."""
        return max(0, self.samples - (self.trimmed if self.truthful else 0))


@dataclass
class MpegFrames:
    """The properties of a file according to its frames.

    Attributes:
        parts: one after the other.
        lost: how many bytes between frames belong to none, and to no tag.
        cut: whether the last frame is incomplete.
        end: where the last frame, or the tag behind it, ends.
    """

    parts: list[Part]
    lost: int = 0
    cut: bool = False
    end: int = 0


def id3_length(content: Content, base: int = 0) -> int:
    """Return the length in bytes of the ID3v2 tags at `base`, 0 without one."""
    start = base
    while len(head := content.at(start, 10)) == 10 and head[:3] == b"ID3" and max(head[6:]) < 0x80:
        footer = 10 if head[5] & 0x10 else 0
        start += 10 + footer + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return start - base


def frames(content: Content, base: int = 0) -> MpegFrames | None:
    """Count the frames of a file behind `base`; None if no three of them follow each other near its start."""
    start = _next(content, base, _LOOK)
    if start is None:
        return None
    found = MpegFrames([Part(start)])
    buffer, at, position = b"", 0, start
    header = 0  # of the part's first frame, as far as all frames share it
    while True:
        offset = position - at
        if not buffer or (offset and offset + 48 > len(buffer)):
            buffer, at, offset = content.at(position, _READ), position, 0
        if len(buffer) - offset < 4:
            break
        known = _FRAMES.get(buffer[offset + 1] << 8 | buffer[offset + 2]) if buffer[offset] == 0xFF else None
        if known is None:
            ahead = _behind(content, position)
            if ahead is None or found.lost > _MOST_LOST:
                break
            found.lost += ahead[1]
            position = ahead[0]
            header = 0 if ahead[2] else header
            continue
        length, samples, rate = known
        if position + length > content.size:
            found.cut = True
            break
        part = found.parts[-1]
        if header == 0 or _tagged(buffer, offset):
            tag = _tag(content.at(position, length))
            if tag is not None or (part.frames == 0 and part.rate == 0):
                if part.frames:
                    part = Part(position)
                    found.parts.append(part)
                part.rate = rate
                part.claimed, part.trimmed = tag if tag is not None else (None, 0)
                part.first = position + (length if tag is not None else 0)
            header = 1
            if tag is not None:
                position += length
                continue
        part.frames += 1
        part.samples += samples
        part.changes = part.changes or rate != part.rate
        position += length
        part.end = position
    found.end = content.size if found.cut else position
    found.parts = [part for part in found.parts if part.frames]
    return found if found.parts else None


def follow_each_other(head: bytes, count: int = 3) -> bool:
    """Whether bytes begin with so many whole frames."""
    place = 0
    for _ in range(count):
        known = _known(head[place : place + 3])
        if known is None:
            return False
        place += known[0]
    return place <= len(head)


def _known(head: bytes) -> tuple[int, int, int] | None:
    """Return length, samples and sample rate of the frame that begins with three bytes; None if none does."""
    return _FRAMES.get(head[1] << 8 | head[2]) if len(head) == 3 and head[0] == 0xFF else None


def _next(content: Content, position: int, reach: int) -> int | None:
    """Return where the next frame begins that two more follow, or the end of the file; None if it is out of reach."""
    data = content.at(position, reach + 4)
    for match in _SYNC.finditer(data):
        head, place = data[match.start() : match.start() + 3], position + match.start()
        for _ in range(3):
            known = _known(head)
            if known is None:
                break
            place += known[0]
            head = content.at(place, 3)
        else:
            return position + match.start()
        if place > position + match.start() and (place >= content.size or head in (b"TAG", b"ID3", b"APE")):
            return position + match.start()
    return None


def _behind(content: Content, position: int) -> tuple[int, int, bool] | None:
    """Return where frames resume after other data, how many of its bytes are no tag, and if a tag starts a new part."""
    head = content.at(position, 32)
    if head[:3] == b"TAG":
        return position + 128, 0, True
    if head[:3] == b"ID3":
        length = id3_length(content, position)
        return (position + length, 0, True) if length else None
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, _, flags = struct.unpack("<III", head[12:24])
        return position + 32 + (size if flags & 0x2000_0000 else 0), 0, True
    place = _next(content, position + 1, _LOST)
    return None if place is None else (place, place - position, False)


def _tagged(buffer: bytes, offset: int) -> bool:
    """Whether a frame may hold a header such as Xing's; a quick check before `_tag`."""
    name = buffer[offset + 36 : offset + 40]
    return buffer[offset + 4 : offset + 13] == bytes(9) or name in (b"Xing", b"Info", b"VBRI")


def _tag(frame: bytes) -> tuple[int | None, int] | None:
    """Return the number of frames that a header of Xing or VBRI in a frame claims, and of samples that it trims."""
    for place in (36, 21, 13, 38, 23, 15):  # behind the side information, with and without a checksum
        if frame[place : place + 4] in (b"Xing", b"Info"):
            flags = int.from_bytes(frame[place + 4 : place + 8], "big")
            claimed = int.from_bytes(frame[place + 8 : place + 12], "big") if flags & 1 else None
            lame = place + 8 + 4 * bool(flags & 1) + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
            trim = frame[lame + 21 : lame + 24]
            if len(trim) < 3 or not any(frame[lame : lame + 4]):
                return claimed, 0
            return claimed, (trim[0] << 4 | trim[1] >> 4) + ((trim[1] & 15) << 8 | trim[2])
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return int.from_bytes(frame[50:54], "big"), 0
    return None
