"""The HTTP service: the same answers as the command line, and every limit with its refusal."""

import asyncio
import contextlib
import dataclasses
import gzip
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

from dymn.audio import reading
from dymn.config import ModelCard, check
from dymn.errors import ConfigError
from dymn.inference.tagger import Tagger
from dymn.serve.app import create_app
from dymn.serve.assets import find_assets
from dymn.serve.batching import Batcher, Deadline
from dymn.serve.errors import Refusal
from dymn.serve.guard import Guard
from dymn.serve.settings import ServeSettings
from dymn.serve.uploads import shown_name
from stubs import StubBackend

ROOT = Path(__file__).parents[1]
DOG = ROOT / "examples" / "audio" / "dog.ogg"
TOKEN = "0123456789abcdef-secret"


class Stub(StubBackend):
    """A network whose answer is the loudness of a window; it waits while `gate` is closed."""

    def __init__(self):
        self.card = ModelCard(name="stub", labels=("<img src=x>", "Loud", "Quiet"))
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []

    def scores(self, waveforms):
        assert self.gate.wait(20)
        self.batches.append(len(waveforms))
        loud = np.abs(np.asarray(waveforms)).max(axis=1).clip(0, 1)
        return np.stack([np.zeros_like(loud), loud, 1 - loud], axis=1).astype(np.float32)


