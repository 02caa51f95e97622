"""The HTTP service on a port of this machine.

Requests byte by byte, live connections, and what schemathesis makes of its OpenAPI.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
from hypothesis import strategies as st

from dymn import Tagger
from dymn.config import ModelCard
from dymn.runtime.backend import Backend, BackendOutput
from dymn.serve.app import create_app
from dymn.serve.settings import ServeSettings
from fuzz import inputs

SETTINGS = ServeSettings(
    max_bytes=2**20, max_seconds=5.0, live_seconds=5.0, receive_timeout=5.0, timeout=20.0, workers=1, live=2
)
STATUS = {200, 304, 400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 426, 499, 501}
"""What a stranger's request may be answered with; 500 and the like are a defect."""


class Loudness(Backend):
    """Scores that cost nothing."""

    card = ModelCard(name="loudness", labels=("<b>loud</b>", "quiet", "rain, heavy"))
    embedding_size = 1

    def run(self, features: Any) -> BackendOutput:
        loud = np.abs(features).max(axis=1).clip(0, 1)
        return BackendOutput(
            np.stack([loud, 1 - loud, loud / 2], axis=1).astype(np.float32), loud[:, None].astype(np.float32)
        )


class _Server:
    port = 0


@contextmanager
def serving() -> Iterator[None]:
    """Serve on a free port of this machine alone, as `dymn serve` does."""
    import uvicorn

    app = create_app({"loudness": Tagger(Loudness())}, SETTINGS)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", ws_max_size=2**20, timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        _Server.port = listener.getsockname()[1]
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(30)


NAMES = (
    "model",
    "top_k",
    "threshold",
    "labels",
    "exclude",
    "window",
    "hop",
    "fill",
    "combine",
    "timeline",
    "embedding",
    "layers",
    "x",
)
GOOD = (
    "",
    "loudness",
    "quiet",
    "*",
    "0.5",
    "1",
    "2",
    "true",
    "repeat",
    "pad",
    "mean",
    "last",
    "mels",
    "nan",
    "inf",
    "-1",
    "1e999",
    "9" * 400,
)
HEADERS = (
    *(
        b"Content-Type: multipart/form-data; boundary=x",
        b"Content-Type: multipart/form-data",
        b"Content-Type: application/json",
    ),
    *(
        b"Content-Length: 99999999999999999999",
        b"Content-Length: -1",
        b"Transfer-Encoding: chunked",
        b"Origin: http://evil.example",
    ),
    *(
        b"Authorization: Bearer \xff\xff",
        b"Accept: \x1b[2J",
        b"Expect: 100-continue",
        b"If-None-Match: *",
        b"Host: evil.example",
        b"X: " + b"y" * 9000,
    ),
)


def request_cases() -> st.SearchStrategy[bytes]:
    """Return requests as they go over the wire: right in most parts, with any bytes in some."""
    value = st.one_of(st.sampled_from(GOOD), inputs.texts).map(
        lambda text: quote_from_bytes(text.encode("utf-8", "surrogatepass")).encode()
    )
    query = st.lists(
        st.tuples(st.sampled_from(NAMES), value).map(lambda pair: pair[0].encode() + b"=" + pair[1]), max_size=4
    ).map(b"&".join)
    path = st.sampled_from(
        (
            b"/v1/tag",
            b"/v1/tag",
            b"/v1/tag",
            b"/v1/models",
            b"/page/..%2f..%2fapp.py",
            b"/page//etc/passwd",
            b"/metrics",
            b"/%00",
            b"//",
        )
    )
    recordings = {
        "wav": inputs.encoded("WAV"),
        "flac": inputs.encoded("FLAC"),
        "opus": inputs.encoded("OGG", "OPUS", rate=48_000),
    }
    sounds = st.one_of(
        st.sampled_from(list(recordings.values())),
        inputs.variants(recordings, inputs.mended_ogg).map(lambda case: case[1]),
    )

    def form(content: bytes, name: str, field: str, changes: list[Any]) -> bytes:
        disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'.encode(
            "utf-8", "surrogatepass"
        )
        whole = b"--x\r\n" + disposition + b"\r\nContent-Type: audio/wav\r\n\r\n" + content + b"\r\n--x--\r\n"
        return inputs.edited(whole, changes)

    forms = st.builds(
        form, sounds, inputs.texts, st.sampled_from(("file", "file", "other")), st.one_of(st.just([]), inputs.edits)
    )
    body = st.one_of(
        st.tuples(st.just(b"Content-Type: audio/x"), sounds),
        st.tuples(st.just(HEADERS[0]), forms),
        st.tuples(st.just(HEADERS[1]), forms),
    )

    def make(
        method: bytes, path: bytes, query: bytes, body: tuple[bytes, bytes], more: list[bytes], changes: list[Any]
    ) -> bytes:
        lines = [
            method + b" " + path + b"?" + query + b" HTTP/1.1",
            b"Host: 127.0.0.1",
            b"Connection: close",
            body[0],
            *more,
        ]
        lines += [b"Content-Length: %d" % len(body[1])] * all(
            b"Length" not in line and b"Transfer" not in line for line in more
        )
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        return inputs.edited(head, changes) + body[1]

    method = st.sampled_from((b"POST", b"POST", b"POST", b"GET", b"PUT", b"HEAD"))
    rarely = st.integers(0, 5).flatmap(
        lambda n: st.lists(st.sampled_from(HEADERS), max_size=2) if n == 0 else st.just([])
    )
    edits = st.integers(0, 9).flatmap(lambda n: inputs.edits if n == 0 else st.just([]))
    return st.builds(make, method, path, query, body, rarely, edits)


