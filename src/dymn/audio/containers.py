"""What a file's container says about the length of its audio, and whether that is true.

libsndfile quietly shortens a cut WAV or AIFF, takes a cut Ogg page for the end, and guesses the length of an MP3 that does not
state it. These functions look at the bytes themselves; none reserves memory by what a header says.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import NamedTuple, Protocol

_MAX_CHUNKS = 10_000
_OGG_PAGE = 65_307
_MP3_TAIL = 16_384


class Handle(Protocol):
    """The part of a binary file that is needed here."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102
    def seek(self, offset: int, whence: int = ..., /) -> int: ...  # noqa: D102
    def tell(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class _Chunks:
    """How a container lays out its chunks: where the first starts, its header (name, length), what of it the length counts."""

    start: int
    header: str
    align: int = 2
    counts_header: bool = False


_LITTLE, _BIG = _Chunks(12, "<4sI"), _Chunks(12, ">4sI")
_LAYOUTS = {
    (b"RIFF", b"WAVE"): _LITTLE,
    (b"RF64", b"WAVE"): _LITTLE,
    (b"RIFX", b"WAVE"): _BIG,
    (b"FORM", b"AIFF"): _BIG,
    (b"FORM", b"AIFC"): _BIG,
    (b"riff", b".\x91\xcf\x11"): _Chunks(40, "<16sQ", align=8, counts_header=True),  # Wave64
}


def promised_share(handle: Handle) -> float:
    """Return how many times the bytes of samples that are there the header of a WAV, RF64, W64, AIFF, CAF or AU file promises.

    1 means that the file is whole. Programs that write to a pipe do not know the length and put the largest number there; that
    counts as whole, and so does every other format.
    """
    found = data_chunk(handle)
    return 1.0 if found is None else _share(found.promised, found.there)


class DataChunk(NamedTuple):
    """Where the samples of a file begin, how many bytes of them its header promises, and how many bytes follow there."""

    start: int
    promised: int
    there: int


def data_chunk(handle: Handle) -> DataChunk | None:
    """Find the samples of a WAV, RF64, W64, AIFF, CAF or AU file; None if there are none, or it is something else."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    head = handle.read(12)
    if head[:4] == b".snd" and len(head) == 12:
        start, promised = struct.unpack(">II", head[4:])
        return DataChunk(start, promised, size - start)
    layout = (
        _Chunks(8, ">4sQ", align=1) if head[:4] == b"caff" else _LAYOUTS.get((head[:4], head[8:] if head[:4] != b"riff" else head[4:8]))
    )
    if layout is None:
        return None
    position, long_size = layout.start, 0
    for _ in range(_MAX_CHUNKS):
        handle.seek(position)
        header = handle.read(struct.calcsize(layout.header))
        if len(header) < struct.calcsize(layout.header):
            break
        kind, length = struct.unpack(layout.header, header)
        length = max(0, length - len(header)) if layout.counts_header else length
        position += len(header)
        if kind == b"ds64":
            fields = handle.read(16)
            long_size = struct.unpack("<QQ", fields)[1] if len(fields) == 16 else 0
        if kind[:4] in (b"data", b"SSND"):
            return DataChunk(position, long_size if long_size and length == 0xFFFF_FFFF else length, size - position)
        position += length + -length % layout.align
        if position > size:
            break
    return None


def _share(promised: int, there: int) -> float:
    return promised / there if there > 0 and not _means_unknown(promised) else 1.0


def _means_unknown(length: int) -> bool:
    """Whether a data length is one of those that FFmpeg, SoX and ALSA write to pipes, or the like in 64 bits."""
    return 0xFFFF_F000 <= length <= 0xFFFF_FFFF or 0x7FFF_F000 - 64 <= length <= 0x8000_0000 or length >= 2**63 - 64


def ogg_is_cut(handle: Handle) -> bool:
    """Whether the last page of an Ogg file (Vorbis, Opus, FLAC) is incomplete. False for other formats."""
    handle.seek(0)
    if handle.read(4) != b"OggS":
        return False
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - 2 * _OGG_PAGE))
    tail = handle.read(2 * _OGG_PAGE)
    start = tail.rfind(b"OggS\x00")
    if start < 0:
        return False
    segments = tail[start + 27 : start + 27 + tail[start + 26]] if start + 27 <= len(tail) else b""
    whole = start + 27 <= len(tail) and len(segments) == tail[start + 26]
    return not whole or start + 27 + len(segments) + sum(segments) > len(tail)


def mp3_says_length(handle: Handle) -> bool:
    """Whether an MP3 file states its length (a Xing, Info or VBRI header). The handle stands where it stood."""
    position = handle.tell()
    handle.seek(0)
    head = handle.read(10)
    start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)) if head[:3] == b"ID3" else 0
    handle.seek(start)
    frame = handle.read(4096)
    handle.seek(position)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


def mp3_goes_on(handle: Handle) -> bool:
    """Whether frames of MP3 follow where the decoder stopped."""
    position = handle.tell()
    size = handle.seek(0, os.SEEK_END)
    if size - position < _MP3_TAIL:
        return False
    handle.seek(position)
    ahead = handle.read(_MP3_TAIL)
    return any(ahead.count(sync) >= 3 for sync in (b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3"))


def needs_ffmpeg(handle: Handle) -> bool:
    """Whether the first bytes are those of a format that only FFmpeg reads: MP4, Matroska, ASF, FLV, ADTS or AMR."""
    handle.seek(0)
    head = handle.read(12)
    return head[4:8] == b"ftyp" or head.startswith((b"\x1aE\xdf\xa3", b"0&\xb2u", b"FLV", b"\xff\xf1", b"\xff\xf9", b"#!AMR"))
