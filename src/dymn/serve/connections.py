"""Deadlines for connections, where uvicorn alone would wait without limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

HEAD_SECONDS = 10.0
"""Time limit for the head of a request, from the moment at which it may begin."""
UNREAD_SECONDS = 30.0
"""Time limit for a client to read on, once the system's buffers are full."""
MAX_WAITING = 256
"""The most connections that may wait for the head of a request; beyond, the one that has waited longest is closed."""


class BoundedConnection(H11Protocol):
    """An HTTP connection, closed where its client sends no request, half of a head, or does not read its answer.

    Attributes:
        waiting: the connections of this process that wait for the head of a request, those that wait longest first.
    """

    waiting: ClassVar[dict[BoundedConnection, asyncio.TimerHandle]] = {}

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        self._watch_reader(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the client to read this answer."""
        super().on_response_complete()
        self._look()
        self._watch_reader(self.transport.get_write_buffer_size() > 0)

    def pause_writing(self) -> None:
        """Stop writing until the client has read."""
        super().pause_writing()
        self._watch_reader(True)

    def resume_writing(self) -> None:
        """Write again."""
        super().resume_writing()
        self._watch_reader(False)

    def _look(self) -> None:
        """Begin or end to wait for the head of a request."""
        waits = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if waits and self not in self.waiting:
            self.waiting[self] = self.loop.call_later(HEAD_SECONDS, self._drop)
            if len(self.waiting) > MAX_WAITING:
                next(iter(self.waiting))._drop()
        elif not waits:
            self._forget()

    def _forget(self) -> None:
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _drop(self) -> None:
        self._forget()
        self.transport.abort()

    def _watch_reader(self, unread: bool) -> None:
        if self._unread is not None:
            self._unread.cancel()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._give_up_reader) if unread else None

    def _give_up_reader(self) -> None:
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()