def wav(seconds=1.0, level=0.5, rate=32_000):
    file = io.BytesIO()
    soundfile.write(file, np.full(round(seconds * rate), level, np.float32), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
def client(stub):
    """A function that starts the service with settings of its own."""
    opened = []

    def start(**settings):
        one = TestClient(create_app({"stub": Tagger(stub)}, ServeSettings(**settings)), raise_server_exceptions=False)
        opened.append(one.__enter__())
        return one

    yield start
    stub.gate.set()
    for one in opened:
        one.__exit__(None, None, None)


def code(response):
    return response.json()["error"]["code"]


@pytest.fixture(scope="module")
def real():
    with TestClient(
        create_app({"dymn04_open": Tagger.from_pretrained("dymn04_open", device="cpu")}, ServeSettings(workers=3))
    ) as one:
        yield one


def command(*words):
    from dymn.cli import app

    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_answers_are_those_of_the_command(real):
    said = json.loads(
        command("tag", str(DOG), "-m", "dymn04_open", "-f", "json", "--window", "2", "--per-window", "--quiet")
    )
    expected = said["recordings"][0]
    query = "/v1/tag?window=2&timeline=true"
    with ThreadPoolExecutor(3) as pool:  # together, so that windows of several requests share batches
        answers = list(pool.map(lambda _: real.post(query, content=DOG.read_bytes()).json(), range(3)))
    for answer in [*answers, real.post(query, files={"file": ("dog.ogg", DOG.read_bytes())}).json()]:
        assert answer["digest"] == said["digest"] and answer["parameters"] == said["parameters"]
        assert answer["seconds"] == expected["seconds"]
        for mine, theirs in zip([answer, *answer["windows"]], [expected, *expected["windows"]], strict=True):
            assert [tag["label"] for tag in mine["tags"]] == [tag["label"] for tag in theirs["tags"]]
            np.testing.assert_allclose(
                [t["score"] for t in mine["tags"]], [t["score"] for t in theirs["tags"]], atol=3e-6
            )


def test_embeddings_are_those_of_the_library(real):
    expected = Tagger.from_pretrained("dymn04_open", device="cpu").embed(DOG, layers="last,mels", window=3.0)
    answer = real.post("/v1/tag?embedding=true&layers=last,mels&window=3", content=DOG.read_bytes()).json()["embedding"]
    assert answer["layers"] == ["last", "mels"]
    np.testing.assert_allclose(answer["vector"], expected.vector, rtol=1e-4, atol=1e-5)
    assert real.post("/v1/tag?embedding=true&layers=block99", content=DOG.read_bytes()).status_code == 400


def test_tags_and_the_embedding_come_from_one_pass(client, stub, monkeypatch):
    opened = []
    stream = reading.stream
    monkeypatch.setattr(
        reading, "stream", lambda *arguments, **options: opened.append(1) or stream(*arguments, **options)
    )
    content, service = wav(3.0, 0.5), client()
    stub.batches.clear()
    answer = service.post("/v1/tag?embedding=true&layers=last&window=1", content=content).json()
    assert (answer["embedding"]["vector"], sum(stub.batches), len(opened)) == ([0.5], 3, 1)
    assert (answer["tags"][0]["label"], answer["tags"][0]["score"]) == ("Loud", 0.5)
    stub.batches.clear()
    assert service.post("/v1/tag?embedding=true&layers=last&window=2", content=content).json()["embedding"][
        "vector"
    ] == [0.5]
    assert sum(stub.batches) == 3  # two windows, and the second one as it is, before it was filled


@pytest.mark.parametrize("query", ["window=3", "window=2&hop=1&fill=pad", "window=10", "window=0.5&hop=0.7"])
def test_embeddings_are_those_of_dymn_embed_whatever_fills_windows(real, query):
    asked = dict(part.split("=") for part in query.split("&"))
    cutting = {name: float(value) for name, value in asked.items() if name != "fill"}
    expected = Tagger.from_pretrained("dymn04_open", device="cpu").embed(DOG, **cutting).vector
    vector = real.post(f"/v1/tag?embedding=true&layers=last&{query}", content=DOG.read_bytes()).json()["embedding"][
        "vector"
    ]
    np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_live_sound_gets_the_tags_of_a_file(real):
    samples, rate = soundfile.read(DOG, dtype="float32", always_2d=True)
    expected = real.post("/v1/tag?window=2&hop=1&timeline=true&top_k=3", content=DOG.read_bytes()).json()["windows"]
    data = samples.tobytes()
    with real.websocket_connect("/v1/live") as live:
        live.send_json(
            {
                "sample_rate": rate,
                "format": "f32le",
                "channels": samples.shape[1],
                "window": 2.0,
                "hop": 1.0,
                "top_k": 3,
            }
        )
        assert live.receive_json() == {"ready": True}
        for start in range(0, len(data), 50_001):
            live.send_bytes(data[start : start + 50_001])
        live.send_text("end")
        messages = []
        while "done" not in (message := live.receive_json()):
            messages.append(message)
    assert message["seconds"] == pytest.approx(len(samples) / rate)
    assert [(m["start"], m["end"]) for m in messages] == [(w["start"], w["end"]) for w in expected]
    for mine, theirs in zip(messages, expected, strict=True):
        np.testing.assert_allclose([t["score"] for t in mine["tags"]], [t["score"] for t in theirs["tags"]], atol=3e-6)


def test_windows_of_several_requests_are_computed_together(stub):
    batcher = Batcher(4, 0.5)
    batcher.start()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(batcher, stub.run, np.full((1, 10), i / 10, np.float32), Deadline(10)) for i in range(4)]
        other = pool.submit(batcher, stub.run, np.full((1, 20), 0.9, np.float32), Deadline(10))
        assert [call.result().probabilities[0, 1] for call in calls] == pytest.approx([0, 0.1, 0.2, 0.3])
        assert other.result().probabilities[0, 1] == pytest.approx(0.9)
    batcher.close()
    assert sorted(stub.batches) == [1, 4]  # another length is another batch


def test_cancelling_a_request_ends_its_thread_at_once(stub):
    entered, leave = threading.Event(), threading.Event()

    def compute(rows):
        entered.set()
        leave.wait(30)
        return stub.run(rows)

    batcher, deadline, rows = Batcher(1, 0.0), Deadline(20), np.zeros((1, 5), np.float32)
    batcher.start()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher, compute, rows, Deadline(60))
        assert entered.wait(10)
        waiting = pool.submit(batcher, compute, rows, deadline)
        time.sleep(0.1)  # until it waits for the result
        deadline.cancel()
        try:
            with pytest.raises(Refusal):
                waiting.result(5)
        finally:
            leave.set()
        assert len(first.result(10).probabilities) == 1
    batcher.close()


