"""Weights from the Hugging Face Hub, without its client.

One file of a repository is downloaded into the client's cache.

The variables HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE have the same meaning as for the client.
Files that the client downloaded are found in the cache. A file's SHA-256 is that of the Hub, if the Hub stores the file
by its SHA-256.
"""

from __future__ import annotations

import logging
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from dymn.errors import WeightsError
from dymn.system.files import atomic_write
from dymn.weights.download import remove_stale_parts
from dymn.weights.files import MAX_FILE, DownloadProgress, WeightsFile, read_file
from dymn.weights.format import WEIGHTS_FILE as FILE
from dymn.weights.transfer import RefusedError, Remote, headers_of, reason_of, transfer

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
BLOB = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True)
class Repository:
    """A repository at one revision."""

    name: str
    """As in "user/repo"."""
    revision: str = "main"
    """A branch, a tag or a commit."""

    @property
    def cache(self) -> Path:
        """Folder of the repository in the Hub's cache."""
        return hub_cache() / f"models--{self.name.replace('/', '--')}"

    def url(self, revision: str) -> str:
        """Return the address of the weights at a revision."""
        return f"{endpoint()}/{self.name}/resolve/{urllib.parse.quote(revision, safe='')}/{FILE}"

    def snapshot(self, commit: str) -> Path:
        """Return the path of the weights of a commit in the cache."""
        return self.cache / "snapshots" / commit / FILE


def fetch_hub(name: str, progress: DownloadProgress | None = None) -> WeightsFile:
    """Return the verified weights of "user/repo" or "user/repo@revision".

    They are downloaded if the cache has an older version or none; without a network, or with HF_HUB_OFFLINE=1, the
    version in the cache is used.

    Raises:
        WeightsError: if there is no such file, or it cannot be downloaded, verified or written.
    """
    repository = Repository(*name.split("@", 1))
    try:
        return _fetch(repository, progress)
    except (WeightsError, OSError) as error:
        what = f"{FILE} of {repository.name} on the Hugging Face Hub"
        raise WeightsError(f"There is no file or folder {name}, and {what} cannot be loaded: {error}") from error


def endpoint() -> str:
    """Return the address of the Hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_cache() -> Path:
    """Return the folder in which the Hub's client and dymn keep repositories."""
    chosen = os.environ.get("HF_HUB_CACHE")
    return Path(chosen).expanduser() if chosen else _home() / "hub"


def _fetch(repository: Repository, progress: DownloadProgress | None) -> WeightsFile:
    revision = repository.revision
    if not revision or ".." in revision:
        raise WeightsError(f"{revision!r} is not a revision. Give a branch, a tag or a commit.")
    if COMMIT.fullmatch(revision) and repository.snapshot(revision).is_file():
        return _verified(repository.snapshot(revision))
    if _is_set("HF_HUB_OFFLINE"):
        return _cached(repository, "HF_HUB_OFFLINE is set, but the file is not in the cache.")
    try:
        version = _look_up(repository)
    except OSError as error:
        logger.info("%s cannot be reached: %s", endpoint(), error)
        return _cached(
            repository,
            f"{endpoint()} does not respond ({reason_of(error)}). Download the file on another machine "
            "and give its path.",
        )
    except RefusedError as error:
        if error.status < 500:
            raise WeightsError(_refusal(repository, error)) from error
        return _cached(
            repository,
            f"{endpoint()} reports {error}. Try again later, or download the file on another machine and "
            "give its path.",
        )
    return _store(repository, version, progress)


@dataclass(frozen=True)
class _Version:
    """The Hub's answer about a file."""

    commit: str
    blob: str  # SHA-256 of a large file, Git's hash of a small one
    size: int | None


def _look_up(repository: Repository) -> _Version:
    headers = headers_of(repository.url(repository.revision), _token())
    commit = headers.get("X-Repo-Commit", "")
    blob = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    if not COMMIT.fullmatch(commit) or not BLOB.fullmatch(blob):
        raise WeightsError(f"{endpoint()} does not respond like the Hugging Face Hub. Check HF_ENDPOINT.")
    size = headers.get("X-Linked-Size", "")
    return _Version(commit, blob, int(size) if size.isdecimal() and len(size) < 20 else None)


def _store(repository: Repository, version: _Version, progress: DownloadProgress | None) -> WeightsFile:
    """Return the file of a version from the cache, or download it into the cache."""
    snapshot = repository.snapshot(version.commit)
    expected = version.blob if SHA256.fullmatch(version.blob) else None
    blob = repository.cache / "blobs" / version.blob
    found = next((read_file(path) for path in (snapshot, blob) if path.is_file()), None)
    if found is None or expected not in (None, found.digest):
        remove_stale_parts(blob)
        remote = Remote(repository.url(version.commit), FILE, version.size, version.size or MAX_FILE, _token())
        with atomic_write(blob) as file:
            transfer(remote, file, progress)
            file.flush()
            found = read_file(Path(file.name))
            if expected not in (None, found.digest):
                raise WeightsError(f"{FILE} has the SHA-256 {found.digest} instead of {expected}. Try again.")
        snapshot.unlink(missing_ok=True)
    if not snapshot.is_file():
        _link(snapshot, blob)
    if not COMMIT.fullmatch(repository.revision):
        with atomic_write(repository.cache / "refs" / repository.revision) as file:
            file.write(version.commit.encode("ascii"))
    return found._replace(path=snapshot)


def _link(snapshot: Path, blob: Path) -> None:
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    try:
        snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    except FileExistsError:
        pass  # another process has linked the same file
    except OSError:  # the file system has no links
        os.replace(blob, snapshot)


def _cached(repository: Repository, problem: str) -> WeightsFile:
    """Return the version in the cache, or raise a WeightsError that states the problem."""
    try:
        commit = (repository.cache / "refs" / repository.revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    path = repository.snapshot(commit)
    if not COMMIT.fullmatch(commit) or not path.is_file():
        raise WeightsError(problem)
    return _verified(path)


def _verified(path: Path) -> WeightsFile:
    """Return a file of the cache; the name of what its link points to is its SHA-256, for a large file."""
    found, stored = read_file(path), path.resolve()
    if SHA256.fullmatch(stored.name) and stored.name != found.digest:
        raise WeightsError(
            f"{stored} is damaged: its SHA-256 is {found.digest}. Remove it and load the model again with a network "
            "connection."
        )
    return found


def _refusal(repository: Repository, error: RefusedError) -> str:
    if error.status in (401, 403):
        return (
            f"{error}. The repository does not exist or is private; "
            "for a private one, set HF_TOKEN or run `hf auth login`."
        )
    return f"{error}. There is no such repository, revision ({repository.revision}) or file."


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _home() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser()


def _token() -> str | None:
    """Return the access token of HF_TOKEN or of `hf auth login`, if there is one."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    if _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    path = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
