"""Downloads against a server on this machine that is good, slow, broken or lying."""

import contextlib
import dataclasses
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dymn.errors import WeightsError
from dymn.weights import download, transfer
from dymn.weights.registry import PublishedModel

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_error(405)

    def do_GET(self):
        name = self.path.strip("/").replace("-", "_")
        self.server.hits[name] += 1
        self.server.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, name)()

    def head(self, length=SIZE, status=200, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def good(self):
        self.head()
        self.wfile.write(CONTENT)

    def corrupted(self):
        self.head()
        self.wfile.write(OTHER)

    def truncated(self):
        self.head()
        self.wfile.write(CONTENT[:100_000])

    def short(self):
        self.head(1000)
        self.wfile.write(CONTENT[:1000])

    def huge(self):
        self.head(2**40)
        self.wfile.write(CONTENT)

    def endless(self):
        self.head(None)
        while True:
            self.wfile.write(CONTENT)

    def unsized(self):
        self.head(None)
        self.wfile.write(CONTENT)

    def hangs(self):
        self.server.released.wait(30)

    def stalls(self):
        self.head()
        self.wfile.write(CONTENT[:100_000])
        self.wfile.flush()
        self.server.released.wait(30)

    def drips(self):
        self.head()
        for start in range(0, len(CONTENT), 30_000):
            self.wfile.write(CONTENT[start : start + 30_000])
            time.sleep(0.05)

    def breaks(self):
        """Send 100,000 bytes a connection, from where the client asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.headers.get("If-Range") == '"v1"' else 0
        if start:
            self.head(
                len(CONTENT) - start, 206, ETag='"v1"', Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            )
        else:
            self.head(ETag='"v1"')
        self.wfile.write(CONTENT[start : start + 100_000])

    def changes(self):
        """Break once, then be another file."""
        if self.server.hits["changes"] == 1:
            self.head(ETag='"v1"')
            self.wfile.write(OTHER[:100_000])
        else:
            self.head(ETag='"v2"')
            self.wfile.write(CONTENT)

    def trickles(self):
        """Send a byte now and then, so that no single read takes long."""
        self.head()
        while not self.server.released.wait(0.1):
            self.wfile.write(b"x")
            self.wfile.flush()

    def missing(self):
        self.send_error(404)

    def babbles(self):
        self.wfile.write(b"220 mail.example.invalid ready\r\n\r\n")

    def boasts(self):
        """Give the length as a number too long to be one."""
        self.head("9" * 5000)
        self.wfile.write(CONTENT)

    def moved(self):
        self.head(0, 302, Location="/good")

    def downgrades(self):
        self.head(0, 302, Location="http://example.invalid/weights.pt")

    def to_a_file(self):
        self.head(0, 302, Location="file:///etc/passwd")


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hits, server.ranges, server.released = Counter(), [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lose_patience(monkeypatch):
    """Wait half a second where users wait for five."""
    monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.5)


def known(server, page, **changes):
    entry = PublishedModel(
        "model_x", "mn01", "model_x.pt", 60_000, 1, url=server.url + page, sha256=DIGEST, size=len(CONTENT)
    )
    return dataclasses.replace(entry, **changes)


def unknown(server, page, **changes):
    return known(server, page, sha256=None, size=None, **changes)


def accept_content(file):
    if file.content[:1000] != CONTENT[:1000]:
        raise WeightsError("this is another network.")


def never(path):
    raise AssertionError("not to be called")


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("page", ["good", "unsized", "boasts", "drips", "moved", "breaks", "changes"])
def test_download_ends_with_the_verified_file_alone(server, cache, page):
    calls = []
    local = download.fetch(known(server, page), never, lambda done, total: calls.append((done, total)))
    assert local == (cache / "model_x.pt", len(CONTENT), DIGEST, CONTENT)
    assert local.path.read_bytes() == CONTENT
    assert files(cache) == ["model_x.pt"]
    assert calls[-1] == (len(CONTENT), None if page in ("unsized", "boasts") else len(CONTENT))


def test_a_broken_transfer_goes_on_where_it_stopped(server):
    download.fetch(known(server, "breaks"), never)
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_the_cache_is_used(server):
    entry = known(server, "good")
    download.fetch(entry, never)
    download.fetch(entry, never)
    assert server.hits == {"good": 1}
    assert download.is_local(entry)


BROKEN_SERVERS = [
    ("truncated", "closed after 100,000 of 300,000 bytes"),
    ("hangs", "no response within 0.5 s|timed out"),
    ("stalls", "timed out after 100,000 of 300,000 bytes"),
    ("trickles", "bytes arrived in .* s; the minimum speed is 500 bytes per second"),
    ("missing", "HTTP Error 404"),
    ("downgrades", "http://example.invalid/weights.pt is not allowed: weights are downloaded over HTTPS only"),
    ("to_a_file", "file:///etc/passwd' is not allowed|file:///etc/passwd is not allowed"),
    ("babbles", "the server's response is not valid"),
]


def check_failure(model, reason, cache, monkeypatch):
    if model.url.endswith(("hangs", "stalls", "trickles")):
        lose_patience(monkeypatch)
    with pytest.raises(WeightsError, match=reason) as caught:
        download.fetch(model, accept_content)
    message = str(caught.value)
    assert "model_x.pt" in message and model.url in message and f"copy it to {cache / 'model_x.pt'}" in message
    assert files(cache) == []


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        *BROKEN_SERVERS,
        ("corrupted", f"SHA-256 {hashlib.sha256(OTHER).hexdigest()} instead of {DIGEST} .published"),
        ("short", "1,000 bytes instead of 300,000"),
        ("huge", "instead of 300,000; it was not downloaded"),
        ("endless", "exceeds its 300,000 bytes"),
    ],
)
def test_failures_are_explained_and_leave_nothing(server, cache, page, reason, monkeypatch):
    check_failure(known(server, page), reason, cache, monkeypatch)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        *BROKEN_SERVERS,
        ("corrupted", "this is another network"),
        ("huge", "instead of at most 1,348,576; it was not downloaded"),
        ("endless", "exceeds its 1,348,576 bytes"),
    ],
)
def test_failures_without_a_known_digest(server, cache, page, reason, monkeypatch):
    check_failure(unknown(server, page), reason, cache, monkeypatch)


def test_no_server(cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/model_x.pt"
    with pytest.raises(WeightsError, match=f"refused.*copy it to {cache / 'model_x.pt'}"):
        download.fetch(PublishedModel("model_x", "mn01", "model_x.pt", 1, 1, url=url), never)


def test_a_name_lookup_that_hangs_is_cut_short(monkeypatch):
    lose_patience(monkeypatch)
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30))
    with pytest.raises(WeightsError, match=r"no response within 0\.5 s"):
        download.fetch(
            PublishedModel("model_x", "mn01", "model_x.pt", 1, 1, url="https://example.invalid/model_x.pt"), never
        )
    released.set()


def test_patience_ends_within_ten_seconds():
    assert transfer.ANSWER_SECONDS + transfer.STALL_SECONDS <= 10


def test_only_https(server):
    with pytest.raises(WeightsError, match="HTTPS only"):
        download.fetch(known(server, "good", url="http://example.invalid/model_x.pt"), never)


def test_unknown_digest_is_recorded_and_enforced(server, cache, caplog):
    entry = unknown(server, "good")
    download.fetch(entry, accept_content)
    record = cache / "model_x.pt.sha256"
    assert record.read_text() == f"{DIGEST}  model_x.pt\n"
    download.fetch(entry, never)
    (cache / "model_x.pt").write_bytes(CONTENT[:-1])
    download.fetch(entry, never)  # damaged, so downloaded again
    assert "The file in the cache cannot be used" in caplog.text
    assert (cache / "model_x.pt").read_bytes() == CONTENT
    (cache / "model_x.pt").unlink()
    with pytest.raises(WeightsError, match=f"recorded in {record}.*If you trust the new file, remove"):
        download.fetch(unknown(server, "corrupted"), never)


def test_a_file_placed_by_hand_is_validated_once(server, cache):
    cache.mkdir()
    (cache / "model_x.pt").write_bytes(CONTENT)
    calls = []
    for _ in range(2):
        download.fetch(unknown(server, "missing"), calls.append)
    assert [file.path for file in calls] == [cache / "model_x.pt"]


def test_a_damaged_cache_without_network_is_explained(server, cache):
    cache.mkdir()
    (cache / "model_x.pt").write_bytes(CONTENT[:5000])
    with pytest.raises(WeightsError, match=r"file in the cache cannot be used: model_x.pt has 5,000 bytes.*404"):
        download.fetch(known(server, "missing"), never)
    assert (cache / "model_x.pt").exists()


def test_a_cache_that_is_a_file_is_explained(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DYMN_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set DYMN_CACHE to a writable folder"):
        download.fetch(known(server, "good"), never)


def test_what_killed_processes_left_is_removed(server, cache):
    cache.mkdir()
    old, new = cache / ".model_x.pt.a.part", cache / ".model_x.pt.b.part"
    for path, age in ((old, 2 * 24 * 3600), (new, 60)):
        path.write_text("")
        os.utime(path, (time.time() - age,) * 2)
    download.fetch(known(server, "good"), never)
    assert files(cache) == [new.name, "model_x.pt"]


def test_two_processes_at_once(server, cache):
    script = (
        "import sys; from dymn.weights.download import fetch; from dymn.weights.registry import PublishedModel\n"
        "print(fetch(PublishedModel('model_x', 'mn01', 'model_x.pt', 60_000, 1, url=sys.argv[1]), lambda path: "
        "None).digest)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script, server.url + "drips"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == [DIGEST, DIGEST]
    assert files(cache) == ["model_x.pt", "model_x.pt.sha256"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DYMN_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "dymn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "dymn"


def test_a_packaged_model_that_is_not_there(tmp_path):
    entry = PublishedModel("model_y", "mn01", "no_such_file.safetensors", 1, 1, packaged=True)
    assert not download.is_local(entry)
    with pytest.raises(WeightsError, match=r"model_y is part of dymn, but .*no_such_file.* is missing"):
        download.fetch(entry, never)


def test_a_packaged_model_that_is_damaged():
    entry = PublishedModel("model_y", "mn01", "audioset_labels.csv", 1, 1, packaged=True)
    assert download.fetch(entry, never).path == download.local_path(entry)
    with pytest.raises(WeightsError, match=r"audioset_labels.csv is damaged: .* Install dymn again"):
        download.fetch(dataclasses.replace(entry, sha256=DIGEST), never)


@pytest.mark.parametrize("name", ["model_x", "model_x.pt", "elsewhere/model_x.pt"])
def test_digests_can_be_pinned(server, cache, tmp_path, monkeypatch, name):
    cache.mkdir()
    (cache / "SHA256SUMS").write_text(f"# from a colleague\n{DIGEST.upper()}  {name}\n")
    entry = unknown(server, "good")
    assert download.known_digest(entry).origin == "pinned"
    assert download.fetch(entry, never).digest == DIGEST
    assert files(cache) == ["SHA256SUMS", "model_x.pt"]
    (tmp_path / "pins").write_text(f"{'0' * 64} *{name}\n")
    monkeypatch.setenv("DYMN_SHA256SUMS", str(tmp_path / "pins"))
    with pytest.raises(WeightsError, match=f"has the SHA-256 {DIGEST} instead of 0000.*pinned in .*pins"):
        download.fetch(entry, never)
    with pytest.raises(WeightsError, match=f"pins states the SHA-256 0000.* for model_x, but dymn knows {DIGEST}"):
        download.fetch(known(server, "good"), never)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_x.pt\n", "line 1: 'model_x.pt' is not in the format of sha256sum"),
        (None, "cannot be read: No such file"),
    ],
)
def test_pins_that_are_none_are_refused(server, cache, tmp_path, monkeypatch, text, says):
    if text is not None:
        (tmp_path / "pins").write_text(text)
    monkeypatch.setenv("DYMN_SHA256SUMS", str(tmp_path / "pins"))
    with pytest.raises(WeightsError, match=says):
        download.fetch(unknown(server, "good"), never)


def test_how_digests_are_known(server, cache):
    entry = unknown(server, "good")
    assert download.known_digest(entry).origin == "none"
    download.fetch(entry, accept_content)
    assert download.known_digest(entry).origin == "recorded"
    assert download.known_digest(known(server, "good")).origin == "published"
