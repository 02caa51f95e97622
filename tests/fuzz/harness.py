"""What watches over cases: errors, time, memory, files, processes, connections, and what pickles ask for."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dymn.errors import DymnError, ResourceError

CASE_SECONDS = 5
"""CPU time that a case may take; pauses of a busy machine do not count. What takes four times as long ends its process.
"""
CASE_WAIT = 300
"""Seconds after which a case that does nothing ends its process."""
CASE_MEMORY = 256
"""MiB that a case may take in addition to what the process has before it."""
MEMORY = 2 * 2**30
"""How much a process may take in addition to what it has at its start."""
_BEGINS = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.spawn",
    "socket.connect",
    "socket.bind",
)
_CHANGES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.chmod": 1,
    "os.truncate": 1,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """A case did what no input may make dymn do.

    Not an `Exception`, so that nothing takes it for an error of the input.
    """


class Watch:
    """Sees what Python does while a case runs. There is one in a process, as its hook cannot be taken off."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen = ""
        sys.dont_write_bytecode = True  # modules that a case imports would be written
        sys.addaudithook(self._hear)

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Allow files to be written in `folder` alone, and no process, connection or class of a pickle.

        Raises:
            Forbidden: at the end, if something else has been tried.
        """
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        self.folder, self.seen = folder.resolve(), ""
        try:
            yield
        finally:
            self.folder, tempfile.tempdir = None, before
        if self.seen:
            raise Forbidden(self.seen)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and not isinstance(path, int):
                self._written(path)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                self._written(path)
        elif event == "sqlite3.connect":
            self._written(arguments[0])
        elif event == "pickle.find_class":
            self._note(f"a pickle got {arguments}")
        elif event == "socket.connect" and arguments[1][0] == "127.0.0.1":
            return
        elif event.startswith(_BEGINS):
            self._note(f"{event} {arguments}")

    def _written(self, path: Any) -> None:
        assert self.folder is not None
        if isinstance(path, int) or os.fsdecode(path) in (":memory:", os.devnull):
            return
        where = Path(os.path.realpath(os.fsdecode(path)))
        if not where.is_relative_to(self.folder):
            self._note(f"{where} was written")

    def _note(self, what: str) -> None:
        self.seen = self.seen or what


@dataclass(frozen=True)
class Target:
    """A way into dymn.

    Attributes:
        cases: draws what comes in.
        take: gives it to dymn, in a folder of its own; returns whether it was taken (a refusal can be an answer, too).
        around: a context in which the cases run, such as a server.
    """

    cases: st.SearchStrategy[Any]
    take: Callable[[Any, Path], bool]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Outcome:
    """What became of cases."""

    taken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    largest: float = 0.0
    megabytes: float = 0.0

    @property
    def cases(self) -> int:
        return self.taken + sum(self.refused.values())


_watch: Watch | None = None


def run(target: Target, cases: int, number: int, folder: Path, limits: bool = False) -> Outcome:
    """Run cases of a target; the first that fails is made smaller and raised."""
    global _watch
    _watch = _watch or Watch()
    watch, outcome = _watch, Outcome()
    memory = memory_now()
    begun = time.process_time()

    @seed(number)
    @settings(
        max_examples=cases, database=None, deadline=None, phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    @given(target.cases)
    def check(case: Any) -> None:
        if limits:
            resource.setrlimit(
                resource.RLIMIT_CPU, (int(time.process_time()) + 4 * CASE_SECONDS, resource.RLIM_INFINITY)
            )
            faulthandler.dump_traceback_later(CASE_WAIT, exit=True)
        before, held = time.process_time(), forget_peak()
        try:
            with watch.over(folder):
                taken = target.take(case, folder)
            outcome.taken += taken
            outcome.refused["refused"] += not taken
        except DymnError as error:
            if isinstance(error, ResourceError) or any(isinstance(cause, MemoryError) for cause in causes(error)):
                raise Forbidden(f"it asked for memory without end: {error}") from error
            if not str(error).replace("\n", "").isprintable():
                raise Forbidden(f"a message holds what a terminal takes for commands: {str(error)!r}") from error
            outcome.refused[type(error).__name__] += 1
        seconds, more = time.process_time() - before, peak_memory() - held
        outcome.slowest, outcome.largest = max(outcome.slowest, seconds), max(outcome.largest, more)
        if limits and (seconds > CASE_SECONDS or more > CASE_MEMORY):
            raise Forbidden(
                f"it took {seconds:.1f} s and {more:.0f} MiB; at most {CASE_SECONDS} s and {CASE_MEMORY} MiB are "
                "allowed"
            )

    with target.around():
        check()
    outcome.seconds = time.process_time() - begun
    outcome.megabytes = memory_now() - memory
    faulthandler.cancel_dump_traceback_later()
    return outcome


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # they may go round in circles
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def memory_now() -> float:
    """Return how many MiB of memory this process takes."""
    return _status("VmRSS")


def peak_memory() -> float:
    """Return the most that it has taken since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> float:
    """Begin to look for the most memory anew, and return how much there is now."""
    with suppress(OSError):  # some systems do not allow it; the peak is then that of all cases so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_now()


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


def limit_memory() -> None:
    """Let this process take `MEMORY` bytes more of address space than it has; beyond, allocations fail."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
