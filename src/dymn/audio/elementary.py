"""Frame streams without a container (ADTS AAC, AC-3, AMR), and the outer structure of AVI, ASF and MP4 files.

After damage, FFmpeg resumes at the next frame without reporting what it skipped, so frames are counted by their
headers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from dymn.audio.content import Content

_READ = 2**20
_MOST_LOST = 2**21  # bytes in one gap
_MOST_BOXES = 100_000
_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_AC3_RATES = (48_000, 44_100, 32_000)
_AMR_NB = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)
_AMR_WB = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass(frozen=True)
class StreamFrames:
    """The properties of a stream according to its frames.

    Attributes:
        start: where the first frame starts, or the header before it.
        end: where the last whole frame ends.
        seconds: how long they are together.
        lost: how many bytes between frames belong to none.
        cut: whether the last frame is incomplete.
    """

    start: int
    end: int
    seconds: float
    lost: int
    cut: bool


def _adts(head: bytes) -> tuple[int, float]:
    if head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0, 0.0
    rate = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
    index, length = head[2] >> 2 & 15, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (length, 1024 * ((head[6] & 3) + 1) / rate[index]) if index < len(rate) and length > 7 else (0, 0.0)


def _ac3(head: bytes) -> tuple[int, float]:
    if head[:2] != b"\x0bw":
        return 0, 0.0
    code, version = head[4] >> 6, head[5] >> 3
    if version > 10:  # E-AC-3; its dependent frames add channels and no time
        length, dependent = 2 * ((head[2] & 7) << 8 | head[3]) + 2, head[2] >> 6 == 1
        blocks = 6 if code == 3 else (1, 2, 3, 6)[head[4] >> 4 & 3]
        rate = _AC3_RATES[code] if code < 3 else (24_000, 22_050, 16_000, 48_000)[head[4] >> 4 & 3]
        return length, 0.0 if dependent else 256 * blocks / rate
    size = head[4] & 63
    if code == 3 or size >= 2 * len(_AC3_KBPS):
        return 0, 0.0
    words = _AC3_KBPS[size >> 1] * 96_000 // _AC3_RATES[code] + (size & 1 if code == 1 else 0)
    return 2 * words, 1536 / _AC3_RATES[code]


def _amr(lengths: tuple[int, ...]) -> Callable[[bytes], tuple[int, float]]:
    return lambda head: (0, 0.0) if head[0] & 0x83 else (lengths[head[0] >> 3 & 15], 0.02)


def frames(content: Content, base: int = 0) -> StreamFrames | None:
    """Count the frames of an ADTS, AC-3 or AMR stream; None if it is none of them."""
    head = content.at(base, 9)
    if head == b"#!AMR-WB\n":
        return _walk(content, base, base + 9, _amr(_AMR_WB), 1, b"")
    if head[:6] == b"#!AMR\n":
        return _walk(content, base, base + 6, _amr(_AMR_NB), 1, b"")
    if head[:2] in (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8"):
        return _walk(content, base, base, _adts, 7, b"\xff")
    if head[:2] == b"\x0bw" and len(head) == 9:
        return _walk(content, base, base, _ac3, 6, b"\x0bw")
    return None


def _walk(
    content: Content, start: int, position: int, length_of: Callable[[bytes], tuple[int, float]], need: int, sync: bytes
) -> StreamFrames | None:
    """Count frames, whose headers have `need` bytes and begin with `sync`; AMR, which has none, is `b""`."""
    buffer, at, count, seconds, lost, end, cut = b"", position, 0, 0.0, 0, position, False
    skipped = 0
    while True:
        offset = position - at
        if not buffer or (offset and offset + 16 > len(buffer)):
            buffer, at, offset = content.at(position, _READ), position, 0
        head = buffer[offset : offset + need]
        if len(head) < need:
            break
        if not sync and head[0] == 0 and not any(content.at(position, 64)):
            break  # zeros would pass for frames
        length, lasts = length_of(head)
        follows = content.size - position <= length or (
            length and _begins(content, buffer, offset + length, at, length_of, need)
        )
        if not length or not (follows or not skipped):
            step = _step(buffer, offset, sync)
            skipped += step
            position += step
            if skipped > (_MOST_LOST if sync else _READ >> 4):
                break
            continue
        if position + length > content.size:
            cut = True
            break
        lost, skipped = lost + skipped, 0
        count, seconds, position = count + 1, seconds + lasts, position + length
        end = position
    return StreamFrames(start, end, seconds, lost, cut) if count >= 3 else None


def _step(buffer: bytes, offset: int, sync: bytes) -> int:
    """Return how far the next place is where a frame may begin, or the end of the buffer."""
    if not sync:
        return 1
    place = buffer.find(sync, offset + 1)
    return place - offset if place >= 0 else max(1, len(buffer) - offset - len(sync))


def _begins(
    content: Content, buffer: bytes, offset: int, at: int, length_of: Callable[[bytes], tuple[int, float]], need: int
) -> bool:
    head = buffer[offset : offset + need]
    head = head if len(head) == need else content.at(at + offset, need)
    return len(head) == need and length_of(head)[0] > 0


def share_there(content: Content) -> float:
    """Return the share of an AVI or ASF file that exists, by the length in its header; 1 for other formats."""
    head = content.at(0, 12)
    promised = 0
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        promised = struct.unpack("<I", head[4:8])[0] + 8
        promised = 0 if promised > 0xFFFF_0000 else promised
    elif head[:4] == b"0&\xb2u":
        begin = content.at(0, 8192)
        place = begin.find(_ASF_PROPERTIES)
        if 0 <= place <= len(begin) - 48:
            promised = struct.unpack("<Q", begin[place + 40 : place + 48])[0]
    return min(1.0, content.size / promised) if promised else 1.0


def flv_starts(content: Content) -> tuple[int, ...]:
    """Return where FLV files begin that follow each other; () if the first does not begin at 0."""
    if content.at(0, 4) != b"FLV\1":
        return ()
    starts, position = [0], 1
    while block := content.at(position, _READ + 9):
        place = block.find(b"FLV\1")
        while 0 <= place < _READ:
            if block[place + 5 : place + 9] == b"\0\0\0\x09":
                starts.append(position + place)
            place = block.find(b"FLV\1", place + 1)
        position += _READ
    return tuple(starts[:_MOST_BOXES])


@dataclass(frozen=True)
class Boxes:
    """The outermost boxes of an MP4 file.

    Attributes:
        starts: where files begin that follow each other in it.
        has_index: whether there is an index (moov) or a fragment (moof).
    """

    starts: tuple[int, ...]
    has_index: bool


def boxes(content: Content) -> Boxes | None:
    """Return the properties in the outermost boxes of an MP4 file; None if it is not one."""
    if content.at(4, 4) != b"ftyp":
        return None
    starts, position, has_index, index_here = [0], 0, False, False
    for _ in range(_MOST_BOXES):
        head = content.at(position, 16)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        length = content.size - position if length == 0 else length
        if length < 8 or not all(0x20 <= byte < 0x7F for byte in kind):
            break
        if kind == b"ftyp" and index_here and position:
            starts.append(position)
            index_here = False
        if kind in (b"moov", b"moof"):
            has_index = index_here = True
        position += length
    return Boxes(tuple(starts), has_index)