def ask(case: bytes, folder: Path) -> bool:
    """Send bytes, and look at the answer: what it says is known, and is JSON without NaN."""
    with socket.create_connection(("127.0.0.1", _Server.port), timeout=60) as connection:
        with suppress(OSError):  # it may refuse before everything has been sent
            connection.sendall(case)
            connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection, method=case.partition(b" ")[0].decode("latin-1"))
        try:
            response.begin()
            body = response.read()
        except (http.client.HTTPException, ConnectionError):
            return False  # it hung up on what was no HTTP
    check_answer(response.status, response.getheader("content-type", ""), body)
    return response.status == 200


def check_answer(status: int, kind: str, body: bytes) -> None:
    assert status in STATUS, (status, body[:500])
    if kind == "application/json" and body:
        strictly(body)


def strictly(text: str | bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


BEGIN = {
    "sample_rate": 8000,
    "format": "s16le",
    "channels": 1,
    "window": 0.5,
    "hop": 0.25,
    "top_k": 1,
    "labels": ["*"],
    "model": "",
    "token": "",
}


def live_cases() -> st.SearchStrategy[tuple[str | bytes, list[str | bytes]]]:
    first = st.one_of(
        inputs.changed(BEGIN).map(json.dumps),
        st.sampled_from(
            (json.dumps(BEGIN), inputs.deep(50_000), "", "end", "NaN", json.dumps({**BEGIN, "labels": ["*"] * 50_000}))
        ),
        st.binary(max_size=20),
    )
    sound = st.one_of(
        st.binary(max_size=64), st.sampled_from((bytes(2000), b"\x00\x40" * 4000, bytes(2**19), b"\xff" * 4001))
    )
    message = st.one_of(sound, sound, st.sampled_from(("end", "END", "{}")))
    return st.tuples(first, st.lists(message, max_size=4))


def listen(case: tuple[str | bytes, list[str | bytes]], folder: Path) -> bool:
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    first, messages = case
    answers: list[Any] = []
    with (
        suppress(WebSocketException),
        connect(f"ws://127.0.0.1:{_Server.port}/v1/live", open_timeout=60, close_timeout=5) as connection,
    ):
        with suppress(WebSocketException):
            for message in (first, *messages, "end"):
                connection.send(message if isinstance(message, bytes) else message.encode("utf-8", "replace").decode())
        while True:
            answers.append(strictly(connection.recv(timeout=60)))
    errors = [answer["error"]["code"] for answer in answers if "error" in answer]
    assert set(errors) <= {"setting", "audio", "too_long", "model", "token", "slow"}, errors
    return not errors


def openapi_cases() -> st.SearchStrategy[Any]:
    import schemathesis

    app = create_app({"loudness": Tagger(Loudness())}, SETTINGS)
    schema = schemathesis.openapi.from_dict(app._app.openapi())  # type: ignore[attr-defined]
    return st.one_of([found.ok().as_strategy() for found in schema.get_all_operations()])


def call(case: Any, folder: Path) -> bool:
    from schemathesis import checks

    response = case.call(base_url=f"http://127.0.0.1:{_Server.port}", timeout=60)
    case.validate_response(
        response, checks=[checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    )
    check_answer(response.status_code, response.headers.get("content-type", [""])[0], response.content)
    return bool(response.status_code == 200)


WAYS: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Callable[[Any, Path], bool], Any]] = {
    "http": (request_cases, ask, serving),
    "live": (live_cases, listen, serving),
    "openapi": (openapi_cases, call, serving),
}
"""What draws cases, what takes them, and what has to be there meanwhile, by the name of the way in."""
