"""WAV, RF64, Wave64, AIFF, CAF and AU files.

This module finds their samples and formats, and errors in their headers.

Uncompressed samples are read directly from the file, independent of the length in its header: after a power loss, the
length may be zero, 32-bit lengths overflow at 4 GiB, and some editors omit padding bytes. Compressed samples are left
to the decoders.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio.content import Content
from dymn.audio.notes import SLACK_SECONDS, duration
from dymn.audio.samples import to_float32
from dymn.system.arrays import Floats

_MAX_CHUNKS = 10_000
_WRAP = 2**32
_CHUNK_NAMES = (
    "data fmt LIST list fact bext iXML cue smpl inst PEAK JUNK junk PAD id3 ID3 FLLR minf elm1 regn umid DGDA ds64 "
    "axml chna plst"
)
_KNOWN = frozenset(name.ljust(4).encode() for name in _CHUNK_NAMES.split())
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_AMBISONIC_TAIL = bytes.fromhex("00002107d3118644c8c1ca000000")
_SYNCS = tuple(map(bytes.fromhex, ("ff1f00e8", "1fffe800", "fe7f0180", "7ffe8001", "72f81f4e")))
_RIFF_CODES = {1: "pcm", 3: "float", 6: "alaw", 7: "ulaw"}
_AU_CODES = {1: "ulaw", 2: "s8", 3: ">i2", 4: ">i3", 5: ">i4", 6: ">f4", 7: ">f8", 27: "alaw"}
_AIFC_CODES = {
    b"NONE": ("pcm", ">"),
    b"twos": ("pcm", ">"),
    b"sowt": ("pcm", "<"),
    b"in24": ("pcm", ">"),
    b"42n1": ("pcm", "<"),
    b"23ni": ("pcm", "<"),
    b"in32": ("pcm", ">"),
    b"fl32": (">f4", ">"),
    b"FL32": (">f4", ">"),
    b"fl64": (">f8", ">"),
    b"FL64": (">f8", ">"),
    b"raw ": ("u8", ">"),
    b"alaw": ("alaw", ">"),
    b"ulaw": ("ulaw", ">"),
}
_NAMES = {
    "u8": "PCM_U8",
    "s8": "PCM_S8",
    "i2": "PCM_16",
    "i3": "PCM_24",
    "i4": "PCM_32",
    "i8": "PCM_64",
    "f2": "HALF",
    "f4": "FLOAT",
    "f8": "DOUBLE",
    "alaw": "ALAW",
    "ulaw": "ULAW",
}


@dataclass(frozen=True)
class PcmLayout:
    """A file of samples.

    Attributes:
        container: its name, such as "WAV".
        coding: how a sample is stored: a key of `_NAMES`, with the byte order before those of several bytes; None if a
            decoder is needed.
        rate: in Hz.
        channels: how many; of ambisonics too.
        frame: bytes of a sample of all channels.
        start: the place of the first sample, in bytes.
        length: how many bytes of samples follow.
        promised: how many the header promises, None if it is unknown.
        ambisonic: whether the first channel is that of all directions.
        notes: on errors in the header.
    """

    container: str
    coding: str | None
    rate: int
    channels: int
    frame: int
    start: int
    length: int
    promised: int | None
    ambisonic: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The container and the kind of its samples, such as "WAV PCM_16"."""
        return f"{self.container} {_NAMES[self.coding.lstrip('<>')] if self.coding else 'compressed'}"


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    length: int


@dataclass(frozen=True)
class _Container:
    """The layout of chunks: start of the first one, header of each (name, length), and whether lengths include it."""

    name: str
    start: int
    header: str
    align: int = 2
    counts_header: bool = False


_CONTAINERS = {
    (b"RIFF", b"WAVE"): _Container("WAV", 12, "<4sI"),
    (b"RF64", b"WAVE"): _Container("RF64", 12, "<4sI"),
    (b"BW64", b"WAVE"): _Container("RF64", 12, "<4sI"),
    (b"RIFX", b"WAVE"): _Container("WAV", 12, ">4sI"),
    (b"FORM", b"AIFF"): _Container("AIFF", 12, ">4sI"),
    (b"FORM", b"AIFC"): _Container("AIFF", 12, ">4sI"),
    (b"riff", b".\x91\xcf\x11"): _Container("W64", 40, "<16sQ", align=8, counts_header=True),
    (b"caff", b""): _Container("CAF", 8, ">4sQ", align=1),
}


