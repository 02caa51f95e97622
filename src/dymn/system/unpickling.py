"""A reader of pickles for untrusted files: it builds data and executes nothing.

Python's own unpickler can call any function, change any object, and reserve as much memory as a file requests. This one
supports the operations that data need, within bounds, and rejects all others. It reads from bytes in memory, so
that no length can exceed the file; numbers are at most 128 bits long; keys of dicts are text, whose hashes nobody
can choose; and the number of containers is bounded, since an empty one takes sixty times the byte that makes it.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_CONTAINERS = 2**18  # lists, tuples, dicts and objects of one pickle
MAX_NUMBER = 16  # bytes of a whole number
MAX_LINE = 1024  # bytes of a number or a name that is written as text
FAILURES = (ValueError, TypeError, LookupError, OverflowError, struct.error)
"""The exceptions that a damaged or hostile pickle makes `load` raise."""
ARCHIVE_FAILURES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What a damaged or hostile archive makes zipfile raise; a RuntimeError where it needs a password or a packing that
zipfile lacks.
"""


class Call(NamedTuple):
    """Stands for a function or class that a pickle names; `make` is called in its place."""

    make: Callable[..., Any]


class Stateful:
    """An object whose state a pickle may set."""

    def set_state(self, state: Any) -> None:
        """Take the state, or ignore it."""


Globals = Mapping[tuple[str, str], Any]
_MARK = object()


def load(
    content: bytes,
    allowed: Globals | None = None,
    persistent: Callable[[Any], Any] | None = None,
    max_containers: int = MAX_CONTAINERS,
) -> Any:
    """Return what a pickle holds: None, bool, int, float, str, bytes, and lists, tuples and dicts of these.

    Args:
        content: the pickle, from its first byte; anything after its end is ignored.
        allowed: the value, or a `Call`, of each (module, name) to which it may refer.
        persistent: what to make of a persistent id, such as PyTorch's storages.
        max_containers: how many lists, tuples, dicts and objects it may build.

    Raises:
        one of `FAILURES`: if the pickle does anything else.
    """
    return _Machine(content, allowed or {}, persistent, max_containers).run()


