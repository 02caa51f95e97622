"""The positions of the files in a tar archive, in time and memory proportional to their number.

The standard library's reader keeps every header for ever, copies the global ones for each file, reads a name of any
length, and follows sizes backwards. This one reads the headers with which shards are written (ustar, GNU and pax,
uncompressed), within bounds, and rejects all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dymn.errors import DataError
from dymn.system.files import open_regular

BLOCK = 512
MAX_NAME = 2**12  # bytes of a name in a header of its own (GNU)
MAX_RECORDS = 2**16  # bytes of the records of a file (pax)
_FILES = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and pipes


class Member(NamedTuple):
    """A file inside an uncompressed tar file: where its bytes are."""

    path: Path
    offset: int
    size: int


def tar_members(path: Path) -> dict[str, Member]:
    """Return the regular files of a tar archive by name, in the archive's order.

    Raises:
        DataError: if the archive cannot be read, is compressed or cut, or names a file twice.
    """
    try:
        with open_regular(path) as file:
            return _Reader(path, file).members()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not an uncompressed tar archive, or is damaged: {error}.") from error


class _Header(NamedTuple):
    """The description of the file that follows a header block."""

    name: str
    size: int
    kind: bytes


class _Reader:
    """Reads an archive from its first header to its last."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.end = file.seek(0, 2)
        self.at = 0

    def members(self) -> dict[str, Member]:
        """Return the regular files."""
        found: dict[str, Member] = {}
        records: dict[str, str] = {}  # of the next file, from headers before its own
        while (header := self.header()) is not None:
            if header.kind == b"L":
                records["path"] = self.text(header, MAX_NAME).partition("\0")[0]
                continue
            if header.kind in (b"x", b"X"):
                records |= _records(self.text(header, MAX_RECORDS))
                continue
            if header.kind == b"S" or any(key.startswith("GNU.sparse") for key in records):
                raise DataError(f"{self.path} contains {header.name!r} as a sparse file; create the archive again.")
            name = records.get("path", header.name)
            size = _number(records["size"], name) if "size" in records else header.size
            offset = self.skip(0 if header.kind in _WITHOUT_CONTENT else size, name)
            if header.kind in _FILES and not name.endswith("/"):
                name = name.removeprefix("./")
                if name in found:
                    raise DataError(f"{self.path} contains {name!r} twice.")
                found[name] = Member(self.path, offset, size)
            if header.kind not in (b"K", b"g"):  # those two, too, belong to the next file
                records = {}
        return found

    def header(self) -> _Header | None:
        """Return the next header, None at the end of the archive."""
        self.file.seek(self.at)
        block = self.file.read(BLOCK)
        if not block or (len(block) == BLOCK and not block.strip(b"\0")):
            return None
        if len(block) < BLOCK:
            raise ValueError(f"it ends within a header at byte {self.at:,}")
        total = sum(block) - sum(block[148:156]) + 8 * 32
        signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if _octal(block[148:156]) not in (total, signed):
            raise ValueError(f"its header at byte {self.at:,} has a wrong checksum")
        self.at += BLOCK
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = f"{_text(block[345:500])}/{name}"
        return _Header(name, _size(block[124:136], name, self.path), block[156:157])

    def text(self, header: _Header, most: int) -> str:
        """Return what follows a header as text."""
        if header.size > most:
            raise ValueError(f"it has a name or records of {header.size:,} bytes; at most {most:,} are read")
        self.file.seek(self.skip(header.size, header.name))
        return self.file.read(header.size).decode("utf-8", "surrogateescape")

    def skip(self, size: int, name: str) -> int:
        """Move behind the bytes of a file, and return where they begin."""
        offset = self.at
        self.at += -(-size // BLOCK) * BLOCK
        if offset + size > self.end:
            raise ValueError(f"it ends within {name!r}; copy or download it again")
        return offset


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _octal(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip()
    return int(digits, 8) if digits else 0


def _size(field: bytes, name: str, path: Path) -> int:
    """Return a size in octal digits, or, if it is too large for these, as a binary number."""
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1 if field[0] == 0xFF else _octal(field)
    if size < 0:
        raise DataError(f"{path} contains {name!r} without a size; create the archive again.")
    return size


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"the size of {name!r} is {text!r:.40}")
    return int(text)


def _records(text: str) -> dict[str, Any]:
    """Return the records of a pax header, each "LENGTH KEY=VALUE" and a line feed, LENGTH in bytes of all of it."""
    found, content, at = {}, text.encode("utf-8", "surrogateescape"), 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 12)
        length = _number(content[at:space].decode("ascii", "replace"), "its records") if space > 0 else 0
        record = content[space + 1 : at + length]
        if length <= space - at or at + length > len(content) or record[-1:] != b"\n":
            raise ValueError("a record of its headers has a wrong length")
        key, _, value = record[:-1].decode("utf-8", "surrogateescape").partition("=")
        found[key] = value
        at += length
    return found