def layout(content: Content, base: int = 0) -> PcmLayout | None:
    """Return the layout of the samples of a file that begins at `base`; None if it is no such file, or has none."""
    head = content.at(base, 40)
    if head[:4] in (b".snd", b"dns.") and len(head) >= 24:
        return _au(content, head, base)
    second = {b"riff": head[4:8], b"caff": b""}.get(head[:4], head[8:12])
    container = _CONTAINERS.get((head[:4], second))
    if container is None:
        return None
    found: dict[bytes, bytes] = {}
    for chunk in _chunks(content, container, base + container.start):
        kind = chunk.kind[:4]
        if kind in (b"data", b"SSND"):
            return _described(content, container, base, found, chunk)
        if kind in (b"fmt ", b"COMM", b"desc", b"ds64"):
            found.setdefault(kind, content.at(chunk.start, min(chunk.length, 64)))
    return None


def _chunks(content: Content, container: _Container, position: int) -> Iterator[_Chunk]:
    """Yield the chunks of a file from a position on, also where a pad byte is missing."""
    for _ in range(_MAX_CHUNKS):
        chunk = _chunk(content, container, position)
        if chunk is None:
            return
        yield chunk
        position = chunk.start + chunk.length
        padded = position + -chunk.length % container.align
        position = (
            position if container.align == 2 and padded != position and _forgot_pad(content, position) else padded
        )


def _chunk(content: Content, container: _Container, position: int) -> _Chunk | None:
    size = struct.calcsize(container.header)
    header = content.at(position, size)
    if len(header) < size:
        return None
    kind, length = struct.unpack(container.header, header)
    return _Chunk(kind, position + size, max(0, length - size) if container.counts_header else length)


def _forgot_pad(content: Content, position: int) -> bool:
    head = content.at(position, 5)
    return head[:4] in _KNOWN and head[1:5] not in _KNOWN


def _described(
    content: Content, container: _Container, base: int, found: dict[bytes, bytes], data: _Chunk
) -> PcmLayout | None:
    """Return the layout of a file with chunks, from those that describe it and the one that holds the samples."""
    order = container.header[0]
    start, length = data.start, data.length
    long_size = struct.unpack("<Q", found[b"ds64"][8:16])[0] if len(found.get(b"ds64", b"")) >= 16 else 0
    if container.name == "RF64" and length in (0, _WRAP - 1):
        length = long_size
    try:
        if container.name == "AIFF":
            coding, rate, channels, frame = _aiff(found[b"COMM"])
            offset = struct.unpack(">I", content.at(start, 4))[0]
            start, length = start + 8 + offset, max(0, length - 8 - offset)
            ambisonic = False
        elif container.name == "CAF":
            coding, rate, channels, frame = _caf(found[b"desc"])
            start, length = start + 4, length if length >= 2**63 else max(0, length - 4)
            ambisonic = False
        else:
            coding, rate, channels, frame, ambisonic = _wave(found[b"fmt "], order)
    except (KeyError, struct.error, OverflowError, ValueError):
        return None
    plain = PcmLayout(container.name, coding, rate, channels, frame, start, content.size - start, length, ambisonic)
    if start >= content.size:
        return replace(plain, length=0, promised=0 if _means_unknown(length) else length)
    return _bounded(content, container, base, plain)


def _wave(fields: bytes, order: str) -> tuple[str | None, int, int, int, bool]:
    code, channels, rate, _, frame, bits = struct.unpack(f"{order}HHIIHH", fields[:16])
    ambisonic = False
    if code == 0xFFFE and len(fields) >= 40:
        code = struct.unpack(f"{order}H", fields[24:26])[0]
        ambisonic = fields[26:40] == _AMBISONIC_TAIL
        if not ambisonic and fields[26:40] != _GUID_TAIL:
            code = 0
    kind = _RIFF_CODES.get(code, "")
    coding = _coding(kind, bits, order, "u8")
    if coding is not None and frame != channels * _width(coding):
        coding = None  # samples in wider containers, which the decoders support
    return coding, rate, channels, frame, ambisonic


