"""What cases are made of: whole files, edits to them, and JSON as strangers write it."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import soundfile
from hypothesis import strategies as st

EXTREMES = (
    0,
    1,
    2,
    127,
    128,
    255,
    2**15 - 1,
    2**16 - 1,
    2**24 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
HOSTILE_TEXTS = (
    *(
        "",
        "-",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "a\0b",
        "\x1b]0;owned\x07",
        "\x9b31m",
        "\u202egnp.exe",
    ),
    *(
        "<script>alert(1)</script>",
        "</script>",
        "=1+1",
        "%s%n",
        "{0}",
        "${HOME}",
        "$(id)",
        "; id",
        "\ud800",
        "x" * 5000,
        "*",
        "[",
        "NaN",
        "1e999",
    ),
)


def sound(seconds: float = 0.3, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)[:, None] * np.linspace(0.5, 1, channels)
    return tone.astype(np.float32)


def encoded(
    kind: str, subtype: str | None = None, rate: int = 16_000, channels: int = 1, seconds: float = 0.3
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds, rate, channels), rate, format=kind, subtype=subtype)
    return file.getvalue()


def with_ffmpeg(container: str, codec: str, rate: int = 16_000) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound(0.3, rate).T), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def recordings() -> dict[str, bytes]:
    """Return a short recording in every container and codec, by name."""
    found = {
        "wav16": encoded("WAV", "PCM_16", channels=2),
        "wav24": encoded("WAV", "PCM_24"),
        "wavfloat": encoded("WAV", "FLOAT"),
        "adpcm": encoded("WAV", "IMA_ADPCM"),
        "gsm": encoded("WAV", "GSM610", rate=8000),
        "rf64": encoded("RF64", "PCM_16"),
        "w64": encoded("W64", "PCM_16"),
        "aiff": encoded("AIFF", "PCM_16"),
        "au": encoded("AU", "PCM_16"),
        "caf": encoded("CAF", "ALAC_16"),
        "flac": encoded("FLAC", channels=2),
        "vorbis": encoded("OGG", "VORBIS"),
        "opus": encoded("OGG", "OPUS", rate=48_000),
        "mp3": encoded("MP3", "MPEG_LAYER_III"),
    }
    found |= {
        "caf16": encoded("CAF", "PCM_16"),
        "chained": found["vorbis"] + found["opus"],
        "joined": found["mp3"] + b"TAG" + bytes(125) + found["mp3"],
    }
    more = {
        "mp4": ("mp4", "aac"),
        "webm": ("webm", "libopus"),
        "mkv": ("matroska", "flac"),
        "adts": ("adts", "aac"),
        "ts": ("mpegts", "aac"),
        "flv": ("flv", "aac"),
        "avi": ("avi", "pcm_s16le"),
    }
    return found | {name: with_ffmpeg(container, codec, 48_000) for name, (container, codec) in more.items()}


Edit = tuple[str, int, bytes]


@st.composite
def _edit(draw: Any) -> Edit:
    kind = draw(st.sampled_from(("set", "set", "set", "flip", "cut", "drop", "double", "insert")))
    place = draw(st.one_of(st.integers(0, 100), st.integers(0, 2**20)))
    if draw(st.booleans()):
        width, order = draw(st.sampled_from((1, 2, 3, 4, 8))), draw(st.sampled_from(("little", "big")))
        value = (draw(st.sampled_from(EXTREMES)) % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
    else:
        value = draw(st.binary(min_size=1, max_size=8))
    return kind, place, value


edits = st.lists(_edit(), min_size=1, max_size=6)


def edited(content: bytes, changes: list[Edit]) -> bytes:
    """Return content with edits: bytes set, flipped, left out, repeated, put in, or cut off at the end."""
    data = bytearray(content)
    for kind, place, value in changes:
        at = place % (len(data) + 1)
        if kind == "set":
            data[at : at + len(value)] = value
        elif kind == "flip" and data:
            data[at % len(data)] ^= value[0] or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + 1 + value[0]]
        elif kind == "double":
            data[at:at] = data[at : at + 256 * value[0]]
        elif kind == "insert":
            data[at:at] = value * (1 + value[0])
    return bytes(data)


def mended_ogg(content: bytes) -> bytes:
    """Return an Ogg file with right checksums, so that edits are seen by what lies below the pages."""
    data = bytearray(content)
    start = data.find(b"OggS")
    while start >= 0 and start + 27 <= len(data):
        end = data.find(b"OggS", start + 4)
        page = data[start : end if end > 0 else len(data)]
        page[22:26] = bytes(4)
        data[start + 22 : start + 26] = struct.pack("<I", _ogg_checksum(page))
        start = end
    return bytes(data)


_OGG_TABLE = []
for _byte in range(256):
    _value = _byte << 24
    for _ in range(8):
        _value = (_value << 1) ^ (0x04C11DB7 if _value & 0x80000000 else 0)
    _OGG_TABLE.append(_value & 0xFFFFFFFF)


def _ogg_checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _OGG_TABLE[(value >> 24) ^ byte]
    return value


def mended_tar(content: bytes) -> bytes:
    """Return a tar file in which every block that could be a header has its right checksum."""
    data = bytearray(content)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


_KINDS = (b"0", b"0", b"\0", b"1", b"5", b"7", b"L", b"K", b"x", b"x", b"g", b"S", b"X", b"Z")
_RECORDS = (
    *(
        b"",
        b"9 path=a\n",
        b"15 path=a.opus\n",
        b"13 size=1000\n",
        b"29 size=99999999999999999999\n",
        b"11 size=-1\n",
        b"22 GNU.sparse.major=1\n",
    ),
    *(
        b"9" * 4000 + b" ",
        b"0 \n",
        b"5 =\n\n",
        b"20 hdrcharset=BINARY\n",
        b"1" * 60_000,
        b"8 a=b\nx\n" * 900,
        b"\xff" * 40,
    ),
)


@st.composite
def tars(draw: Any) -> bytes:
    """Draw a tar file of headers of all kinds, with sizes that are right or vast, and records of pax."""
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        kind, content = (
            draw(st.sampled_from(_KINDS)),
            draw(st.sampled_from(_RECORDS)) * draw(st.sampled_from((1, 1, 1, 20))),
        )
        header = bytearray(512)
        header[:100] = draw(st.sampled_from((b"a.opus", b"a.json", b"../a.opus", b"/etc/passwd", b"\xff", b""))).ljust(
            100, b"\0"
        )
        size = draw(st.one_of(st.just(len(content)), st.just(len(content)), st.sampled_from(EXTREMES)))
        header[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
        header[156:157], header[257:265] = kind, draw(st.sampled_from((b"ustar\00000", b"ustar  \0", bytes(8))))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        parts += [bytes(header), content, bytes(-len(content) % 512)]
    return b"".join(parts) + bytes(draw(st.sampled_from((0, 512, 1024))))


@st.composite
def npy(draw: Any, content: bytes = b"") -> bytes:
    """Draw an .npy file whose header announces something else than what follows it."""
    kinds = (
        "'<U0'",
        "'<U4'",
        "'|S0'",
        "'|V0'",
        "'<f4'",
        "'<f2'",
        "'|u1'",
        "'|O'",
        "[]",
        "[('a', '|O')]",
        "'<U536870911'",
        "('<f4', (99999,))",
    )
    sizes = st.sampled_from((*EXTREMES, -1, 10**30, "True", "1.5"))
    shape = "".join(f"{size}, " for size in draw(st.lists(sizes, max_size=3)))
    order, kind = draw(st.sampled_from(("True", "False"))), draw(st.sampled_from(kinds))
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': ({shape}), }}".encode()
    text = draw(st.sampled_from((text, text, text, b"(" * 9000, b"-" * 9000 + b"1", b"[" * 900 + b"]" * 900)))
    return (
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", len(text) + 1)
        + text
        + b"\n"
        + (content or draw(st.binary(max_size=64)))
    )


def variants(
    files: Mapping[str, bytes], mend: Callable[[bytes], bytes] | None = None
) -> st.SearchStrategy[tuple[str, bytes]]:
    """Return edited files with the names of what they were."""

    def make(name: str, changes: list[Edit], mended: bool) -> tuple[str, bytes]:
        content = edited(files[name], changes)
        return name, mend(content) if mend is not None and mended else content

    return st.builds(make, st.sampled_from(sorted(files)), edits, st.booleans())


texts = st.one_of(st.sampled_from(HOSTILE_TEXTS), st.text(max_size=10))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((*EXTREMES, -1, -(2**63), 10**30, 10**400)),
    st.integers(-3, 40),
    st.sampled_from((0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -1.5)),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def changed(draw: Any, whole: Any) -> Any:
    """Draw a JSON value in which one or two places hold something else, are missing, or are new."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 2))):
        parent, key, here = None, None, value
        while isinstance(here, (dict, list)) and here and (parent is None or draw(st.integers(0, 3))):
            keys = sorted(here) if isinstance(here, dict) else range(len(here))
            parent, key = here, draw(st.sampled_from(list(keys)))
            here = parent[key]
        kind = draw(st.integers(0, 9))
        if parent is None:
            value = draw(values)
        elif kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[draw(texts)] = draw(values)
        elif kind == 2 and isinstance(parent, list):
            parent.append(draw(values))
        else:
            parent[key] = draw(values)
    return value


