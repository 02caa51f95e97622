"""Verified downloads into a user cache, with the standard library only.

A file that is in the cache has passed one of two tests: its SHA-256 is the one in the registry, or, where that is not known, it was
imported and holds exactly the expected network, and its SHA-256 was written down beside it and is enforced from then on. A
transfer that breaks goes on where it stopped if the server can do that. Every process writes into a file of its own and puts
it in place at once when it is complete and verified, so several may download the same model.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from dymn.errors import WeightsError
from dymn.system.files import atomic_write
from dymn.weights.registry import PublishedModel

logger = logging.getLogger(__name__)

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes that are there and the bytes in all (None if the server does not say)."""

ANSWER_SECONDS = 5.0
"""How long a server may take from the look-up of its name to its answer, redirects included."""
STALL_SECONDS = 5.0
"""How long a transfer may bring nothing."""
MAX_ATTEMPTS = 20
CHUNK = 2**16
STALE_SECONDS = 24 * 3600
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class LocalFile(NamedTuple):
    """A verified file on this machine."""

    path: Path
    digest: str  # SHA-256


def cache_folder() -> Path:
    """Return the folder that downloads go to: `DYMN_CACHE` if set, else `dymn` in the user's cache folder."""
    if chosen := os.environ.get("DYMN_CACHE"):
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dymn"


def local_path(model: PublishedModel) -> Path:
    """Return where the file of a model is, or belongs: in this package or in the cache."""
    return (Path(__file__).parent if model.packaged else cache_folder()) / model.file


def is_local(model: PublishedModel) -> bool:
    """Return whether the file of a model is there (it is verified when it is used)."""
    path = local_path(model)
    return path.is_file() and (model.size is None or path.stat().st_size == model.size)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        WeightsError: if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def fetch(model: PublishedModel, validate: Callable[[Path], object], progress: Progress | None = None) -> LocalFile:
    """Return the verified file of a model; download it if it is not in the cache, or is damaged there.

    Args:
        model: an entry of the registry.
        validate: imports a file and raises a `WeightsError` unless it holds exactly the expected network; called for files
            whose SHA-256 is neither in the registry nor recorded in the cache.
        progress: told how the download goes.

    Raises:
        WeightsError: if the file cannot be downloaded, verified or written. The message names the file, the URL, and where to
            place the file by hand.
    """
    path = local_path(model)
    if model.packaged:
        if not path.is_file():
            raise WeightsError(f"{model.name} should come with dymn, but there is no {path}. Install dymn again, or choose another model.")
        digest = sha256_of(path)
        if model.sha256 not in (None, digest):
            raise WeightsError(f"{path} is damaged: its SHA-256 is {digest} instead of {model.sha256}. Install dymn again.")
        return LocalFile(path, digest)
    problem = ""
    if path.is_file():
        try:
            return LocalFile(path, _verify(path, model, validate))
        except WeightsError as error:
            problem = f"The copy in the cache cannot be used: {error} "
            logger.warning("%sIt is downloaded again.", problem)
    try:
        _remove_stale_parts(path)
        with atomic_write(path) as file:
            _transfer(model, file, progress)
            file.flush()
            digest = _verify(Path(file.name), model, validate)
    except WeightsError as error:
        raise WeightsError(f"{problem}{error} {_by_hand(model)}") from error
    except OSError as error:
        raise WeightsError(
            f"{problem}{model.name} cannot be stored as {path}: {error.strerror or error}. "
            "Free some space or set DYMN_CACHE to a folder that can be written to."
        ) from error
    return LocalFile(path, digest)


def check_reachable(url: str) -> None:
    """Raise an OSError unless a server answers at `url` within `ANSWER_SECONDS`, with whatever it says."""
    with contextlib.suppress(urllib.error.HTTPError):
        _answer(urllib.request.Request(url, method="HEAD")).close()


def _by_hand(model: PublishedModel) -> str:
    place = local_path(model)
    return f"To do without the network, get {model.file} from {model.url} elsewhere and place it as {place}, or give the path of a file."


def _verify(path: Path, model: PublishedModel, validate: Callable[[Path], object]) -> str:
    """Check a file, in the cache or on its way there, and record its digest if none is known. Return the digest."""
    size = path.stat().st_size
    if model.size is not None and size != model.size:
        raise WeightsError(f"{model.file} has {size:,} bytes instead of {model.size:,}.")
    digest = sha256_of(path)
    record = local_path(model).with_name(f"{model.file}.sha256")
    expected, origin = model.sha256, "published"
    if expected is None and record.is_file():
        expected, origin = record.read_text(encoding="ascii", errors="replace")[:64], f"recorded in {record} when it was first verified"
    if expected is None:
        try:
            validate(path)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(path), model.file)) from error
        with atomic_write(record) as file:
            file.write(f"{digest}  {model.file}\n".encode("ascii"))
    elif digest != expected:
        remedy = "" if model.sha256 else f" If you trust the new file, remove {record}."
        raise WeightsError(f"{model.file} has the SHA-256 {digest}, not the one {origin}, {expected}.{remedy}")
    return digest