def _coding(kind: str, bits: int, order: str, small: str) -> str | None:
    """Return the key of a coding by its kind and bits; samples of 12 bits, for example, fill 16 from the left."""
    if kind in ("alaw", "ulaw"):
        return kind if bits in (0, 8, 16) else None
    if kind == "float":
        return f"{order}f{bits // 8}" if bits in (16, 32, 64) else None
    if kind == "pcm" and 1 <= bits <= 64:
        width = -(-bits // 8)
        return small if width == 1 else f"{order}i{width}" if width in (2, 3, 4, 8) else None
    return None


def _aiff(fields: bytes) -> tuple[str | None, int, int, int]:
    channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", fields[:18])
    rate = int(mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63)) if exponent & 0x7FFF < 16447 else 0
    kind, order = _AIFC_CODES.get(fields[18:22], ("", ">")) if len(fields) >= 22 else ("pcm", ">")
    coding = _coding("pcm", bits, order, "s8") if kind == "pcm" else kind or None
    return coding, rate, channels, channels * (_width(coding) if coding else 0)


def _caf(fields: bytes) -> tuple[str | None, int, int, int]:
    rate, code, flags, packet, per_packet, channels, bits = struct.unpack(">d4sIIIII", fields[:32])
    order = "<" if flags & 2 else ">"
    kind = {b"lpcm": "float" if flags & 1 else "pcm", b"alaw": "alaw", b"ulaw": "ulaw"}.get(code, "")
    coding = _coding(kind, bits, order, "s8")
    if coding is not None and (per_packet != 1 or packet != channels * _width(coding)):
        coding = None
    return coding, int(max(0, min(rate, _WRAP - 1))), channels, packet  # bounded as the rates of other containers


def _au(content: Content, head: bytes, base: int) -> PcmLayout:
    order = ">" if head[:4] == b".snd" else "<"
    offset, promised, code, rate, channels = struct.unpack(f"{order}IIIII", head[4:24])
    coding = _AU_CODES.get(code)
    coding = coding.replace(">", order) if coding else None
    start = base + offset
    frame = channels * (_width(coding) if coding else 0)
    size = max(0, content.size - start)
    return _bounded(content, None, base, PcmLayout("AU", coding, rate, channels, frame, start, size, promised))


def is_disguised(content: Content, plain: PcmLayout) -> bool:
    """Whether 16-bit samples are the bytes of DTS or AC-3 (IEC 61937), as on some discs, and would be noise."""
    head = content.at(plain.start, 8192) if plain.coding == "<i2" and plain.channels == 2 else b""
    return any(sync in head for sync in _SYNCS)


def _bounded(content: Content, container: _Container | None, base: int, plain: PcmLayout) -> PcmLayout:
    """Return a layout with the length that the samples have, from the header and what follows in the file."""
    promised, there = plain.promised or 0, plain.length
    if _means_unknown(promised):
        return replace(plain, promised=None)
    if promised >= there:
        return plain
    end = plain.start + promised
    if _chunks_follow(content, container, plain.start, promised):
        return replace(plain, length=promised)
    seconds = plain.rate * plain.frame
    if promised == 0:
        return replace(
            plain,
            promised=None,
            notes=("its header states no samples, as after a power failure; it is read to its end.",),
        )
    wraps = (there - promised) // _WRAP
    if wraps and (container is None or "I" in container.header):
        length = promised + wraps * _WRAP
        length = length if _chunks_follow(content, container, plain.start, length) else there
        present, counted = duration(length / max(1, seconds)), duration(promised / max(1, seconds))
        note = f"its header has overflowed at 4 GiB; {present} are read, not {counted}."
        return replace(plain, length=length, promised=None, notes=(note,))
    tail = there - promised
    if (container is not None and _outer_end(content, container, base) > end + 64) or _goes_on(
        content, plain, promised
    ):
        present, counted = duration(there / max(1, seconds)), duration(promised / max(1, seconds))
        note = f"its header states {counted}, but the samples extend to {present}."
        return replace(plain, promised=None, notes=(note,))
    notes = (
        (f"{tail} bytes after its samples are not audio and are ignored.",) if tail > SLACK_SECONDS * seconds else ()
    )
    return replace(plain, length=promised, notes=notes)


def _chunks_follow(content: Content, container: _Container | None, start: int, length: int) -> bool:
    """Whether chunks fill the file behind `length` bytes of samples, but for a few bytes; also with nothing there."""
    if container is None:
        return start + length == content.size
    return any(_fill(content, container, start + end) for end in {length + -length % container.align, length})


def _fill(content: Content, container: _Container, position: int) -> bool:
    rest = content.size - position
    if (rest <= 8 and not any(content.at(position, 8))) or (
        rest <= 129 and content.at(content.size - 128, 3) == b"TAG"
    ):
        return True
    for chunk in _chunks(content, container, position):
        rest = content.size - chunk.start - chunk.length
        if rest < 0 or not all(0x20 <= byte < 0x7F for byte in chunk.kind[:4]):
            return False
        if rest <= 8 or (rest <= 129 and content.at(content.size - 128, 3) == b"TAG"):
            return True
    return False


