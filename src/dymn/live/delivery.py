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
"""Interval between two notes about a failing receiver."""
CLOSE_SECONDS = 5.0


class DeliveryError(Exception):
    """A message could not be delivered; the text states the reason."""


class Delivery(ABC):
    """Delivers messages one after the other in its own thread. Messages beyond its queue are dropped and counted.

    Attributes:
        name: its name in notes.
        failed: number of messages that could not be delivered.
        dropped: number of messages for which the queue had no space, or that were still in it at the end.
    """

    name: str

    def __init__(self, note: Callable[[str], None]) -> None:
        """Prepare; `note` is called with messages for the user."""
        self.failed = self.dropped = 0
        self._note = note
        self._queue: queue.Queue[Message] = queue.Queue(QUEUE)
        self._closing = threading.Event()
        self._noted = (0, 0)
        self._noted_at = -NOTE_SECONDS
        self._why = "they were still in the queue"
        self._thread = threading.Thread(target=self._run, name=f"dymn {self.name}", daemon=True)

    def start(self, source: str, labels: Sequence[str]) -> None:
        """Begin to deliver messages of a source, which may have these labels."""
        self._thread.start()

    @abstractmethod
    def wants(self, message: Message) -> bool:
        """Whether a message is for this delivery."""

    @abstractmethod
    def deliver(self, message: Message) -> None:
        """Deliver a message; called in the thread.

        Raises:
            DeliveryError: if the message cannot be delivered.
        """

    def offer(self, message: Message) -> None:
        """Queue a message if it is wanted, without waiting."""
        if self.wants(message):
            try:
                self._queue.put_nowait(message)
            except queue.Full:
                self.dropped += 1
        self._report()

    def close(self) -> None:
        """Deliver the queued messages, for at most `CLOSE_SECONDS`, and end the thread."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._queue.unfinished_tasks and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        self._closing.set()
        self.dropped += self._queue.unfinished_tasks
        self._noted_at = -NOTE_SECONDS
        self._report()

    def _report(self) -> None:
        """Print a note with the number of messages that were not delivered since the last note."""
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
