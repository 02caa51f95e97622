"""Results in order, bounded, and an end to every thread."""

import subprocess
import sys
import threading
import time

import pytest

from dymn.system.prefetch import ITEMS_AHEAD, Team, ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dymn-decode")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_their_sources(workers):
    def work(n):
        for i in range(n):
            time.sleep(0.001 * (n % 3))
            yield n, i

    sources = [9, 0, 4, 1, 1, 30, 2]
    assert list(ahead(work, sources, Team(workers, 4))) == [(n, i) for n in sources for i in range(n)]
    assert not threads()


def test_sources_are_worked_on_at_the_same_time():
    barrier = threading.Barrier(3)

    def work(i):
        barrier.wait(timeout=10)
        yield i

    assert list(ahead(work, range(3), Team(3))) == [0, 1, 2]


def test_what_waits_is_bounded():
    taken, made = [], []

    def sources():
        for i in range(1000):
            taken.append(i)
            yield i

    def work(i):
        for k in range(1000):
            made.append((i, k))
            yield i

    results = ahead(work, sources(), Team(2))
    next(results)
    time.sleep(0.3)
    assert len(taken) == 5
    assert len(made) <= 2 * (ITEMS_AHEAD + 2)
    results.close()
    assert not threads()


def test_an_error_comes_where_it_belongs_and_ends_the_rest():
    def work(i):
        yield i
        if i == 2:
            raise KeyError("two")

    results = ahead(work, range(100), Team(2))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="two"):
        next(results)
    assert not threads()


def test_an_error_of_the_sources_ends_the_threads():
    def sources():
        yield 1
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(ahead(lambda i: (x for x in [i]), sources(), Team(2)))
    assert not threads()


def test_generators_are_closed_where_they_were_run():
    closed = []

    def work(i):
        try:
            while True:
                yield i
        finally:
            closed.append(threading.current_thread().name)

    results = ahead(work, range(2), Team(2))
    next(results)
    results.close()
    assert len(closed) <= 2 and all(name.startswith("dymn-decode") for name in closed)
    assert not threads()


def test_threads_say_that_they_begin_before_the_caller_goes_on():
    calls = []
    team = Team(3, enter=lambda: calls.append("worker"), entered=lambda: calls.append("caller"))
    list(ahead(lambda i: (x for x in [i]), [1], team))
    assert calls == ["worker"] * 3 + ["caller"]


BUSY = """
import torch
from dymn.system.prefetch import Team, ahead
torch.set_num_threads(1)

def work(n):
    x = torch.randn(64, 64)
    while True:
        for _ in range(1000):
            torch.matmul(x, x)
        yield 1

found = ahead(work, range(4), Team(2))
next(found)
{}
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("from dymn.system.signals import leave; leave(3)", 3)])
def test_threads_within_pytorch_do_not_abort_the_end(last, code):
    """Python stops daemon threads when it ends; within C++, this aborts the process."""
    done = subprocess.run([sys.executable, "-c", BUSY.format(last)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")
