"""Batches of windows of many requests: one thread computes, and the others submit windows and wait.

The queue needs no limit here: each thread submits one batch and waits for its result.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dymn.audio.windows import Filled
from dymn.runtime.backend import Backend, BackendOutput
from dymn.serve.errors import Refusal
from dymn.system.arrays import Floats

Compute: TypeAlias = Callable[[Floats], BackendOutput]


class Deadline:
    """The time by which a request must be complete, or that nobody waits for it any more."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = monotonic() + seconds
        self._awaited = threading.Event()

    def restart(self) -> None:
        """Start the same time again."""
        self._end = monotonic() + self._seconds

    def cancel(self) -> None:
        """Record that nobody waits any more, and end `wait`."""
        self._end = 0.0
        self._awaited.set()

    def wait(self, done: threading.Event) -> None:
        """Wait for an event; raise a Refusal if no time is left, or nobody waits any more."""
        self._awaited = done  # before `left` is read, so that no cancellation is missed
        if not done.wait(self.left):
            self.cancel()
        self.check()

    @property
    def left(self) -> float:
        """How many seconds are left, 0 or more."""
        return max(0.0, self._end - monotonic())

    def check(self) -> None:
        """Raise a Refusal if no time is left."""
        if not self.left:
            message = f"The response took more than {self._seconds:g} s. Send a shorter recording, or try again later."
            raise Refusal(503, "timeout", message, 1)


@dataclass(eq=False)
class _Call:
    """Rows of one thread; those from `next` on have not been computed."""

    compute: Compute
    rows: Floats
    deadline: Deadline
    key: tuple[Any, ...] = ()
    next: int = 0
    left: int = 0
    results: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.left = len(self.rows)
        self.results = [None] * len(self.rows)
        self.key = (self.compute, self.rows.shape[1:])


class Batcher:
    """A thread that computes. `compute` may be called from any number of others."""

    def __init__(
        self, batch_size: int, wait: float, computed: Callable[[int, float], None] = lambda windows, seconds: None
    ) -> None:
        """Prepare; `start` begins.

        Args:
            batch_size: the most rows computed at once.
            wait: how long, in seconds, the first row waits for others.
            computed: called with the number of rows of each batch, and the seconds that it took.
        """
        self._batch_size, self._wait, self._computed = batch_size, wait, computed
        self._calls: deque[_Call] = deque()
        self._arrived = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dymn-compute", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Compute what is waiting, and end."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def __call__(self, compute: Compute, rows: Floats, deadline: Deadline) -> BackendOutput:
        """Return compute(rows), batched with rows [B, ...] of other callers with the same function and shape.

        Raises:
            Refusal: if there is no time left.
        """
        deadline.check()
        call = _Call(compute, rows, deadline)
        with self._arrived:
            if self._closed:
                raise Refusal(503, "closing", "The server is shutting down. Try again in a moment.", 5)
            self._calls.append(call)
            self._arrived.notify_all()
        deadline.wait(call.done)
        if call.error is not None:
            raise call.error
        return BackendOutput(*(np.stack(parts) for parts in zip(*call.results, strict=True)))

    def _run(self) -> None:
        while (batch := self._gather()) is not None:
            if not batch:
                continue
            calls = list(dict.fromkeys(call for call, _ in batch))
            before = monotonic()
            try:
                results = calls[0].compute(np.stack([call.rows[i] for call, i in batch]))
                self._computed(len(batch), monotonic() - before)
                for (call, i), *result in zip(batch, *results, strict=True):
                    call.results[i] = result
                    call.left -= 1
            except BaseException as error:  # raised in the waiting threads
                for call in calls:
                    call.error = error
            for call in calls:
                if call.error is not None or call.left == 0:
                    call.done.set()

    def _gather(self) -> list[tuple[_Call, int]] | None:
        """Wait for rows and return those of the next batch: none if their callers have given up. None is the end."""
        with self._arrived:
            while not self._calls:
                if self._closed:
                    return None
                self._arrived.wait()
            key, until = self._calls[0].key, monotonic() + self._wait
            while self._waiting(key) < self._batch_size and not self._closed and (left := until - monotonic()) > 0:
                self._arrived.wait(left)
            return self._take(key)

    def _waiting(self, key: tuple[Any, ...]) -> int:
        return sum(len(call.rows) - call.next for call in self._calls if call.key == key)

    def _take(self, key: tuple[Any, ...]) -> list[tuple[_Call, int]]:
        batch: list[tuple[_Call, int]] = []
        kept: deque[_Call] = deque()
        for call in self._calls:
            if call.error is not None or not call.deadline.left:
                continue  # nobody waits for it
            while call.key == key and call.next < len(call.rows) and len(batch) < self._batch_size:
                batch.append((call, call.next))
                call.next += 1
            if call.next < len(call.rows):
                kept.append(call)
        self._calls = kept
        return batch


class BatchedBackend(Backend):
    """A model for one request: spectrograms are computed in its thread, the network in the thread shared by all."""

    def __init__(self, backend: Backend, batcher: Batcher, deadline: Deadline, max_windows: float = math.inf) -> None:
        """Let a request use `backend` until its deadline, for at most `max_windows` windows."""
        self.card, self.is_cpu, self.embedding_size = backend.card, backend.is_cpu, backend.embedding_size
        self._backend, self._batcher, self._deadline = backend, batcher, deadline
        self._max_windows, self._windows = max_windows, 0

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the input of `run` for each window."""
        return self._backend.features(self._counted(windows), hop)

    def waveform_features(self, waveforms: npt.NDArray[np.generic] | Any) -> npt.NDArray[np.float32]:
        """Return the input of `run` for waveforms [B, N], which do not count as windows of the request."""
        return self._backend.waveform_features(waveforms)

    def run(self, features: npt.NDArray[np.float32]) -> BackendOutput:
        """Return probabilities [B, C] and embeddings [B, D] of `features`; raise a Refusal if no time is left."""
        return self._batcher(self._backend.run, features, self._deadline)

    def _counted(self, windows: Iterable[Filled]) -> Iterator[Filled]:
        for window in windows:
            self._deadline.check()
            self._windows += 1
            if self._windows > self._max_windows:
                message = f"The recording has more than {self._max_windows} windows. Use a longer hop."
                raise Refusal(413, "too_many_windows", message)
            yield window
