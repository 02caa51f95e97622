"""Clients of the service that are slow, silent or endless: none of them keeps others out."""

import contextlib
import gc
import json
import logging
import socket
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

import uvicorn
from starlette.responses import Response
from starlette.testclient import TestClient
from typer.testing import CliRunner
from websockets.sync.client import connect

from dymn.inference.tagger import Tagger
from dymn.serve import connections, service, uploads
from dymn.serve.app import create_app
from dymn.serve.connections import BoundedConnection
from dymn.serve.guard import is_address, is_token
from dymn.serve.settings import ServeSettings
from test_serve import Stub, code, wav

TOKEN = "0123456789abcdef-secret"


@contextlib.contextmanager
def serving(app):
    """Serve an application as the command does, and give the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = uvicorn.Config(
            app, http=BoundedConnection, log_level="critical", ws_max_size=2**20, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def tagging(**settings):
    return create_app({"stub": Tagger(Stub())}, ServeSettings(**settings), page=False)


def dial(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def is_closed_within(connection, seconds):
    connection.settimeout(seconds)
    try:
        while connection.recv(1000):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def status(connection):
    with contextlib.suppress(OSError):
        return int(connection.recv(1000).split(b" ")[1])


def health(port):
    with dial(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return status(connection)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nHost: loc", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"]
)
def test_a_head_that_does_not_come_has_a_deadline(monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with serving(tagging()) as port, dial(port) as connection:
        connection.sendall(sent)
        if sent.count(b"GET") == 2:
            assert status(connection) == 200
        assert is_closed_within(connection, 3)
    assert not BoundedConnection.waiting


def test_half_sent_heads_do_not_take_all_places(monkeypatch):
    monkeypatch.setattr(connections, "MAX_WAITING", 3)
    with serving(tagging()) as port, contextlib.ExitStack() as stack:
        held = [stack.enter_context(dial(port)) for _ in range(8)]
        for connection in held:
            connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert [health(port) for _ in range(3)] == [200] * 3
        assert is_closed_within(held[0], 3) and not is_closed_within(held[-1], 0.2)


def test_slow_bodies_do_not_take_all_places(monkeypatch):
    monkeypatch.setattr(uploads, "SLOW_SECONDS", 0.1)
    with serving(tagging(workers=1, queue=1)) as port, contextlib.ExitStack() as stack:
        held = [stack.enter_context(dial(port)) for _ in range(2)]
        for connection in held:
            connection.sendall(b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nRIFF")
        time.sleep(0.5)
        with dial(port) as quick:
            body = wav()
            quick.sendall(b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert status(quick) == 200
        for connection in held:
            connection.settimeout(2)
        assert [status(connection) for connection in held].count(408) == 1


def test_quick_bodies_keep_their_places():
    app = tagging(workers=1, queue=0)
    with TestClient(app) as one, one.app._app.state.service.admitted() as arrival:
        assert not arrival.is_slow
        assert code(one.post("/v1/tag", content=wav())) == "queue_full"


@pytest.mark.parametrize("head", [b"POST /v1/tag?top_k=x", b"POST /nowhere", b"GET /health", b"POST /v1/tag"])
def test_an_endless_body_is_not_read_for_ever(head):
    with serving(tagging(max_bytes=2**20, receive_timeout=2)) as port, dial(port) as connection:
        connection.sendall(head + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk, sent, begun = b"10000\r\n" + bytes(2**16) + b"\r\n", 0, time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 8:
                connection.sendall(chunk)
                sent += len(chunk)
        assert time.monotonic() - begun < 8 and sent < 2**26


def test_an_answer_that_is_not_read_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    left = threading.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await Response(bytes(2**26))(scope, receive, send)

    monkeypatch.setattr(BoundedConnection, "connection_lost", lambda self, exc: (self._watch_reader(False), left.set()))
    with serving(app) as port, dial(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert left.wait(5)


def test_silent_live_connections_take_no_place():
    with serving(tagging(live=1, token=TOKEN)) as port, contextlib.ExitStack() as stack:
        address = f"ws://127.0.0.1:{port}/v1/live"
        for _ in range(8):
            stack.enter_context(connect(address, open_timeout=10))
        with connect(address) as wrong:
            wrong.send(json.dumps({"token": "\ud800"}))
            assert json.loads(wrong.recv(timeout=10))["error"]["code"] == "token"
        with connect(address) as live:
            live.send(json.dumps({"token": TOKEN}))
            assert json.loads(live.recv(timeout=10)) == {"ready": True}


def test_of_too_many_silent_live_connections_the_oldest_is_closed(monkeypatch):
    monkeypatch.setattr(service, "MAX_GREETING", 2)
    with serving(tagging()) as port, contextlib.ExitStack() as stack:
        first, *_ = [stack.enter_context(connect(f"ws://127.0.0.1:{port}/v1/live")) for _ in range(3)]
        assert json.loads(first.recv(timeout=10))["error"]["code"] == "live_full"


def test_tokens_of_any_letters_are_compared():
    assert is_token(TOKEN, TOKEN) and not is_token("\ud800\xff", TOKEN)


@pytest.mark.parametrize(("query", "says"), [("topk=3", "Did you mean top_k?"), ("x=1", "Known: model")])
def test_parameters_that_are_not_known_are_refused(query, says):
    with TestClient(tagging()) as one:
        answer = one.post(f"/v1/tag?{query}", content=wav())
        assert answer.status_code == 422 and code(answer) == "query" and says in answer.json()["error"]["message"]
        assert one.get("/v1/models?all=1").status_code == 422


def test_names_of_others_are_refused_where_any_address_is_listened_on(monkeypatch):
    from dymn.commands.serve import host_names

    names = tuple(name.lower() for name in host_names("0.0.0.0", []))
    with TestClient(tagging(allowed_hosts=names, allow_addresses=True)) as one:
        for host, expected in (
            ("evil.example", 421),
            ("192.168.1.5:8000", 200),
            ("[fe80::1]:8000", 200),
            ("localhost", 200),
        ):
            assert one.get("/health", headers={"host": host}).status_code == expected
        assert one.get("/health", headers={"host": socket.gethostname()}).status_code == 200
    assert host_names("0.0.0.0", ["a.example"]) == ["a.example"]
    assert "a.example" in host_names("127.0.0.1", ["a.example"])
    assert not is_address("1.2.3.4.example")


def test_the_command_refuses_names_of_others(monkeypatch):
    from dymn.cli import app
    from dymn.commands import serve

    seen = []
    monkeypatch.setattr(serve, "load_taggers", lambda *_: {"stub": Tagger(Stub())})
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: seen.append((self.config, [one.close() for one in sockets]))
    )
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    assert CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0"]).exit_code == 0
    settings = seen[0][0].app._settings
    assert settings.allow_addresses and "localhost" in settings.allowed_hosts and seen[0][0].http is BoundedConnection


def test_nothing_that_failed_is_left_unseen(caplog):
    """asyncio logs the error of a task that nobody asked for."""
    with caplog.at_level(logging.ERROR, "asyncio"), serving(tagging(workers=1, max_seconds=0.5)) as port:
        for body in (wav(2), b"nonsense"):
            for _ in range(3):
                with dial(port) as connection:
                    connection.sendall(
                        b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                    )
        time.sleep(0.5)
        gc.collect()
    gc.collect()
    assert not caplog.records
