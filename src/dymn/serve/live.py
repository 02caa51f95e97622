"""Live audio over a WebSocket, and the tags of each window as soon as it is complete."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect

from dymn.audio.pcm import PcmReader
from dymn.config import check, from_dict, shown
from dymn.errors import ConfigError
from dymn.inference.selection import TagSettings, WindowTags
from dymn.inference.stream import Stream
from dymn.serve.batching import Deadline
from dymn.serve.errors import Refusal, refusal, within
from dymn.serve.guard import is_token
from dymn.serve.service import Question, Service
from dymn.system.memory import release_memory

logger = logging.getLogger(__name__)

MAX_CHUNK_SECONDS = 10.0
GREETING_SECONDS = 10.0
"""Time limit for the first message."""
_LAST_SECONDS = 2.0
_END = "end"
_OWN = {"sample_rate": 32_000, "format": "s16le", "channels": 1, "model": "", "token": ""}
_NORMAL, _POLICY, _INTERNAL, _LATER = 1000, 1008, 1011, 1013
_CLOSES = {401: _POLICY, 500: _INTERNAL, 503: _LATER}


async def serve_live(socket: WebSocket, service: Service) -> None:
    """Answer one connection.

    Its first message is JSON: `sample_rate`, `format` (as in `dymn listen`), `channels`, `model`, `token`, and settings
    of `TagSettings`. Binary messages with samples follow; the text "end" ends them. Answers are JSON, one for each
    window.
    """
    await socket.accept()
    deadline = Deadline(service.settings.timeout)
    seconds = service.settings.receive_timeout
    try:
        greeting = _settings(service, await service.greeting(_receive(socket, min(seconds, GREETING_SECONDS))))
        async with service.connected() as threads:
            loop = asyncio.get_running_loop()
            listener = _begin(service, greeting, deadline)
            await _send(socket, {"ready": True}, seconds)
            done = False
            while not done:
                message = await _receive(socket, seconds)
                done = message == _END
                deadline.restart()
                for window in await loop.run_in_executor(threads, listener.feed, None if done else message):
                    await _send(socket, _window(window), seconds)
                if listener.stream.seconds > service.settings.live_seconds:
                    limit = service.settings.live_seconds
                    raise Refusal(413, "too_long", f"A connection ends after {limit:g} s of audio. Open another one.")
            await _send(socket, {"done": True, "seconds": round(listener.stream.seconds, 6)}, seconds)
        await asyncio.wait_for(socket.close(_NORMAL), seconds)
    except WebSocketDisconnect:
        pass
    except Exception as error:
        known = refusal(error)
        if known.code == "memory":
            release_memory(error)
        if known.status == 500:
            logger.exception("A live connection failed.")
        service.metrics.refused.labels(known.code).inc()
        with suppress(Exception):  # it may be gone
            await _send(socket, known.to_dict(), _LAST_SECONDS)
            await asyncio.wait_for(socket.close(_CLOSES.get(known.status, _POLICY), known.code), _LAST_SECONDS)
    finally:
        deadline.cancel()


async def _send(socket: WebSocket, value: dict[str, Any], seconds: float) -> None:
    await within(seconds, socket.send_json(value), f"A response was not read within {seconds:g} s.")


async def _receive(socket: WebSocket, seconds: float) -> str | bytes:
    late = f"Nothing arrived for {seconds:g} s. Send audio continuously, including silence, or close the connection."
    message = await within(seconds, socket.receive(), late)
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", _NORMAL))
    text, data = message.get("text"), message.get("bytes")
    return text if text is not None else bytes(data or b"")


class _Listener:
    """The stream and the PCM reader of a connection."""

    def __init__(self, stream: Stream, reader: PcmReader, sample_rate: int) -> None:
        self.stream, self._reader, self._sample_rate = stream, reader, sample_rate

    def feed(self, message: str | bytes | None) -> list[WindowTags]:
        """Return the windows that are complete with a message, or with the end (None)."""
        if message is None:
            return self.stream.finish()
        if isinstance(message, str):
            raise ConfigError(
                f'After the first message, send samples as binary messages; the only text message allowed is "{_END}".'
            )
        samples = self._reader.feed(message)
        seconds = len(samples) / self._sample_rate
        check(
            seconds <= MAX_CHUNK_SECONDS,
            f"A message contains {seconds:.1f} s of audio; at most {MAX_CHUNK_SECONDS:g} s is allowed.",
        )
        return self.stream.feed(samples)


class _Greeting(NamedTuple):
    """The first message of a connection: the format of its audio, and the settings of its tags."""

    own: dict[str, Any]
    settings: dict[str, Any]


def _settings(service: Service, message: str | bytes) -> _Greeting:
    """Return the first message of a connection, after a check of its token."""
    try:
        greeting = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The first message must be JSON with the settings, but it is not valid: {error}.") from error
    check(
        isinstance(greeting, dict),
        'The first message must be a JSON object with the settings, such as {"sample_rate": 48000}.',
    )
    own: dict[str, Any] = {name: greeting.pop(name, default) for name, default in _OWN.items()}
    for name, default in _OWN.items():
        kind = "text" if isinstance(default, str) else "whole number"
        check(type(own[name]) is type(default), f"{name} is {shown(own[name])}; it must be a {kind}.")
    if not is_token(own["token"], service.settings.token):
        raise Refusal(401, "token", "This server requires a token. Send it as `token` in the first message.")
    return _Greeting(own, greeting)


def _begin(service: Service, greeting: _Greeting, deadline: Deadline) -> _Listener:
    """Return the listener that the first message of a connection describes."""
    own = greeting.own
    for name in ("labels", "exclude"):
        patterns = greeting.settings.get(name, [])
        check(
            isinstance(patterns, list) and all(isinstance(p, str) for p in patterns),
            f"{name} must be a list of strings.",
        )
    settings = from_dict(TagSettings, {"top_k": 10, **greeting.settings})
    service.check(Question(own["model"], settings))
    backend = service.live_backend(own["model"], deadline, settings.threshold)
    reader = PcmReader(own["format"], own["channels"])
    return _Listener(Stream(backend, own["sample_rate"], settings), reader, own["sample_rate"])


def _window(window: WindowTags) -> dict[str, Any]:
    tags = [{"label": tag.label, "score": round(tag.score, 6)} for tag in window.tags]
    return {"start": round(window.start, 6), "end": round(window.end, 6), "tags": tags}
