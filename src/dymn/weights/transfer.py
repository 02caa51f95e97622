"""HTTPS transfers with the standard library: response deadline, minimum speed, resumption, size limit.

Neither pooch nor the Hub's client does all of this: the former does not resume, the latter accepts a damaged file, and
neither limits the size of a download.
"""

from __future__ import annotations

import http.client
import logging
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any, BinaryIO

from dymn.errors import WeightsError
from dymn.weights.files import DownloadProgress

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""Time limit from the look-up of a server's name to its answer, redirects included."""
STALL_SECONDS = 5.0
"""Time limit for each read, and the period over which the least speed is measured."""
LEAST_SPEED = 500
"""Bytes per second below which a transfer is given up."""
MAX_ATTEMPTS = 20
CHUNK = 2**16
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Remote:
    """A file on a server."""

    url: str
    name: str
    """Name of the file in messages."""
    size: int | None
    """Bytes, if known."""
    size_limit: int
    """Bytes above which the transfer stops."""
    token: str | None = None
    """Bearer token; it is sent to the host of `url` only."""


class RefusedError(WeightsError):
    """The server answered with an HTTP error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def transfer(remote: Remote, file: BinaryIO, progress: DownloadProgress | None = None) -> None:
    """Write a remote file to an empty local one; broken connections are resumed while attempts bring more bytes.

    Raises:
        WeightsError: if the server does not answer in time, is too slow, refuses, or sends more or fewer bytes than
            expected.
        OSError: if the local file cannot be written.
    """
    state = _State()
    furthest = 0
    for _ in range(MAX_ATTEMPTS):
        try:
            for chunk in _receive(remote, state, file):
                file.write(chunk)
                if progress is not None:
                    progress(state.done, state.total)
            return
        except _ConnectionLost as error:
            if state.done <= furthest:
                raise WeightsError(f"{remote.name} cannot be downloaded: {error}.") from error
            furthest = state.done
            logger.warning("%s: %s; trying again.", remote.name, error)
    raise WeightsError(f"{remote.name} cannot be downloaded: the connection broke {MAX_ATTEMPTS} times.")


def headers_of(url: str, token: str | None = None) -> Message:
    """Return the headers with which a server answers a HEAD request; redirects to other hosts are not followed.

    Raises:
        RefusedError: if the answer is an HTTP error.
        OSError: if there is no answer within `ANSWER_SECONDS`.
    """
    request = _request(url, token, method="HEAD")
    try:
        with _answer(request, _SameHostRedirects) as response:
            return response.headers
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                return error.headers
            raise RefusedError(str(error), error.code) from error


@dataclass
class _State:
    """Progress of a transfer over several connections."""

    done: int = 0
    total: int | None = None
    version: str | None = None  # ETag or date by which the server recognises that its file is unchanged


class _ConnectionLost(Exception):
    """The network failed; the local disk did not."""


def _receive(remote: Remote, state: _State, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the chunks of one connection, from `state.done` on if the server can resume, else from the beginning."""
    request = _request(remote.url, remote.token)
    if state.done and state.version:
        request.add_header("Range", f"bytes={state.done}-")
        request.add_header("If-Range", state.version)
    try:
        response = _answer(request, _SafeRedirects)
    except OSError as error:
        raise _ConnectionLost(reason_of(error)) from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {state.done}-"):
            state.done = 0
            file.seek(0)
            file.truncate()
        _read_headers(remote, state, response.headers)
        for chunk in _chunks(remote, state, response):
            state.done += len(chunk)
            if state.done > remote.size_limit:
                raise WeightsError(
                    f"{remote.name} on the server exceeds its {remote.size_limit:,} bytes; the download was stopped."
                )
            yield chunk
    if state.total is not None and state.done < state.total:
        raise _ConnectionLost(f"the connection was closed after {_amount(state)}")


