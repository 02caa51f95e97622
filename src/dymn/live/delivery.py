"""Deliveries: a thread with a bounded queue for each receiver, so that listening never waits for one."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from dymn.live.messages import Message

QUEUE = 200
NOTE_SECONDS = 60.0
"""A receiver that goes on failing is mentioned once in so long."""
CLOSE_SECONDS = 5.0


class DeliveryError(Exception):
    """A message could not be delivered; the text says why."""


class Delivery(ABC):
    """Delivers messages one after the other in a thread of its own. What does not fit its queue is dropped and counted.

    Attributes:
        name: what it is called in notes.
        failed: number of messages that could not be delivered.
        dropped: number of messages that did not fit the queue, or were left at the end.
    """

    name: str

    def __init__(self, note: Callable[[str], None]) -> None:
        """Prepare; `note` is called with what the user should know."""
        self.failed = self.dropped = 0
        self._note = note
        self._queue: queue.Queue[Message] = queue.Queue(QUEUE)
        self._closing = threading.Event()
        self._noted = (0, 0)
        self._noted_at = -NOTE_SECONDS
        self._why = "they were still in the queue"
        self._thread = threading.Thread(target=self._run, name=f"dymn {self.name}", daemon=True)

    def start(self, source: str, labels: Sequence[str]) -> None:
        """Begin to deliver messages of a source, in which these labels may be heard."""
        self._thread.start()

    @abstractmethod
    def wants(self, message: Message) -> bool:
        """Whether a message is for this delivery."""

    @abstractmethod
    def deliver(self, message: Message) -> None:
        """Deliver a message; in the thread.

        Raises:
            DeliveryError: if that failed for good.
        """

    def offer(self, message: Message) -> None:
        """Take a message if it is wanted; never waits."""
        if self.wants(message):
            try:
                self._queue.put_nowait(message)
            except queue.Full:
                self.dropped += 1
        self._report()

    def close(self) -> None:
        """Deliver what is left, for a few seconds, and end the thread."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._queue.unfinished_tasks and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        self._closing.set()
        self.dropped += self._queue.unfinished_tasks
        self._noted_at = -NOTE_SECONDS
        self._report()

    def _report(self) -> None:
        """Say what was not delivered since the last note."""
        counts = self.failed, self.dropped
        if counts != self._noted and time.monotonic() - self._noted_at >= NOTE_SECONDS:
            failed, dropped = counts[0] - self._noted[0], counts[1] - self._noted[1]
            self._note(f"{self.name}: {failed + dropped} messages were not delivered ({self._why}).")
            self._noted, self._noted_at = counts, time.monotonic()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                message = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                self.deliver(message)
            except DeliveryError as error:
                self._why = str(error)
                self.failed += 1
            except Exception as error:
                self._why = f"{type(error).__name__}: {error}"
                self.failed += 1
            finally:
                self._queue.task_done()
