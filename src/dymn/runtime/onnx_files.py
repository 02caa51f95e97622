"""Inspection of an ONNX file before ONNX Runtime opens it: it must be valid and contain all of its weights.

A tensor of an ONNX file may name another file and a place in it. What a runtime allows there depends on its version, so
dymn refuses it. The file is a message of protobuf (onnx.proto of ONNX): fields, each a tag with number and kind, then a
value, preceded by its length unless the kind implies it.
"""

from __future__ import annotations

from collections.abc import Iterator

from dymn.errors import WeightsError

MAX_FILE = 2**31 - 1  # what a message of protobuf may have
MAX_FIELDS = 2**21  # that are inspected; an exported network has some ten thousand
MAX_DEPTH = 32
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ORT_FORMAT = b"ORTM"  # at byte 4: ONNX Runtime's own format, which is no message of protobuf

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Of each message in which a tensor can be: the numbers of the fields that lead on to one."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor


def check_onnx(content: bytes, name: str) -> None:
    """Raise a `WeightsError` unless content is an ONNX file with all of its tensors."""
    try:
        if content[4:8] == _ORT_FORMAT:
            raise ValueError("it is in ONNX Runtime's own format")
        look = _Look(memoryview(content))
        look.into("model", 0, len(content), 0)
        if not look.has_graph:
            raise ValueError("it has no graph")
    except ValueError as error:
        raise WeightsError(
            f"{name} is not an ONNX file that dymn supports: {error}. Write one with dymn export."
        ) from error


class _Look:
    """A walk through a message."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.left, self.has_graph = content, MAX_FIELDS, False

    def into(self, kind: str, start: int, end: int, depth: int) -> None:
        """Look at a message and the tensors in it."""
        if depth > MAX_DEPTH:
            raise ValueError("its graphs are nested too deeply")
        for number, wire, value, stop in self.fields(start, end):
            if kind == "tensor":
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    raise ValueError("its weights are in another file")
            elif (part := _PARTS[kind].get(number)) is not None:
                if wire != _BYTES:
                    raise ValueError(f"field {number} of a {kind} has an unexpected type")
                self.has_graph |= kind == "model" and part == "graph"
                self.into(part, value, stop, depth + 1)

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number and kind of each field, and its number (of a varint), or where it begins, and ends."""
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            tag, at = self.varint(at, end)
            if tag >= 2**32:
                raise ValueError("a field has an invalid number")
            wire, value = tag & 7, at
            if wire == _VARINT:
                value, at = self.varint(at, end)
            elif wire == _BYTES:
                length, value = self.varint(at, end)
                at = value + length
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"a field has the unsupported type {wire}")
            if at > end:
                raise ValueError("it ends within a field")
            yield tag >> 3, wire, value, at

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the number that begins at a byte, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self.content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("it contains an incomplete number")