@dataclass
class _Transfer:
    """How far a download is, over several connections."""

    done: int = 0
    total: int | None = None
    version: str | None = None  # an ETag or a date by which the server knows whether its file is still the same


def _transfer(model: PublishedModel, file: BinaryIO, progress: Progress | None) -> None:
    """Write the whole file, over as many connections as that takes while each brings it further."""
    state = _Transfer()
    furthest = 0
    for _ in range(MAX_ATTEMPTS):
        try:
            for chunk in _receive(model, state, file):
                file.write(chunk)
                if progress is not None:
                    progress(state.done, state.total)
            return
        except _ConnectionLost as error:
            if state.done <= furthest:
                raise WeightsError(f"{model.name} cannot be downloaded: {error}.") from error
            furthest = state.done
            logger.warning("%s: %s; trying again.", model.file, error)
    raise WeightsError(f"{model.name} cannot be downloaded: the connection broke {MAX_ATTEMPTS} times.")


class _ConnectionLost(Exception):
    """The network failed; the local disk did not."""


def _receive(model: PublishedModel, state: _Transfer, file: IO[bytes]) -> Iterator[bytes]:
    request = urllib.request.Request(model.url, headers={"User-Agent": "dymn"})
    if state.done and state.version:
        request.add_header("Range", f"bytes={state.done}-")
        request.add_header("If-Range", state.version)
    try:
        response = _answer(request)
    except OSError as error:
        raise _ConnectionLost(_reason(error)) from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {state.done}-"):
            state.done = 0
            file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length", "")
        state.total = state.done + int(length) if length.isdecimal() and len(length) < 20 else None
        etag = response.headers.get("ETag", "")
        state.version = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        if state.total is not None and (state.total > model.size_limit or (model.size is not None and state.total != model.size)):
            expected = f"{model.size:,}" if model.size is not None else f"at most {model.size_limit:,}"
            raise WeightsError(f"The server's {model.file} has {state.total:,} bytes instead of {expected}; it was not downloaded.")
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _ConnectionLost(f"{_reason(error)} after {_amount(state)}") from error
            if not chunk:
                break
            state.done += len(chunk)
            if state.done > model.size_limit:
                raise WeightsError(
                    f"The server's {model.file} has more than the {model.size_limit:,} bytes that it can have; the download was stopped."
                )
            yield chunk
    if state.total is not None and state.done < state.total:
        raise _ConnectionLost(f"the connection was closed after {_amount(state)}")


def _amount(state: _Transfer) -> str:
    return f"{state.done:,} of {state.total:,} bytes" if state.total is not None else f"{state.done:,} bytes"


def _reason(error: Exception) -> str:
    """Return what went wrong, without the numbers and wrappers of the operating system's and urllib's errors."""
    cause = error.reason if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError) else error
    words = cause.strerror if isinstance(cause, OSError) and not isinstance(cause, urllib.error.HTTPError) else None
    return words or str(cause) or type(cause).__name__


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only, or from this machine to itself."""

    def redirect_request(self, request: urllib.request.Request, file: IO[bytes], code: int, message: str, headers: Any, url: str) -> Any:
        _check_url(url, loopback=_is_loopback(request.full_url))
        return super().redirect_request(request, file, code, message, headers, url)


def _is_loopback(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in LOOPBACK


def _check_url(url: str, *, loopback: bool = True) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and loopback and _is_loopback(url)):
        raise WeightsError(f"{url} is refused: weights are downloaded over https only.")


def _answer(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Open a connection and return the response once its headers are there, or raise an OSError after `ANSWER_SECONDS` at most.

    Name look-ups know no timeout and hosts have many addresses, so the waiting is done in a thread that is left behind.
    """
    _check_url(request.full_url)
    proxies = [urllib.request.ProxyHandler({})] if _is_loopback(request.full_url) else []
    opener = urllib.request.build_opener(_SafeRedirects, *proxies)
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
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None
    if isinstance(answer, http.client.HTTPException) and not isinstance(answer, OSError):
        raise ConnectionError(f"the server's answer makes no sense: {answer!r}") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


def _remove_stale_parts(path: Path) -> None:
    """Remove what killed processes left behind a day ago or earlier."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