def test_a_failing_batch_fails_those_who_wait_for_it_and_no_others(stub):
    def fails(rows):
        raise ValueError("no")

    batcher = Batcher(4, 0)
    batcher.start()
    with pytest.raises(ValueError, match="no"):
        batcher(fails, np.zeros((2, 5), np.float32), Deadline(5))
    assert len(batcher(stub.run, np.zeros((9, 5), np.float32), Deadline(5)).probabilities) == 9
    batcher.close()
    with pytest.raises(Refusal, match="shutting down"):
        batcher(stub.run, np.zeros((1, 5), np.float32), Deadline(5))


@pytest.mark.parametrize(
    ("query", "body", "status", "word"),
    [
        ("", b"", 400, "empty"),
        ("", b"no recording at all", 422, "audio"),
        ("", DOG.read_bytes()[:3000], 422, "audio"),
        ("", wav(level=np.nan), 422, "audio"),
        ("?threshold=2", wav(), 400, "setting"),
        ("?top_k=x", wav(), 400, "setting"),
        ("?window=500", wav(), 400, "setting"),
        ("?hop=500", wav(), 400, "setting"),
        ("?window=nan", wav(), 400, "setting"),
        ("?labels=Dragon", wav(), 400, "setting"),
        ("?model=../../etc/passwd", wav(), 404, "model"),
        ("?top_k=1&top_k=2", wav(), 422, "query"),
        ("?layers=last", wav(), 422, "query"),
        ("?embedding=true&layers=", wav(), 400, "setting"),
        ("", wav(5), 413, "too_long"),
        ("?window=0.05&hop=0.05", wav(3.9), 413, "too_many_windows"),
        ("", bytes(2_000_000), 413, "too_large"),
    ],
)
def test_what_is_wrong_is_said(client, query, body, status, word):
    response = client(max_seconds=4, max_windows=50, max_bytes=1_000_000).post(f"/v1/tag{query}", content=body)
    assert (response.status_code, code(response)) == (status, word)
    assert len(response.json()["error"]["message"]) > 20


def test_the_limit_on_a_body_holds_without_a_length(client):
    one = client(max_bytes=100_000)
    assert code(one.post("/v1/tag", content=(bytes(10_000) for _ in range(50)))) == "too_large"
    assert code(one.post("/v1/tag", files={"file": ("x.wav", bytes(200_000))})) == "too_large"


def test_a_recording_that_hides_its_length_is_stopped(client):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000 * 8).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, 32_000, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    data[40:44] = b"\xff\xff\xff\xff"  # as programs write it to pipes
    assert code(client(max_seconds=4).post("/v1/tag?window=1", content=bytes(data))) == "too_long"


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_broken_forms(client, content_type):
    one = client()
    assert code(one.post("/v1/tag", content=b"--y\r\nnonsense", headers={"content-type": content_type})) == "form"
    assert code(one.post("/v1/tag", files={"other": ("a.wav", wav())})) == "form"
    assert code(one.post("/v1/tag", files=[("file", ("a.wav", wav())), ("file", ("b.wav", wav()))])) == "form"


def test_settings_in_a_form_are_rejected_with_the_remedy(client):
    for count in (1, 9):
        fields = {f"top_k{'' if i == 0 else i}": "1" for i in range(count)}
        response = client().post("/v1/tag", files={"file": ("a.wav", wav())}, data=fields)
        assert (response.status_code, code(response)) == (400, "form")
        assert "query" in response.json()["error"]["message"]
    assert "'top_k'" in client().post("/v1/tag", files={"file": wav()}, data={"top_k": "1"}).text
    assert client().post("/v1/tag?labels=Loud&labels=Quiet", files={"file": wav()}).status_code == 200


def test_names_of_files_are_only_shown():
    assert shown_name("../../etc/pass\nwd") == "pass\\nwd"
    assert shown_name("C:\\x\\dog.wav") == "dog.wav"
    assert shown_name("") == shown_name(None) == shown_name("/") == "upload"
    assert len(shown_name("x" * 10_000)) == 200


