"""From an accepted request to its response: admission, decoding threads, and one computing thread."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dymn import __version__
from dymn.audio import reading
from dymn.config import check, to_dict
from dymn.errors import AudioError
from dymn.inference.files import tag_files
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.tags import TAGS
from dymn.inference.formats.writers import json_lines
from dymn.inference.selection import Selection, TagSettings
from dymn.runtime.backend import Backend
from dymn.runtime.layers import LAST, parse_layers
from dymn.runtime.scores import ThresholdOrName
from dymn.runtime.vocabulary import Relabelled
from dymn.serve.answers import LayeredBackend, tag_and_embed
from dymn.serve.batching import BatchedBackend, Batcher, Deadline
from dymn.serve.errors import Refusal, refusal
from dymn.serve.metrics import Metrics
from dymn.serve.settings import ServeSettings
from dymn.serve.uploads import Arrival, Upload
from dymn.system.arrays import Floats

if TYPE_CHECKING:
    from dymn.inference.tagger import Tagger

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_PATTERNS = 4000
MAX_GREETING = 64
"""The most live connections that may wait with their first message; beyond, the one that has waited longest is closed.
"""
MAX_LAYERED = 8
"""How many choices of layers are kept ready; clients choose them."""


@dataclass(frozen=True)
class Question:
    """The parameters of a request.

    Attributes:
        model: by name; the first one if empty.
        settings: of tagging.
        timeline: whether to return the tags of each window, too.
        layers: of the embedding, as in `dymn embed --layer`; none if empty.
    """

    model: str = ""
    settings: TagSettings = field(default_factory=TagSettings)
    timeline: bool = False
    layers: str = ""


class Service:
    """Models, the threads that use them, and the queue before those.

    Attributes:
        metrics: the counters.
        settings: the limits.
        ready: whether requests are answered.
    """

    def __init__(self, taggers: Mapping[str, Tagger], settings: ServeSettings | None = None) -> None:
        """Prepare; `start` begins.

        Args:
            taggers: by the names under which they are served, the default one first.
            settings: the limits.

        Raises:
            ConfigError: if a model cannot compute windows of recordings, or only longer ones than the limit.
        """
        self.settings = settings or ServeSettings()
        self.metrics = Metrics()
        self.ready = False
        self._backends: dict[str, Backend] = {name: tagger.backend for name, tagger in taggers.items()}
        for name, backend in self._backends.items():
            check(
                (backend.seconds or 0) <= self.settings.max_window,
                f"The model {name} takes windows of {backend.seconds} s only; the server allows at most "
                f"{self.settings.max_window:g} s. Export it with --dynamic-time.",
            )
            backend.run(_silence(backend))  # an error before the server starts, if this model cannot be served
        self._with_layers: dict[tuple[Backend, tuple[str, ...]], Backend] = {}
        self._layered_lock = threading.Lock()
        first = next(iter(self._backends.values()))
        self._batcher = Batcher(
            self.settings.batch_size or first.batch_size, self.settings.batch_wait, self.metrics.computed
        )
        self._workers = ThreadPoolExecutor(self.settings.workers, "dymn-request")
        self._live = ThreadPoolExecutor(max(1, self.settings.live), "dymn-live", first.enter_worker)
        self._accepted: set[Arrival] = set()
        self._greeting: dict[asyncio.Future[Any], None] = {}
        self._connected = 0
        self._usual_seconds = 1.0

    @property
    def models(self) -> list[dict[str, Any]]:
        """What is served, the default one first."""
        return [
            {"name": name, "default": i == 0, "labels": len(backend.labels), "sample_rate": backend.sample_rate}
            | {
                "licence": backend.card.licence,
                "metrics": backend.card.metrics,
                "digest": str(backend.card.provenance.get("sha256", "")),
            }
            for i, (name, backend) in enumerate(self._backends.items())
        ]

    def start(self) -> None:
        """Start the threads and run each model once, so that the first request does not wait for initialisation."""
        first = next(iter(self._backends.values()))
        barrier = threading.Barrier(self.settings.workers + 1)

        def enter() -> None:
            first.enter_worker()
            barrier.wait()

        for _ in range(self.settings.workers):
            self._workers.submit(enter)
        barrier.wait()
        first.entered_workers()
        self._batcher.start()
        for backend in self._backends.values():
            self._batcher(backend.run, _silence(backend), Deadline(600))
        self.ready = True

    def close(self) -> None:
        """Finish what was accepted, and end."""
        self.ready = False
        self._workers.shutdown()
        self._live.shutdown()
        self._batcher.close()

    @contextmanager
    def admitted(self) -> Iterator[Arrival]:
        """Admit a request, from its first byte to its response; if all places are taken, a slow body loses its own.

        Raises:
            Refusal: if too many requests are in progress.
        """
        room = self.settings.workers + self.settings.queue
        if len(self._accepted) >= room and (slow := [arrival for arrival in self._accepted if arrival.is_slow]):
            slowest = min(slow, key=lambda arrival: arrival.speed)
            slowest.give_up()
            self._accepted.discard(slowest)
        if len(self._accepted) >= room:
            wait = min(60, math.ceil(self._usual_seconds * room / self.settings.workers))
            message = f"{room} requests are in progress, and the queue is full. Try again in {wait} s."
            raise Refusal(503, "queue_full", message, wait)
        arrival = Arrival()
        self._accepted.add(arrival)
        self.metrics.accepted.set(len(self._accepted))
        try:
            yield arrival
        finally:
            self._accepted.discard(arrival)
            self.metrics.accepted.set(len(self._accepted))

    async def answer(self, upload: Upload, question: Question, deadline: Deadline) -> dict[str, Any]:
        """Return the response about a recording, as JSON types, or raise a Refusal. Cancelling it cancels the work."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._workers, self._answer, upload, question, deadline)
        try:
            return await asyncio.wait_for(asyncio.shield(work), deadline.left)
        except (asyncio.TimeoutError, TimeoutError):
            deadline.cancel()
            deadline.check()
            raise
        except asyncio.CancelledError:
            deadline.cancel()
            raise
        finally:
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if nobody waited for it

    def _answer(self, upload: Upload, question: Question, deadline: Deadline) -> dict[str, Any]:
        before = monotonic()
        try:
            with upload:
                deadline.check()
                return self._computed(upload, question, deadline)
        except Exception as error:
            known = refusal(error)
            if known.status == 500:
                logger.exception("A request failed.")
            raise known from error
        finally:
            self._usual_seconds += 0.1 * (monotonic() - before - self._usual_seconds)

    def _computed(self, upload: Upload, question: Question, deadline: Deadline) -> dict[str, Any]:
        self._check_length(upload)
        layers = parse_layers(question.layers) if question.layers else ()
        chosen = self._layered(question.model, layers, question.settings.threshold)
        backend = BatchedBackend(chosen, self._batcher, deadline, self.settings.max_windows)

        def progress(name: str, seconds: float) -> None:
            self._check_seconds(seconds)

        if layers:
            recording, vector = tag_and_embed(backend, upload, question.settings, progress)
        else:
            recording = next(tag_files(backend, [upload], question.settings, progress=progress))
        if recording.error is not None:
            raise recording.error
        self._check_seconds(recording.seconds)
        self.metrics.audio.inc(recording.seconds)
        card = backend.card
        parameters = to_dict(question.settings) | {"hop": question.settings.hop or question.settings.window}
        parameters |= card.provenance.get("labels", {})
        digest = str(card.provenance.get("sha256", ""))
        origin = Origin(__version__, card.name or question.model, digest, parameters, question.timeline)
        answer: dict[str, Any] = json.loads("".join(json_lines([recording], TAGS, origin)))
        if layers:
            answer["embedding"] = {"layers": list(layers), "vector": [float(f"{value:.7g}") for value in vector]}
        return answer

    def _layered(self, model: str, layers: tuple[str, ...], threshold: ThresholdOrName = 0.0) -> Backend:
        """Return a model whose embeddings are those of some layers."""
        backend = self.backend(model, threshold)
        if layers in ((), (LAST,)):
            return backend
        with self._layered_lock:
            if (backend, layers) not in self._with_layers:
                if len(self._with_layers) >= MAX_LAYERED:
                    self._with_layers.pop(next(iter(self._with_layers)))
                self._with_layers[backend, layers] = LayeredBackend(backend, layers)
            return self._with_layers[backend, layers]

    def backend(self, name: str, threshold: ThresholdOrName = 0.0) -> Backend:
        """Return a model by its name, the default one for "", with scores of groups that fit a threshold.

        Raises a Refusal if it is not served, and a ConfigError if it has no such thresholds.
        """
        name = name or next(iter(self._backends))
        if name not in self._backends:
            raise Refusal(404, "model", f"There is no model {name[:100]!r}. Available: {', '.join(self._backends)}.")
        found = self._backends[name]
        return found.at(threshold) if isinstance(found, Relabelled) else found

    def check(self, question: Question) -> None:
        """Reject, before anything is received, what would be rejected afterwards.

        Raises:
            Refusal: if the model is not served, the windows are too long, or the patterns too many.
            ConfigError: if a label or layer is unknown.
        """
        for name in ("labels", "exclude"):  # each pattern is compared with each label
            letters = sum(len(pattern) + 1 for pattern in getattr(question.settings, name))
            if letters > MAX_PATTERNS:
                allowed = f"this server allows at most {MAX_PATTERNS}"
                raise Refusal(400, "setting", f"The patterns in {name} have {letters} characters; {allowed}.")
        Selection(self.backend(question.model, question.settings.threshold).card, question.settings)
        if question.layers:
            self._layered(question.model, parse_layers(question.layers), question.settings.threshold)
        for name, value in (("window", question.settings.window), ("hop", question.settings.hop or 0)):
            if value > self.settings.max_window:
                raise Refusal(
                    400, "setting", f"{name} is {value:g}; this server allows at most {self.settings.max_window:g} s."
                )

    def _check_length(self, upload: Upload) -> None:
        """Reject a recording that is too long according to its header, before it is decoded."""
        with suppress(AudioError):  # decoding raises it again
            seconds = reading.probe(upload).seconds
            self._check_seconds(seconds or 0.0)
        upload.seek(0)

    def _check_seconds(self, seconds: float) -> None:
        if seconds > self.settings.max_seconds:
            raise Refusal(
                413, "too_long", f"The recording is longer than {self.settings.max_seconds:g} s. Send it in parts."
            )

    async def greeting(self, message: Coroutine[Any, Any, T]) -> T:
        """Return the first message of a live connection; raise a Refusal if it does not arrive and others wait."""
        waiting = asyncio.ensure_future(message)
        self._greeting[waiting] = None
        if len(self._greeting) > MAX_GREETING:
            next(iter(self._greeting)).cancel()
        try:
            return await waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if waiting.cancelled() and not (task is not None and getattr(task, "cancelling", int)()):
                remedy = "Send the settings immediately after connecting."
                raise Refusal(503, "live_full", f"Too many connections are waiting. {remedy}", 5) from None
            raise
        finally:
            waiting.cancel()
            self._greeting.pop(waiting, None)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ThreadPoolExecutor]:
        """Admit a live connection, and yield the threads for it; raise a Refusal if there are too many."""
        if self._connected >= self.settings.live:
            message = f"The maximum number of live connections ({self.settings.live}) is reached. Try again later."
            raise Refusal(503, "live_full", message, 10)
        self._connected += 1
        self.metrics.live.set(self._connected)
        try:
            yield self._live
        finally:
            self._connected -= 1
            self.metrics.live.set(self._connected)

    def live_backend(self, model: str, deadline: Deadline, threshold: ThresholdOrName = 0.0) -> Backend:
        """Return a model for a live connection."""
        return BatchedBackend(self.backend(model, threshold), self._batcher, deadline)


def _silence(backend: Backend) -> Floats:
    """Return a silent window as the input of `run`, [1, ...], of 10 s unless the model requires another length."""
    return backend.waveform_features(np.zeros((1, round((backend.seconds or 10) * backend.sample_rate)), np.float32))