def dumped(value: Any) -> bytes:
    """Return JSON as UTF-8, lone surrogates and NaN included, as no careful writer would."""
    return json.dumps(value).encode()


def deep(levels: int, inner: str = "") -> str:
    """Return JSON lists in lists."""
    return "[" * levels + inner + "]" * levels


def deflated(n: int) -> bytes:
    """Return a million zeros, n times, as zlib writes them."""
    press = zlib.compressobj(9)
    return b"".join([*(press.compress(bytes(2**20)) for _ in range(n)), press.flush()])


_OPCODES = [bytes([code]) for code in b"(.012)NKJMR}]aedsuqrhjlt\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94QbioF"]
_ARGUMENTS = [
    *(
        b"\x80\x02",
        b"\x80\x04",
        b"K\x01",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"X\x01\x00\x00\x00a",
        b"X\xff\xff\xff\xffa",
    ),
    *(
        b"\x8c\x01b",
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"\x8a\x08" + b"\xff" * 8,
        b"\x8b\xff\xff\xff\x7f",
    ),
    *(
        b"q\x01",
        b"h\x01",
        b"j\x01\x00\x00\x00",
        b"r\xff\xff\xff\x7f",
        b"P1\n",
        b"\x95" + b"\xff" * 8,
        b"2\x86" * 40,
        b"\x82\x01",
    ),
    *(
        b"G" + b"\x7f" * 8,
        b"I" + b"9" * 5000 + b"\n",
        b"Vtext\n",
        b"S'a'\n",
        b"X\x02\x00\x00\x00id",
        b"X\x07\x00\x00\x00storage",
    ),
    *(
        b"cos\nsystem\n",
        b"ios\nsystem\n",
        b"cbuiltins\neval\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
    ),
    *(b"\x96" + (2**32).to_bytes(8, "little"), b"\x96" + (1).to_bytes(8, "little") + b"a", b"\x97", b"\x98"),
    *(
        b"\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x01s",
        b"\x8e" + (2**33).to_bytes(8, "little"),
        b"(" * 2000,
    ),
    *(b"X\x03\x00\x00\x00cpu", b"X\x01\x00\x00\x000"),
]


def pickles() -> st.SearchStrategy[bytes]:
    """Return pickles of instructions as they come, many of which no writer would put together."""
    return st.lists(st.sampled_from(_OPCODES + _ARGUMENTS), min_size=1, max_size=14).map(
        lambda parts: b"".join(parts) + b"."
    )
