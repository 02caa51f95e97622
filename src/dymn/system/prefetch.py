"""Parallel work on several sources, with results in order and in bounded memory.

Decoding and resampling are C code that releases Python's lock, so threads are sufficient: no processes are started, and
nothing is copied.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Generic, NamedTuple, TypeVar

from dymn.errors import ConfigError

S = TypeVar("S")
T = TypeVar("T")

MAX_WORKERS = 1024
ITEMS_AHEAD = 4
"""How many results of one source wait at most; a long source then waits for its reader."""
_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 2.0
_EXIT_SECONDS = 10.0
_running: dict[threading.Event, list[threading.Thread]] = {}
"""The threads that work, by what stops them."""


@atexit.register
def _stop_all() -> None:
    """Let threads end before Python does: it would abort the process if it stopped one within a library in C++."""
    for stop in _running:
        stop.set()
    end = time.monotonic() + _EXIT_SECONDS
    for thread in itertools.chain.from_iterable(_running.values()):
        thread.join(max(0.0, end - time.monotonic()))


class _End:
    """The end of a source's results, with the error that ended them, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


@dataclass
class _Job(Generic[S, T]):
    source: S
    results: Queue[T | _End] = field(default_factory=lambda: Queue(ITEMS_AHEAD))


def _nothing() -> None:
    pass


class Team(NamedTuple):
    """Threads that work ahead.

    Attributes:
        workers: how many; with 0, the caller's thread does the work when a result is needed.
        taken_at_once: how many sources the reader may need at once; two more per thread are begun.
        enter: called in each thread at its start.
        entered: called in the caller's thread after that.
    """

    workers: int = 0
    taken_at_once: int = 1
    enter: Callable[[], None] = _nothing
    entered: Callable[[], None] = _nothing


def ahead(work: Callable[[S], Generator[T, None, None]], sources: Iterable[S], team: Team) -> Iterator[T]:
    """Yield the results of `work(source)`, source after source, while threads work on the next sources.

    Sources are taken in the caller's thread. When the iterator is closed or fails, threads end at their next result;
    none of them keeps the program from ending.

    Args:
        work: a generator of a source's results; run in one of the threads.
        sources: in the order of the results.
        team: the threads.

    Raises:
        ConfigError: at once, if there are fewer than 0 threads, or more than `MAX_WORKERS`.
        BaseException: what `work` raised, where its results end.
    """
    if not 0 <= team.workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {team.workers}; it must be from 0 to {MAX_WORKERS}.")
    return _ahead(work, sources, team)


def _ahead(work: Callable[[S], Generator[T, None, None]], sources: Iterable[S], team: Team) -> Iterator[T]:
    if team.workers == 0:
        for source in sources:
            yield from work(source)
        return
    jobs: Queue[_Job[S, T] | None] = Queue()
    stop = threading.Event()
    ready = threading.Barrier(team.workers + 1)

    def run() -> None:
        team.enter()
        ready.wait()
        while (job := jobs.get()) is not None:
            _run(work, job, stop)

    threads = [threading.Thread(target=run, name=f"dymn-decode-{i}", daemon=True) for i in range(team.workers)]
    for thread in threads:
        thread.start()
    _running[stop] = threads
    try:
        ready.wait()
        team.entered()
        yield from _in_order(jobs, iter(sources), team.taken_at_once + 2 * team.workers)
    finally:
        stop.set()
        with suppress(Empty):
            while True:
                jobs.get_nowait()
        for _ in threads:
            jobs.put(None)
        for thread in threads:
            thread.join(_CLOSE_SECONDS)
        if not any(thread.is_alive() for thread in threads):
            del _running[stop]


def _run(work: Callable[[S], Generator[T, None, None]], job: _Job[S, T], stop: threading.Event) -> None:
    """Do a job; whatever happens, its results have an end."""
    error: BaseException | None = None
    try:
        with closing(work(job.source)) as results:
            for result in results:
                _put(job.results, result, stop)
                if stop.is_set():
                    return
    except BaseException as failure:
        error = failure
    _put(job.results, _End(error), stop)


def _put(queue: Queue[T | _End], result: T | _End, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(Full):
            queue.put(result, timeout=_POLL_SECONDS)
            return


def _in_order(jobs: Queue[_Job[S, T] | None], sources: Iterator[S], sources_ahead: int) -> Iterator[T]:
    begun: deque[_Job[S, T]] = deque()
    while True:
        while len(begun) < sources_ahead:
            try:
                job: _Job[S, T] = _Job(next(sources))
            except StopIteration:
                break
            begun.append(job)
            jobs.put(job)
        if not begun:
            return
        result = begun[0].results.get()
        if not isinstance(result, _End):
            yield result
            continue
        begun.popleft()
        if result.error is not None:
            raise result.error
