"""The pages of an Ogg file (RFC 3533): its chained links, whether its last page is present, and trailing data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dymn.audio.content import Content

_HEADER = 27
_LONGEST = _HEADER + 255 + 255 * 255
_READ = 2**20
_BEGINS, _ENDS = 2, 4
MAX_LINKS = 10_000
_MOST_STREAMS = 1_000


class Link(NamedTuple):
    """A part of an Ogg file that is a complete file itself: where it starts and ends, in bytes."""

    start: int
    end: int


@dataclass(frozen=True)
class Pages:
    """The properties of an Ogg file according to its pages.

    Attributes:
        links: one after the other.
        cut: whether the last page is incomplete.
        ended: whether a page ends the stream of the last link.
        skipped: how many bytes between and behind the pages belong to none.
        lost: whether the numbers of the pages have a gap.
    """

    links: tuple[Link, ...]
    cut: bool
    ended: bool
    skipped: int
    lost: bool


class _Page(NamedTuple):
    start: int
    end: int
    flags: int
    stream: bytes
    number: int
    skipped: int
    """Bytes between the page before and this one."""


def pages(content: Content, base: int = 0) -> Pages | None:
    """Read the headers of all pages; None if there is no Ogg page at `base`."""
    if content.at(base, 5) != b"OggS\0":
        return None
    starts: list[int] = [base]
    begins, ended, lost, skipped, end = True, False, False, 0, base
    numbers: dict[bytes, int] = {}
    for page in _walk(content, base):
        skipped += page.skipped
        if page.flags & _BEGINS and len(numbers) > _MOST_STREAMS:
            numbers.clear()
        lost = lost or (not page.flags & _BEGINS and page.number != numbers.get(page.stream, page.number - 1) + 1)
        numbers[page.stream] = page.number
        first = bool(page.flags & _BEGINS)
        if first and not begins and len(starts) < MAX_LINKS:
            starts.append(page.start)
            ended = False
        begins = first
        ended = ended or bool(page.flags & _ENDS)
        end = page.end
    cut = end > content.size
    skipped += max(0, content.size - end)
    return Pages(links(starts, content.size), cut, ended and not cut, skipped, lost)


def links(starts: Sequence[int], end: int) -> tuple[Link, ...]:
    """Return parts that follow each other, from where each starts."""
    return tuple(Link(*pair) for pair in zip(starts, [*starts[1:], end], strict=True))


def _walk(content: Content, position: int) -> Iterator[_Page]:
    """Yield pages in their order; what is between them is searched for the next one."""
    buffer, at, skipped = b"", position, 0
    while True:
        offset = position - at
        if offset < 0 or len(buffer) - offset < _LONGEST:
            buffer, at, offset = content.at(position, _READ), position, 0
        if len(buffer) - offset < 5:
            return
        if buffer[offset : offset + 5] != b"OggS\0":
            found = buffer.find(b"OggS\0", offset)
            step = (found if found >= 0 else max(offset + 1, len(buffer) - 4)) - offset
            position, skipped = position + step, skipped + step
            continue
        count = buffer[offset + 26] if len(buffer) > offset + 26 else 255
        table = buffer[offset + _HEADER : offset + _HEADER + count]
        end = position + _HEADER + count + (sum(table) if len(table) == count else content.size)
        header = buffer[offset : offset + _HEADER].ljust(_HEADER, b"\0")
        yield _Page(position, end, header[5], header[14:18], int.from_bytes(header[18:22], "little"), skipped)
        position, skipped = end, 0