class _Machine:
    """The stack, the memo, and the place in a pickle."""

    def __init__(
        self, content: bytes, allowed: Globals, persistent: Callable[[Any], Any] | None, max_containers: int
    ) -> None:
        self.content, self.at = content, 0
        self.allowed, self.persistent, self.left = allowed, persistent, max_containers
        self.stack: list[Any] = []
        self.memo: list[Any] = []

    def run(self) -> Any:
        """Execute operations until the last one."""
        operations = _OPERATIONS
        while True:
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            if code not in operations:
                raise ValueError(f"it uses the operation {bytes([code])!r}, which data do not need")
            operations[code](self)

    def take(self, n: int) -> bytes:
        """Return the next n bytes."""
        start, self.at = self.at, self.at + n
        if self.at > len(self.content):
            raise ValueError("it ends too early")
        return self.content[start : self.at]

    def number(self, size: int) -> int:
        """Return the next whole number without a sign, of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def line(self, encoding: str = "utf-8") -> str:
        """Return the text up to the end of the line."""
        end = self.content.find(b"\n", self.at, self.at + MAX_LINE)
        if end < 0:
            raise ValueError("it has a line without an end")
        text = self.content[self.at : end].decode(encoding)
        self.at = end + 1
        return text

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("it reads more values than there are")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Remove the values above the last mark, and the mark, and return the values."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def push_new(self, value: Any) -> None:
        """Put a container or an object on the stack."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("it contains too many lists, tuples and dicts")
        self.stack.append(value)

    def top(self, kind: type) -> Any:
        """Return the top of the stack, which must be of this type."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"it uses a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        """Store the top of the stack in the memo, whose places are filled in order (from 0, or from 1 by Python 2)."""
        if self.stack[-1] is _MARK or not 0 <= index <= len(self.memo) + 1:
            raise ValueError("it stores values out of order")
        while len(self.memo) <= index:
            self.memo.append(_MARK)
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Put a value of the memo on the stack."""
        value = self.memo[index] if 0 <= index < len(self.memo) else _MARK
        if value is _MARK:
            raise ValueError("it reads a value that was not stored")
        self.stack.append(value)

    def set_items(self, pairs: list[Any]) -> None:
        """Put keys and values, in turn, into the dict on the stack."""
        target = self.top(dict)
        if len(pairs) % 2:
            raise ValueError("it contains a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                raise ValueError(f"it contains a dict with a {type(key).__name__} as a key")
            target[key] = value

    def find(self, module: Any, name: Any) -> None:
        """Put the value of a name on the stack."""
        if not (type(module) is type(name) is str) or (module, name) not in self.allowed:
            raise ValueError(
                f"it refers to {module!s:.100}.{name!s:.100}"
                if type(module) is type(name) is str
                else "it refers to an empty name"
            )
        self.stack.append(self.allowed[module, name])

    def call(self) -> None:
        """Put the result of a call on the stack."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Call) or type(arguments) is not tuple:
            raise ValueError("it calls an object that is not a function")
        self.push_new(function.make(*arguments))

    def set_state(self) -> None:
        """Set the state of the object on the stack."""
        state = self.pop()
        self.top(Stateful).set_state(state)

    def make_dict(self) -> None:
        """Put a dict of the items above the mark on the stack."""
        pairs = self.pop_to_mark()
        self.push_new({})
        self.set_items(pairs)

    def load_persistent(self) -> None:
        """Put the value of a persistent id on the stack."""
        if self.persistent is None:
            raise ValueError("it refers to data outside the file")
        self.push_new(self.persistent(self.pop()))

    def tuple_of(self, n: int) -> None:
        """Put the last n values as a tuple on the stack."""
        values = [self.pop() for _ in range(n)]
        self.push_new(tuple(values[::-1]))

    def long(self, size: int) -> None:
        """Put a number of so many bytes with a sign on the stack."""
        if size > MAX_NUMBER:
            raise ValueError(f"it contains a number of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def decimal(self, text: str) -> None:
        """Put a number in decimal notation on the stack; 00 and 01 are False and True."""
        if len(text) > 40:
            raise ValueError(f"it contains a number of {len(text)} digits")
        self.stack.append(text == "01" if text in ("00", "01") else int(text.removesuffix("L")))

    def extend(self, values: list[Any]) -> None:
        """Append to the list on the stack."""
        self.top(list).extend(values)

    def text(self, size: int) -> None:
        """Put a text of so many bytes on the stack."""
        self.stack.append(self.take(size).decode("utf-8", "surrogatepass"))

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)


def _framed(machine: _Machine) -> None:
    machine.take(8)  # the length of a frame, which nothing depends on


def _global(machine: _Machine) -> None:
    module = machine.line()
    machine.find(module, machine.line())


def _stack_global(machine: _Machine) -> None:
    name = machine.pop()
    machine.find(machine.pop(), name)


def _proto(machine: _Machine) -> None:
    if machine.take(1)[0] > 5:
        raise ValueError("it has an unsupported protocol version")


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: _proto,
    0x95: _framed,
    ord("("): lambda m: m.push(_MARK),
    ord("0"): lambda m: m.pop(),
    ord("1"): lambda m: m.pop_to_mark(),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): lambda m: m.decimal(m.line()),
    ord("L"): lambda m: m.decimal(m.line()),
    ord("J"): lambda m: m.long(4),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    0x8A: lambda m: m.long(m.number(1)),
    0x8B: lambda m: m.long(m.number(4)),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("V"): lambda m: m.push(m.line("raw-unicode-escape")),
    ord("X"): lambda m: m.text(m.number(4)),
    0x8C: lambda m: m.text(m.number(1)),
    0x8D: lambda m: m.text(m.number(8)),
    ord("T"): lambda m: m.text(m.number(4)),  # of Python 2
    ord("U"): lambda m: m.text(m.number(1)),
    ord("B"): lambda m: m.push(m.take(m.number(4))),
    ord("C"): lambda m: m.push(m.take(m.number(1))),
    0x8E: lambda m: m.push(m.take(m.number(8))),
    ord(")"): lambda m: m.push_new(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): lambda m: m.push_new(tuple(m.pop_to_mark())),
    ord("]"): lambda m: m.push_new([]),
    ord("l"): lambda m: m.push_new(m.pop_to_mark()),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.pop_to_mark()),
    ord("}"): lambda m: m.push_new({}),
    ord("d"): lambda m: m.make_dict(),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("p"): lambda m: m.remember(int(m.line()[:20])),
    ord("q"): lambda m: m.remember(m.number(1)),
    ord("r"): lambda m: m.remember(m.number(4)),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("g"): lambda m: m.recall(int(m.line()[:20])),
    ord("h"): lambda m: m.recall(m.number(1)),
    ord("j"): lambda m: m.recall(m.number(4)),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): lambda m: m.call(),
    ord("b"): lambda m: m.set_state(),
    ord("Q"): lambda m: m.load_persistent(),
}