def _read_headers(remote: Remote, state: _State, headers: Message) -> None:
    length = headers.get("Content-Length", "")
    state.total = state.done + int(length) if length.isdecimal() and len(length) < 20 else None
    etag = headers.get("ETag", "")
    state.version = etag if etag.startswith('"') else headers.get("Last-Modified")
    if state.total is not None and (
        state.total > remote.size_limit or (remote.size is not None and state.total != remote.size)
    ):
        expected = f"{remote.size:,}" if remote.size is not None else f"at most {remote.size_limit:,}"
        raise WeightsError(
            f"{remote.name} on the server has {state.total:,} bytes instead of {expected}; it was not downloaded."
        )


def _chunks(remote: Remote, state: _State, response: http.client.HTTPResponse) -> Iterator[bytes]:
    start, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _ConnectionLost(f"{reason_of(error)} after {_amount(state)}") from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - start
        if seconds >= STALL_SECONDS:
            if received < LEAST_SPEED * seconds:
                raise WeightsError(
                    f"{remote.name} cannot be downloaded: {received:,} bytes arrived in {seconds:.1f} s; the minimum "
                    f"speed is {LEAST_SPEED} bytes per second."
                )
            start, received = time.monotonic(), 0


def _amount(state: _State) -> str:
    return f"{state.done:,} of {state.total:,} bytes" if state.total is not None else f"{state.done:,} bytes"


def reason_of(error: Exception) -> str:
    """Return what went wrong, without the numbers and wrappers of the operating system's and urllib's errors."""
    cause = (
        error.reason
        if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)
        else error
    )
    words = cause.strerror if isinstance(cause, OSError) and not isinstance(cause, urllib.error.HTTPError) else None
    return words or str(cause) or type(cause).__name__


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only, or from this machine to itself; a token stays with its host."""

    def redirect_request(
        self, request: urllib.request.Request, file: IO[bytes], code: int, message: str, headers: Any, url: str
    ) -> Any:
        _check_url(url, loopback=_is_loopback(request.full_url))
        redirected = super().redirect_request(request, file, code, message, headers, url)
        token = request.unredirected_hdrs.get("Authorization")
        if redirected is not None and token and _same_host(request.full_url, url):
            redirected.add_unredirected_header("Authorization", token)
        return redirected


class _SameHostRedirects(_SafeRedirects):
    """Follow redirects within a host; another one ends as an HTTPError that holds the headers."""

    def redirect_request(
        self, request: urllib.request.Request, file: IO[bytes], code: int, message: str, headers: Any, url: str
    ) -> Any:
        if not _same_host(request.full_url, url):
            return None
        return super().redirect_request(request, file, code, message, headers, url)


def _same_host(url: str, other: str) -> bool:
    return urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(other)[:2]


def _is_loopback(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in LOOPBACK


def _check_url(url: str, *, loopback: bool = True) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and loopback and _is_loopback(url)):
        raise WeightsError(f"{url} is not allowed: weights are downloaded over HTTPS only.")


def _request(url: str, token: str | None, method: str = "GET") -> urllib.request.Request:
    _check_url(url)
    request = urllib.request.Request(url, headers={"User-Agent": "dymn"}, method=method)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _answer(request: urllib.request.Request, redirects: type[_SafeRedirects]) -> http.client.HTTPResponse:
    """Open a connection and return the response once its headers are there; raise an OSError after `ANSWER_SECONDS`.

    Name look-ups have no timeout and a host may have many addresses, so a daemon thread does the waiting.
    """
    proxies = [urllib.request.ProxyHandler({})] if _is_loopback(request.full_url) else []
    opener = urllib.request.build_opener(redirects, *proxies)
    outcome: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(opener.open(request, timeout=STALL_SECONDS))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, name="dymn-connect", daemon=True).start()
    try:
        answer = outcome.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no response within {ANSWER_SECONDS:g} s") from None
    if isinstance(answer, http.client.HTTPException) and not isinstance(answer, OSError):
        raise ConnectionError(f"the server's response is not valid: {answer!r}") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer
