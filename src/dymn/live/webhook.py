"""Messages as HTTP requests."""

from __future__ import annotations

import base64
import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from dymn import __version__
from dymn.config import check
from dymn.errors import ConfigError
from dymn.live.delivery import Delivery, DeliveryError
from dymn.live.lines import json_line
from dymn.live.messages import Message

TIMEOUT = 10.0
"""Timeout of a request in seconds, including its response."""
TRIES = 3
FIRST_WAIT = 1.0
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_MOST_ANSWER = 65_536


class Webhook(Delivery):
    """Posts each message as JSON to a URL. Redirects are not followed, and at most 64 KB of a response are read."""

    def __init__(
        self, url: str, note: Callable[[str], None], *, timeout: float = TIMEOUT, first_wait: float = FIRST_WAIT
    ) -> None:
        """Prepare to post to a URL, with HTTP's basic authentication if it has a user and a password.

        Raises:
            ConfigError: if the URL is not one of HTTP, or contains characters that are not allowed there.
        """
        try:
            parts = urlsplit(url)
            self._host = parts.hostname or ""
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise ConfigError(f"--webhook is not a valid URL: {error}.") from error
        if parts.scheme not in ("http", "https") or not self._host:
            raise ConfigError("--webhook must be a URL such as http://example.org:8123/api/webhook/sound.")
        self._secure = parts.scheme == "https"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._host.encode("idna")
        except UnicodeError as error:
            raise ConfigError(f"--webhook has an invalid host name: {self._host}.") from error
        check(self._host.isprintable() and " " not in self._host, f"--webhook has an invalid host name: {self._host}.")
        check(
            self._path.isascii() and self._path.isprintable() and " " not in self._path,
            "--webhook contains spaces or other characters that a URL cannot have. Write a space as %20, and letters "
            "beyond ASCII percent-encoded, too.",
        )
        self._headers = {"Content-Type": "application/json", "User-Agent": f"dymn/{__version__}"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(user).decode()}"
        self._timeout, self._first_wait = timeout, first_wait
        self.name = f"webhook {self._host}"
        super().__init__(note)

    def wants(self, message: Message) -> bool:
        """Return True: every message is posted."""
        return True

    def deliver(self, message: Message) -> None:
        """Post a message, up to three times if the server cannot be reached or is busy."""
        body, wait = json_line(message).encode(errors="backslashreplace"), self._first_wait
        for attempt in range(TRIES):
            try:
                status = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            else:
                if 200 <= status < 300:
                    return
                why = f"the response was {status}"
                if status not in _AGAIN:
                    break
            if attempt + 1 == TRIES or self._closing.wait(wait):
                break
            wait *= 2
        raise DeliveryError(why)

    def _post(self, body: bytes) -> int:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        late, held = threading.Event(), list[socket.socket]()

        def end() -> None:
            late.set()
            with suppress(OSError, AttributeError):
                # http.client drops the socket before it reads a body that ends with the connection
                (held[0] if held else connection.sock).shutdown(socket.SHUT_RDWR)  # of a server that is slow on purpose

        timer = threading.Timer(self._timeout, end)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            held.append(connection.sock)
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            with suppress(OSError, http.client.HTTPException):  # the status is known, so the message has arrived
                answer.read(_MOST_ANSWER)
            return answer.status
        except (OSError, http.client.HTTPException) as error:
            if late.is_set():
                raise OSError(f"no response within {self._timeout:g} s") from error
            raise
        finally:
            timer.cancel()
            connection.close()
