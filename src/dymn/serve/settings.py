"""The limits of the service. Every limit has a number here, and every rejection names it."""

from __future__ import annotations

from dataclasses import dataclass

from dymn.config import check


@dataclass(frozen=True)
class ServeSettings:
    """The limits of the service; the defaults are those of `dymn serve`.

    Attributes:
        batch_size: the most windows computed at once; the model's own choice if None.
        batch_wait: how long, in seconds, the first window of a batch waits for others.
        workers: threads that decode; as many requests are worked on at a time.
        queue: how many more requests may wait; those beyond are refused with 503.
        live: how many live connections there may be at a time.
        max_bytes: the longest body of a request.
        max_seconds: the longest recording.
        live_seconds: the longest live connection, in seconds of sound.
        max_window: the longest window of a request, in seconds: memory grows with it.
        max_windows: the most windows of one recording.
        receive_timeout: how long a body may take to arrive, in seconds, and how long a live connection may be silent.
        timeout: how long a request may take after its body has arrived, in seconds.
        allowed_hosts: names by which the service may be called; any if empty. Keeps other people's pages from reaching
            it by a name of theirs.
        allow_addresses: whether it may be called by any IP address, too.
        token: what a caller has to show; nothing if empty.
    """

    batch_size: int | None = None
    batch_wait: float = 0.005
    workers: int = 2
    queue: int = 16
    live: int = 4
    max_bytes: int = 64 * 2**20
    max_seconds: float = 600.0
    live_seconds: float = 3600.0
    max_window: float = 30.0
    max_windows: int = 2000
    receive_timeout: float = 30.0
    timeout: float = 60.0
    allowed_hosts: tuple[str, ...] = ()
    allow_addresses: bool = False
    token: str = ""

    def __post_init__(self) -> None:
        for name in ("workers", "max_bytes", "max_windows"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("queue", "live", "batch_wait"):
            check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("max_seconds", "live_seconds", "max_window", "receive_timeout", "timeout"):
            check(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0 seconds.")
        check(
            self.batch_size is None or self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1."
        )
        check(
            not self.token
            or (self.token.isascii() and self.token.isprintable() and " " not in self.token and len(self.token) >= 16),
            "The token must be 16 or more ASCII characters without spaces. `openssl rand -hex 32` creates a good one.",
        )