def test_a_full_queue_refuses_and_loses_nothing(client, stub):
    one = client(workers=1, queue=1)
    stub.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(one.post, "/v1/tag", content=wav(level=level)) for level in (0.25, 0.75)]
        until = time.monotonic() + 10
        while len(one.app._app.state.service._accepted) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        refused = one.post("/v1/tag", content=wav())
        assert (refused.status_code, code(refused)) == (503, "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert one.get("/health").status_code == one.get("/ready").status_code == 200
        stub.gate.set()
        assert [a.result().json()["tags"][0]["score"] for a in accepted] == pytest.approx([0.75, 0.75], abs=1e-4)
    assert one.post("/v1/tag", content=wav()).status_code == 200
    assert 'dymn_refused_total{code="queue_full"} 1.0' in one.get("/metrics").text


def test_a_request_that_takes_too_long_is_given_up(client, stub):
    one = client(timeout=0.2)
    stub.gate.clear()
    slow = one.post("/v1/tag", content=wav())
    assert (slow.status_code, code(slow)) == (503, "timeout")
    assert "retry-after" in slow.headers
    stub.gate.set()
    assert one.post("/v1/tag", content=wav()).status_code == 200


def test_the_token(client):
    one = client(token=TOKEN)
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xff\xfe"},
    ):
        for method, path in (("POST", "/v1/tag"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nothing")):
            response = one.request(method, path, headers={k: v.encode("latin-1") for k, v in headers.items()})
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert one.post("/v1/tag", content=wav(), headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert one.get("/health").status_code == one.get("/").status_code == 200
    with one.websocket_connect("/v1/live") as live:
        live.send_json({"token": "wrong"})
        assert live.receive_json()["error"]["code"] == "token"
    with one.websocket_connect("/v1/live") as live:
        live.send_json({"token": TOKEN})
        assert live.receive_json() == {"ready": True}


def test_other_sites_and_names_are_kept_out(client):
    one = client(allowed_hosts=("127.0.0.1", "[::1]"))
    assert code(one.get("/", headers={"Host": "evil.example"})) == "host"
    assert (
        code(one.post("/v1/tag", content=wav(), headers={"Host": "127.0.0.1:8000", "Origin": "http://evil.example"}))
        == "origin"
    )
    assert one.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200
    own = {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}
    assert one.post("/v1/tag", content=wav(), headers=own).status_code == 200
    with pytest.raises(WebSocketDisconnect), one.websocket_connect("/v1/live", headers=own | {"Origin": "null"}):
        pass


def test_headers_for_browsers(client):
    one = client()
    for path in ("/", "/page/app.js", "/v1/models", "/nothing", "/openapi.json"):
        headers = one.get(path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and "unsafe-inline" not in headers["content-security-policy"]
        )
        assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    text = one.get("/").text + one.get("/openapi.json").text
    assert not re.findall(r"https?://(?!127\.0\.0\.1)[a-z]", text), "nothing is loaded from elsewhere"


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/page/..%5capp.py",
        "/page/vendor/..%2f..%2fapp.py",
    ],
)
def test_no_path_leads_out_of_the_page(client, path):
    response = client().get(path)
    assert response.status_code == 404 and b"create_app" not in response.content


def test_a_file_that_the_browser_has_is_not_sent_again(client):
    one = client()
    first = one.get("/page/app.js")
    assert one.get("/page/app.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_a_compressed_file_is_sent_as_it_is_to_those_who_accept_that(client, tmp_path, monkeypatch):
    content = bytes(range(256)) * 1000
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "a.wasm.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr("dymn.serve.app.find_assets", lambda: find_assets(tmp_path))
    one = client()
    for accepted, encoding in (("gzip, br", "gzip"), ("identity", None)):
        found = one.get("/page/vendor/a.wasm", headers={"Accept-Encoding": accepted})
        assert (found.content, found.headers.get("content-encoding")) == (content, encoding)
        assert (found.headers["content-type"], found.headers["vary"]) == ("application/wasm", "Accept-Encoding")
        assert (int(found.headers["content-length"]) < len(content)) == (encoding == "gzip")
        again = one.get("/page/vendor/a.wasm", headers={"If-None-Match": found.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert one.get("/page/vendor/a.wasm.gz").status_code == 404


@pytest.mark.parametrize(
    ("first", "word"),
    [
        ("nonsense", "setting"),
        ("[" * 100_000, "setting"),
        ("[1]", "setting"),
        ('{"sample_rate": "x"}', "setting"),
        ('{"sample_rate": 5}', "setting"),
        ('{"format": "mp3"}', "setting"),
        ('{"channels": 0}', "setting"),
        ('{"window": "x"}', "setting"),
        ('{"window": 600}', "setting"),
        ('{"labels": [1]}', "setting"),
        ('{"specific": "false"}', "setting"),
        ('{"window": true}', "setting"),
        ('{"colour": 1}', "setting"),
        ('{"model": "other"}', "model"),
    ],
)
def test_a_live_connection_begins_with_settings(client, first, word):
    with client().websocket_connect("/v1/live") as live:
        live.send_text(first)
        assert live.receive_json()["error"]["code"] == word


def test_the_limits_of_live_connections(client):
    one = client(live=1, receive_timeout=0.3, live_seconds=3)
    with one.websocket_connect("/v1/live") as live:
        live.send_json({"window": 1})
        live.receive_json()
        with one.websocket_connect("/v1/live") as second:
            second.send_json({"window": 1})
            assert second.receive_json()["error"]["code"] == "live_full"
        assert live.receive_json()["error"]["code"] == "slow"
    for data, word in ((bytes(64_000 * 11), "setting"), (bytes(64_000 * 4), "too_long")):
        with one.websocket_connect("/v1/live") as live:
            live.send_json({"window": 1})
            live.receive_json()
            live.send_bytes(data)
            while "error" not in (message := live.receive_json()):
                pass
            assert message["error"]["code"] == word


def test_settings_that_make_no_sense():
    for wrong in (
        {"workers": 0},
        {"queue": -1},
        {"timeout": 0},
        {"batch_size": 0},
        {"token": "short"},
        {"token": "ä" * 20},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ServeSettings(**wrong)


def start_server(*words, **environment):
    """Start the command and return it with its address."""
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
    words = [sys.executable, "-m", "dymn", "serve", "-m", "dymn04_open", "--port", "0", "--quiet", *words]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    line = process.stdout.readline()
    assert line.startswith("Listening on http://127.0.0.1:"), line + process.stderr.read()
    return process, line.split()[2]


def wait_until_ready(address):
    import httpx

    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not get ready")


def test_a_model_with_windows_of_one_length_is_served_and_an_impossible_one_is_an_error(stub):
    """As ONNX files of a fixed length, and those that take spectrograms."""

    class Fixed(Stub):
        seconds = 1.0

        def scores(self, waveforms):
            check(waveforms.shape[1] == self.sample_rate, "The file expects windows of 1 s.")
            return super().scores(waveforms)

    class Spectrograms(Stub):
        def scores(self, waveforms):
            raise ConfigError("This file expects log-mel spectrograms.")

    with TestClient(create_app({"stub": Tagger(Fixed())})) as one:
        assert one.post("/v1/tag?window=1", content=wav()).status_code == 200
        assert code(one.post("/v1/tag", content=wav())) == "setting"
    with pytest.raises(ConfigError, match="log-mel"):
        create_app({"stub": Tagger(Spectrograms())})
    with pytest.raises(ConfigError, match=r"windows of 1\.0 s only"):
        create_app({"stub": Tagger(Fixed())}, ServeSettings(max_window=0.5))


def test_accepted_requests_are_answered_when_the_server_is_told_to_end():
    import httpx

    process, address = start_server("--workers", "1", "--batch-size", "1")
    try:
        wait_until_ready(address)
        with ThreadPoolExecutor(3) as pool:
            # many windows: all three are still at work when the signal comes
            query = f"{address}/v1/tag?window=1&hop=0.05"
            asked = [pool.submit(httpx.post, query, content=DOG.read_bytes(), timeout=60) for _ in range(3)]
            while "dymn_accepted_requests 3.0" not in httpx.get(f"{address}/metrics").text:
                assert not any(a.done() for a in asked)
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert [a.result().status_code for a in asked] == [200, 200, 200]
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/health")
    finally:
        process.kill()
        process.wait()


def test_wrong_use_of_the_command(tmp_path, monkeypatch):
    from dymn.cli import app

    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2 and "port" in result.output
    (tmp_path / "token").write_text("\n")
    result = CliRunner().invoke(app, ["serve", "--token-file", str(tmp_path / "token")])
    assert result.exit_code == 2 and "is empty" in result.output
    monkeypatch.setenv("DYMN_SERVE_TOKEN", "short")
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 2 and "16 or more" in result.output and "short" not in result.output


def test_another_address_than_this_machine_is_warned_of(monkeypatch):
    import uvicorn

    from dymn.cli import app

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: [one.close() for one in sockets])
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0", "-m", "dymn04_open"])
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    assert result.exit_code == 0, result.output
    assert "other machines can reach" in result.output and "No token is required" in result.output


def test_the_examples_of_the_documentation_work():
    """Run the lines with curl and the Python of docs/serve.md against a server at another port."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    process, address = start_server()
    try:
        wait_until_ready(address)
        lines = re.findall(r"^\$ (curl .*)$", text, re.M)
        assert len(lines) >= 4
        for line in lines:
            words = [word.replace("http://127.0.0.1:8000", address) for word in shlex.split(line)]
            done = subprocess.run(
                [*words, "--silent", "--globoff"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
            )
            assert json.loads(done.stdout)["tags"][0]["label"] in ("Animal", "Dog"), done.stdout
        snippet = next(code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "websockets" in code)
        said = []
        exec(snippet.replace("ws://127.0.0.1:8000", address.replace("http", "ws")), {"print": said.append})
        assert json.loads(said[0]) == {"ready": True} and json.loads(said[-1]) == {"done": True, "seconds": 5.0}
        assert [json.loads(message)["start"] for message in said[1:-1]] == [0, 1, 2, 3]
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("sender", ["quick", "endless", "silent", "waits for a go-ahead"])
def test_a_refused_sender_is_heard_out_within_bounds(sender, monkeypatch):
    """Closing a connection with unread bytes resets it, and the answer is lost on its way."""
    monkeypatch.setattr("dymn.serve.guard.READ_ON_SECONDS", 0.2)
    happened = []

    async def refuses(scope, receive, send):
        await JSONResponse({}, 503)(scope, receive, send)

    async def receive():
        if sender == "silent":
            await asyncio.sleep(60)
        happened.append("chunk")
        return {"type": "http.request", "body": bytes(1000), "more_body": sender == "endless" or len(happened) < 4}

    async def send(message):
        happened.append(message["type"])

    headers = [
        (b"host", b"localhost"),
        (b"transfer-encoding", b"chunked"),
        *([(b"expect", b"100-continue")] if sender.startswith("waits") else []),
    ]
    scope = {"type": "http", "method": "POST", "path": "/health", "headers": headers}
    settings = dataclasses.replace(ServeSettings(), max_bytes=10_000)
    asyncio.run(Guard(refuses, settings)(scope, receive, send))
    chunks = {"quick": 4, "endless": 11}.get(sender, 0)
    assert happened == ["chunk"] * chunks + ["http.response.start", "http.response.body"]


def test_messages_name_the_way_on_and_logs_the_sender(client, caplog):
    one = client()

    def message(response):
        return response.json()["error"]["message"]

    assert "did you mean /v1/tag" in message(one.get("/tag")) and "/v1/models" in message(one.get("/models"))
    assert message(one.get("/nothing")).startswith("There is no such endpoint.")
    wrong = one.post("/v1/tag?top_k=x", content=wav())
    assert wrong.status_code == 400 and message(wrong).endswith("/openapi.json lists what is allowed.")
    caplog.set_level(logging.WARNING, "dymn")
    one.post("/v1/tag", content=wav(0.05))
    assert "upload from testclient: it is 50 ms long" in caplog.text