def _outer_end(content: Content, container: _Container, base: int) -> int:
    """Return the end of the file according to its outermost header, 0 if it is unknown or beyond the file."""
    if container.name == "CAF":
        return 0
    if container.name == "W64":
        size = struct.unpack("<Q", content.at(base + 16, 8).ljust(8, b"\0"))[0]
    else:
        size = struct.unpack(f"{container.header[0]}I", content.at(base + 4, 4).ljust(4, b"\0"))[0] + 8
    return base + size if base + size <= content.size + 1 else 0


def _goes_on(content: Content, plain: PcmLayout, promised: int) -> bool:
    """Whether what follows the promised samples sounds like them: as loud within 20 dB, and as rough."""
    if plain.coding is None or plain.frame == 0:
        return False
    span = plain.rate * plain.frame
    promised -= promised % plain.frame
    before = content.at(plain.start + max(0, promised - span), min(promised, span))
    after = content.at(plain.start + promised, span)
    if len(after) < 0.05 * span:
        return False
    (loud, rough), (then, then_rough) = (_character(plain, part) for part in (before, after))
    return then < 10 * loud + 1e-6 and loud < 10 * then + 1e-6 and abs(rough - then_rough) < 0.35


def _character(plain: PcmLayout, data: bytes) -> tuple[float, float]:
    """Return how loud a passage of samples is, and how much it changes from one sample to the next."""
    count = len(data) // plain.frame
    with np.errstate(all="ignore"):
        mono = decoded(data[: count * plain.frame], plain.coding or "", plain.channels)[:, 0].astype(np.float64)
        loud = float(np.sqrt(np.mean(mono**2))) if count else 0.0
        rough = float(np.sqrt(np.mean(np.diff(mono) ** 2)) / loud) if count > 1 and loud > 0 else 0.0
    return (loud, rough) if np.isfinite(loud) and np.isfinite(rough) else (np.inf, np.inf)


def _means_unknown(length: int) -> bool:
    """Whether a data length is one of those that FFmpeg, SoX and ALSA write to pipes, or the like in 64 bits."""
    return 0xFFFF_F000 <= length <= 0xFFFF_FFFF or 0x7FFF_F000 - 64 <= length <= 0x8000_0000 or length >= 2**63 - 64


def _width(coding: str) -> int:
    """Return the bytes of a sample."""
    return int(coding[2:]) if coding[0] in "<>" else 1


def chunks(content: Content, plain: PcmLayout, first: int, last: int, n_samples: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of frames `first` to `last`, at most `n_samples` at a time, each with its first frame."""
    place, step = first, max(1, n_samples // plain.channels)
    while place < last:
        data = content.at(plain.start + place * plain.frame, min(step, last - place) * plain.frame)
        whole = len(data) // plain.frame
        if whole == 0:
            return
        yield place, data[: whole * plain.frame]
        place += whole


def decoded(data: bytes, coding: str, channels: int) -> Floats:
    """Return stored samples as float32 [n, channels] with full scale 1.

    Args:
        data: whole frames.
        coding: as in `PcmLayout`.
        channels: how many.
    """
    if coding in ("alaw", "ulaw"):
        table = _ALAW if coding == "alaw" else _ULAW
        return table[np.frombuffer(data, np.uint8)].reshape(-1, channels)
    if coding in ("u8", "s8"):
        return to_float32(np.frombuffer(data, np.uint8 if coding == "u8" else np.int8).reshape(-1, channels))
    if coding[1:] == "i3":
        wide = np.zeros((len(data) // 3, 4), np.uint8)  # the three bytes are the upper ones of 32 bits
        place = slice(1, 4) if coding[0] == "<" else slice(0, 3)
        wide[:, place] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return to_float32(wide.view(f"{coding[0]}i4").reshape(-1, channels))
    stored: npt.NDArray[Any] = np.frombuffer(data, coding).reshape(-1, channels)
    if coding[1:] == "i8":
        return (stored * 2.0**-63).astype(np.float32)
    samples = to_float32(stored)
    return samples if samples.flags.writeable else samples.copy()  # `stored` is a view of bytes


def _alaw() -> Floats:
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 15
    size = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


def _ulaw() -> Floats:
    code = ~np.arange(256) & 0xFF
    size = ((((code & 15) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


_ALAW, _ULAW = _alaw(), _ulaw()
