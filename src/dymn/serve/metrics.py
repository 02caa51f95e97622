"""The service's counters for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dymn import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WINDOWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service; each has its own, so that several can live in a process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self.answers = Counter("dymn_answers", "Responses to requests for tags, by status.", ["status"], registry=r)
        self.refused = Counter(
            "dymn_refused", "Rejected requests and live connections, by reason.", ["code"], registry=r
        )
        self.seconds = Histogram(
            "dymn_request_seconds", "Time from the arrival of a request to its response.", buckets=_SECONDS, registry=r
        )
        self.accepted = Gauge(
            "dymn_accepted_requests", "Requests that are being received, waiting or in progress.", registry=r
        )
        self.live = Gauge("dymn_live_connections", "Live connections.", registry=r)
        self.batches = Histogram("dymn_batch_windows", "Windows per batch.", buckets=_WINDOWS, registry=r)
        self.compute = Histogram("dymn_batch_seconds", "Time of the network per batch.", buckets=_SECONDS, registry=r)
        self.audio = Counter("dymn_audio_seconds", "Total length of tagged recordings.", registry=r)
        Gauge("dymn_info", "The version of dymn.", ["version"], registry=r).labels(__version__).set(1)

    def computed(self, windows: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(windows)
        self.compute.observe(seconds)

    def text(self) -> bytes:
        """Return everything as text."""
        return generate_latest(self._registry)
