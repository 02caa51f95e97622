"""Weights from the Hugging Face Hub, against a server on this machine that answers as the Hub does.

The client reads the same cache.
"""

import hashlib
import os
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dymn.errors import MissingExtraError, WeightsError
from dymn.weights import hub
from dymn.weights.hub import fetch_hub

FIRST, SECOND = "1" * 40, "2" * 40
CONTENT = {FIRST: random.Random(1).randbytes(50_000), SECOND: random.Random(2).randbytes(60_000)}
DIGEST = {commit: hashlib.sha256(content).hexdigest() for commit, content in CONTENT.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path.startswith("/cdn/"):
            content = self.server.content[self.path[5:]]
            return self.reply(200, content, ETag='"cdn"')
        _, user, repository, _, revision, _ = self.path.split("/")
        if user == "old":
            return self.reply(307, Location=self.path.replace("/old/", "/user/"))
        if self.server.status:
            return self.reply(self.server.status)
        if repository == "secret" and self.headers.get("Authorization") != "Bearer t":
            return self.reply(401)
        commit = {"main": self.server.head, "release%2Fv1": FIRST}.get(revision, revision)
        if commit not in CONTENT or repository == "nothing":
            return self.reply(404)
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{DIGEST[commit]}"',
            "X-Linked-Size": str(len(CONTENT[commit])),
        }
        if repository == "small":  # stored by Git itself, without a redirect
            return self.reply(200, CONTENT[commit], **{"X-Repo-Commit": commit, "ETag": f'"{commit[::-1]}"'})
        return self.reply(302, Location=f"http://localhost:{self.server.server_port}/cdn/{commit}", **headers)

    def reply(self, status, content=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.requests, server.content, server.head, server.status = [], dict(CONTENT), FIRST, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()


def no_server(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


def test_the_newest_version_is_downloaded_once(server):
    calls = []
    for _ in range(2):
        file = fetch_hub("user/repo", lambda done, total: calls.append((done, total)))
        assert file.digest == DIGEST[FIRST] and file.path.read_bytes() == CONTENT[FIRST]
    # the redirect is the second GET
    assert [method for method, *_ in server.requests] == ["HEAD", "GET", "GET", "HEAD"]
    assert calls[-1] == (50_000, 50_000)
    server.head = SECOND
    assert fetch_hub("user/repo").digest == DIGEST[SECOND]
    assert fetch_hub("user/repo@release/v1").digest == DIGEST[FIRST]


def test_a_commit_in_the_cache_needs_no_network(server, monkeypatch):
    fetch_hub(f"user/repo@{FIRST}")
    no_server(monkeypatch)
    assert fetch_hub(f"user/repo@{FIRST}").digest == DIGEST[FIRST]


@pytest.mark.parametrize("reason", ["unreachable", "offline", "broken"])
def test_without_the_hub_the_version_in_the_cache_is_used(server, monkeypatch, reason):
    fetch_hub("user/repo@release/v1")
    if reason == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif reason == "broken":
        server.status = 503
    else:
        no_server(monkeypatch)
    before = len(server.requests)
    assert fetch_hub("user/repo@release/v1").digest == DIGEST[FIRST]
    assert (len(server.requests) == before) == (reason != "broken")
    remedy = {
        "unreachable": "does not respond .*Download the file on another machine",
        "offline": "HF_HUB_OFFLINE is set",
        "broken": "503.*Try again later",
    }
    with pytest.raises(
        WeightsError, match=f"no file or folder user/other, and model.safetensors of user/other.*{remedy[reason]}"
    ):
        fetch_hub("user/other")


def test_the_cache_is_that_of_the_client(server, monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    path = fetch_hub("user/repo").path
    cache = tmp_path / "hf" / "hub"
    assert huggingface_hub.try_to_load_from_cache("user/repo", hub.FILE, cache_dir=cache) == str(path)
    (repository,) = huggingface_hub.scan_cache_dir(cache).repos
    assert repository.repo_id == "user/repo" and {
        ref for revision in repository.revisions for ref in revision.refs
    } == {"main"}
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    no_server(monkeypatch)
    assert fetch_hub("user/repo").path == path


def test_a_file_that_git_stores(server):
    assert fetch_hub("user/small").digest == DIGEST[FIRST]
    assert fetch_hub("user/small").digest == DIGEST[FIRST]


def test_no_links(server, monkeypatch):
    monkeypatch.setattr(os, "symlink", lambda *_, **__: (_ for _ in ()).throw(OSError("no links here")))
    for _ in range(2):
        file = fetch_hub("user/repo")
        assert not file.path.is_symlink() and file.path.read_bytes() == CONTENT[FIRST]
    assert [method for method, *_ in server.requests] == ["HEAD", "GET", "GET", "HEAD"]


def test_a_renamed_repository(server):
    assert fetch_hub("old/repo").digest == DIGEST[FIRST]


def test_the_token_stays_with_its_host(server, monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match=r"401.*private.*HF_TOKEN"):
        fetch_hub("user/secret")
    monkeypatch.setenv("HF_TOKEN", "t")
    server.requests.clear()
    assert fetch_hub("old/secret").digest == DIGEST[FIRST]
    assert {path.startswith("/cdn/"): token for _, path, token in server.requests} == {True: None, False: "Bearer t"}
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf" / "token").write_text("t\n")
    assert fetch_hub("user/secret").digest == DIGEST[FIRST]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("user/nothing", "404.*no such repository, revision"),
        ("user/repo@v9", r"404.*revision \(v9\)"),
        ("user/repo@../../x", "is not a revision"),
    ],
)
def test_names_that_the_hub_does_not_know(server, name, reason):
    with pytest.raises(WeightsError, match=f"no file or folder {name}, .*{reason}"):
        fetch_hub(name)


def test_damage_is_noticed(server, monkeypatch):
    server.content[FIRST] = CONTENT[FIRST][:-1] + b"x"
    with pytest.raises(WeightsError, match=f"instead of {DIGEST[FIRST]}"):
        fetch_hub("user/repo")
    server.content[FIRST] = CONTENT[FIRST]
    path = fetch_hub("user/repo").path
    path.write_bytes(CONTENT[SECOND])
    with monkeypatch.context() as patch:
        no_server(patch)
        with pytest.raises(WeightsError, match=r"is damaged.*Remove it"):
            fetch_hub("user/repo")
    assert fetch_hub("user/repo").path.read_bytes() == CONTENT[FIRST]


def test_an_endpoint_that_is_not_the_hub(server, monkeypatch):
    monkeypatch.setattr(Handler, "answer", lambda self: self.reply(200, b"hello"))
    with pytest.raises(WeightsError, match="Check HF_ENDPOINT"):
        fetch_hub("user/repo")


def test_a_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"user/repo.*cannot be loaded"):
        fetch_hub("user/repo")


def test_load_model_takes_names_of_the_hub(server, monkeypatch, tmp_path):
    from dymn import create_model, load_model

    model = create_model("mn04", 3, width=0.1)
    model.save_pretrained(tmp_path / "repo")
    server.content[FIRST] = content = (tmp_path / "repo" / "model.safetensors").read_bytes()
    monkeypatch.setitem(CONTENT, FIRST, content)
    monkeypatch.setitem(DIGEST, FIRST, hashlib.sha256(content).hexdigest())
    assert load_model("user/repo").config == model.config == type(model).from_pretrained("user/repo@release/v1").config


def test_uploads_name_the_extra(monkeypatch):
    from dymn import create_model

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"dymn\[hub\]"):
        create_model("mn04", 3, width=0.1).push_to_hub("user/repo")
