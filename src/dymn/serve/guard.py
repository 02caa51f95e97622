"""The first and the last step of every request: checks of host, origin and token, and headers for browsers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from dymn.serve.errors import Refusal
from dymn.serve.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/health", "/ready", "/openapi.json")
"""Paths that need no token, like the page's files: they reveal nothing about recordings."""
PAGE = "/page/"
READ_ON_SECONDS = 1.0

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'wasm-unsafe-eval'",
    "worker-src": "'self'",
    "connect-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "media-src": "'self' blob:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",  # these two let the page's network use several threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        body = _Body(receive, Headers(scope=scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if message["status"] >= 400:
                    await body.read_on(self._settings.max_bytes)
                if not body.is_over:
                    headers["Connection"] = "close"  # else the server would read the rest, however long it is
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, body.receive, send_with_headers)
        elif scope["type"] == "http":
            await JSONResponse(problem.to_dict(), problem.status, problem.headers)(
                scope, body.receive, send_with_headers
            )
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": problem.code})

    def _problem(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        allowed = self._settings.allowed_hosts
        name = host_name(host)
        if allowed and name not in allowed and not (self._settings.allow_addresses and is_address(name)):
            names = " or ".join((*allowed, *(("its IP address",) if self._settings.allow_addresses else ())))
            remedy = "To allow another one, start it with --allow-host NAME."
            return Refusal(421, "host", f"This server accepts only the names {names}. {remedy}")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            message = "Pages of other sites may not use this server. Open its own page, or call it from a program."
            return Refusal(403, "origin", message)
        path = scope["path"]
        if scope["type"] == "websocket" or path in OPEN or path.startswith(PAGE):
            return None  # a live connection shows its token in its first message: browsers cannot send it as a header
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if is_token(token if scheme.lower() == "bearer" else "", self._settings.token):
            return None
        return Refusal(401, "token", "This server requires a token. Send the header `Authorization: Bearer TOKEN`.")


class _Body:
    """The body of a request on its way to the application.

    Attributes:
        is_over: whether all of it has been read.
    """

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self._is_announced = "expect" in headers  # the client waits for permission before it sends
        self.is_over = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"

    async def receive(self) -> Message:
        """Return the next message."""
        message = await self._receive()
        self.is_over = not message.get("more_body", False)
        return message

    async def read_on(self, most: int) -> None:
        """Read and forget what a refused sender is still sending, within bounds.

        The server closes the connection behind the answer, and closing one with unread bytes resets it: the sender may
        lose the answer.
        """

        async def rest() -> None:
            received = 0
            while not self.is_over and received <= most:
                received += len((await self.receive()).get("body", b""))

        if self._is_announced:
            return
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(rest(), READ_ON_SECONDS)


def is_token(given: str, token: str) -> bool:
    """Whether a caller has shown the token, compared in constant time; always if there is none."""
    return not token or hmac.compare_digest(given.strip().encode("utf-8", "surrogatepass"), token.encode())


def is_address(name: str) -> bool:
    """Whether the name in a Host header is an IP address, which no page of others can be called by."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port: "[::1]:8000" is "[::1]"."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()
