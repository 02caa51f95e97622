"""What a long run has done so far, kept beside its output so that it can go on after any end, a loss of power included.

A journal is an SQLite database: a record is there as a whole or not at all, a torn or spoilt one is seen by its checksum, and an end
at any moment leaves the state of the last commit. It holds the settings, the list of recordings in the order of the output, and for each
one that is done its size, its time of change and its result. A recording is done again only if one of the two has changed. While a
run has its journal open, no other can open it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dymn.audio import reading
from dymn.errors import AudioError, ConfigError, DataError

FORMAT = 2
COMMIT_SECONDS = 1.0
"""How much work is lost at most where the power fails or the process is killed, besides what is in flight."""
MAX_RESULT = 2**29
"""The most bytes of a result; SQLite's limit is 10^9."""
PAGE = 256

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS listed (place BLOB PRIMARY KEY, name BLOB, path BLOB UNIQUE, size INTEGER, changed INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS done (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, seconds REAL, result BLOB, error TEXT, crc INTEGER);
"""
_VALID = "done.path = listed.path AND done.size = listed.size AND done.changed = listed.changed"


class Stamp(NamedTuple):
    """By what a file is seen to be the one of before: bytes, and nanoseconds of its last change; -1 and 0 of one that is not there."""

    size: int
    changed: int


class Task(NamedTuple):
    """A recording that is to be done: its path as given, its whole path, and its stamp when it was begun."""

    name: Path
    path: bytes
    stamp: Stamp


class Done(NamedTuple):
    """A recording that is done: its path as given, how long it is, and its result, or why there is none."""

    name: Path
    seconds: float
    result: bytes | None
    error: str | None


class Counts(NamedTuple):
    """How many recordings are listed, how many of them done, and how many of those failed."""

    listed: int
    done: int
    failed: int


def journal_path(output: Path) -> Path:
    """Return where the journal of an output lies: beside it, or beside the file that a link leads to."""
    target = Path(os.path.realpath(output))
    return target.with_name(f"{target.name}.journal")


def stamp(path: str | bytes | Path) -> Stamp:
    """Return the stamp of a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return Stamp(-1, 0)
    return Stamp(status.st_size, status.st_mtime_ns)


class Journal:
    """The journal of the run that writes `output`; to be used in one thread, and in a `with`."""

    def __init__(self, output: Path, settings: Mapping[str, Any], *, fresh: bool = False, retry: bool = False) -> None:
        """Open the journal of an output, or begin one.

        Args:
            output: the file that the run is to write.
            settings: all that results depend on besides the recordings, as JSON types. The journal of a run that did not end is gone
                on with if they are the same.
            fresh: forget what was done before.
            retry: forget what failed before; the journal of a run that ended with failures is then gone on with as well.

        Raises:
            ConfigError: if another run has the journal open, or settings differ; the message names the difference.
            DataError: if the file is no journal or damaged.
            OSError: if the journal cannot be written.
        """
        self.output, self.path = output, journal_path(output)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._committed = time.monotonic()
        with self._telling():
            try:
                self._open(settings, fresh, retry)
            except (sqlite3.DatabaseError, DataError) as error:
                if not fresh or isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.unlink()
                self._open(settings, fresh, retry)

    def _open(self, settings: Mapping[str, Any], fresh: bool, retry: bool) -> None:
        """Open, lock and begin the file at `path`; once more if the run that had it removed it meanwhile."""
        while True:
            self._database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            try:
                self._database.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
                identity = _identity(self.path)
                self._database.execute("BEGIN EXCLUSIVE")
                if identity is not None and identity == _identity(self.path):
                    self._begin(json.loads(json.dumps(settings)), fresh, retry)
                    return
            except BaseException as error:
                self._database.close()
                if isinstance(error, UnicodeDecodeError):  # SQLite's message quotes it
                    raise self._damaged("a name in it is no text") from error
                raise
            self._database.close()

    def _begin(self, settings: dict[str, Any], fresh: bool, retry: bool) -> None:
        for statement in _TABLES.strip().splitlines():
            self._database.execute(statement)
        found = {sql for (sql,) in self._database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found != {statement.replace("IF NOT EXISTS ", "").rstrip(";") for statement in _TABLES.strip().splitlines()}:
            raise self._damaged("it has other tables, or more than these")
        try:
            facts = {name: json.loads(value) for name, value in self._database.execute("SELECT name, value FROM facts")}
            differing = _differences(facts.get("settings", settings), settings)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._damaged("its settings make no sense") from error
        self.was_complete = bool(facts.get("complete")) and not retry and not fresh
        if facts.get("format", FORMAT) != FORMAT:
            differing = [f"the journal's format is {facts['format']}, now {FORMAT}"]
        if differing and not fresh and (retry or not facts.get("complete")):
            raise ConfigError(
                f"{self.path} is of a run with other settings: {'; '.join(differing)}. Give those to go on, or --fresh to start over."
            )
        if fresh or self.was_complete:
            self._database.execute("DELETE FROM done")
        if retry:
            self._database.execute("DELETE FROM done WHERE error IS NOT NULL")
        self._write_facts(format=FORMAT, settings=settings, complete=False)
        self.commit()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Keep what is done; remove a journal in which nothing is."""
        try:
            with contextlib.suppress(sqlite3.Error):  # a disk that is full has been told of
                self.commit()
            with contextlib.suppress(sqlite3.Error):
                if not self._database.execute("SELECT EXISTS (SELECT 1 FROM done)").fetchone()[0]:
                    self._remove()
        finally:
            self._database.close()

    def commit(self) -> None:
        """Bring what is done to the disk."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._database.execute("BEGIN")
        self._committed = time.monotonic()

    def find(self, paths: Iterable[str]) -> list[tuple[str, AudioError]]:
        """List the recordings that paths name, each once: in the order of the paths, within each sorted as by `dymn.audio.reading.find`.

        Returns:
            the paths that name none, and why.

        Raises:
            ConfigError: if one of the recordings is the output.
        """
        lost = []
        target = _identity(self.output)
        with self._telling():
            self._database.execute("DELETE FROM listed")
            for number, path in enumerate(paths):
                rows = (_row(number, item, self.output, target) for item in reading.expand(path))
                try:
                    self._database.executemany("INSERT OR IGNORE INTO listed VALUES (?, ?, ?, ?, ?)", rows)
                except AudioError as error:
                    lost.append((path, error))
            self.commit()
        return lost

    def counts(self) -> Counts:
        """Count the recordings that are listed, and of those the done and the failed ones as they now are."""
        with self._telling():
            (listed,) = self._database.execute("SELECT count(*) FROM listed").fetchone()
            row = self._database.execute(f"SELECT count(*), count(done.error) FROM listed JOIN done ON {_VALID}").fetchone()
        return Counts(listed, *row)

    def to_do(self) -> Iterator[Task]:
        """Yield the recordings that are listed and not done, or have changed since, in their order."""
        place = b""
        missing = f"listed LEFT JOIN done ON {_VALID} WHERE done.path IS NULL"
        query = f"SELECT name, listed.path, place FROM {missing} AND place > ? ORDER BY place LIMIT {PAGE}"
        while True:
            with self._telling():
                page = self._database.execute(query, (place,)).fetchall()
            if not page:
                return
            for name, path, _ in page:
                yield Task(Path(os.fsdecode(name)), path, stamp(path))
            place = page[-1][2]

    def put(self, task: Task, seconds: float, result: bytes | None, error: str | None) -> None:
        """Take in what became of a recording; it is on the disk within `COMMIT_SECONDS`, if there are more to come."""
        if result is not None and len(result) > MAX_RESULT:
            error = f"{task.name} has a result of {len(result) / 2**20:.0f} MiB, too much for a journal. Do it by itself."
            result = None
        with self._telling():
            row = (task.path, *task.stamp, seconds, result, error, _crc(seconds, result, error))
            self._database.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            # What comes out is the newest there is, also where the file has changed since it was listed.
            self._database.execute("UPDATE listed SET size = ?, changed = ? WHERE path = ?", (*task.stamp, task.path))
            if time.monotonic() - self._committed >= COMMIT_SECONDS:
                self.commit()

    def results(self) -> Iterator[Done]:
        """Yield what became of all recordings, in their order.

        Raises:
            DataError: if one of them is not done, the journal holds what no run has put there, or a record is damaged; that is removed,
                so that it is done again.
        """
        query = f"SELECT name, seconds, result, error, crc, done.path FROM listed LEFT JOIN done ON {_VALID} ORDER BY place"
        with self._telling():
            for name, seconds, result, error, crc, path in self._database.execute(query):
                if path is None:
                    raise DataError(f"{self.path} lacks {os.fsdecode(name)}. Start the command again to go on.")
                if not (
                    isinstance(seconds, float)
                    and math.isfinite(seconds)
                    and isinstance(result, (bytes, type(None)))
                    and isinstance(error, (str, type(None)))
                ):
                    raise self._damaged(f"what it has of {os.fsdecode(name)} makes no sense")
                if crc != _crc(seconds, result, error):
                    self._database.execute("DELETE FROM done WHERE path = ?", (path,))
                    raise DataError(f"{self.path} is damaged where {os.fsdecode(name)} is kept. Start the command again to do that again.")
                yield Done(Path(os.fsdecode(name)), seconds, result, error)

    def complete(self, keep: bool) -> None:
        """Say that the output is written: remove the journal, or keep it for recordings that failed to be tried again."""
        with self._telling():
            self._write_facts(complete=True)
            self.commit()
            if not keep:
                self._remove()

    def _write_facts(self, **facts: Any) -> None:
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        self._database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    def _remove(self) -> None:
        """Remove the file while it is still locked, where the system allows that."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._database.execute("PRAGMA journal_mode = DELETE").fetchall()  # SQLite's own log ends
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError:
            self._database.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            self._database = sqlite3.connect(":memory:", isolation_level=None)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn SQLite's errors into what they mean for a user."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "locked" in text:
                raise ConfigError(
                    f"Another run is at work on {self.output}: it holds {self.path}. Wait for its end, or give another --output."
                ) from error
            if "full" in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
            if any(word in text for word in ("I/O", "unable to open", "readonly")):
                raise OSError(errno.EIO, f"the journal cannot be used ({text})", str(self.path)) from error
            raise self._damaged(text) from error

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{self.path} is no journal, or damaged: {why}. --fresh starts over.")


def _row(number: int, item: Path, output: Path, target: tuple[int, int] | None) -> tuple[bytes, bytes, bytes, int, int]:
    """Return a row of the table of recordings; places are in the order of the parts of paths, as those of `pathlib` are."""
    name, path = os.fsencode(item), os.fsencode(item.absolute())
    if target is not None and _identity(item) == target:
        raise ConfigError(f"--output {output} is one of the recordings. Give another file to write to.")
    place = struct.pack(">I", number) + b"\0".join(map(os.fsencode, item.parts))
    return place, name, path, *stamp(path)


def _crc(seconds: float, result: bytes | None, error: str | None) -> int:
    """Return the checksum of a record; SQLite has none of its own. By the other columns a record is found."""
    head = struct.pack("<d?", seconds, result is None) + (error or "").encode("utf-8", "surrogatepass")
    return zlib.crc32(result or b"", zlib.crc32(head))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Say in which settings two runs differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = f"{name}." if name else ""
        found = [_differences(before.get(key), now.get(key), f"{inner}{key}") for key in {**before, **now}]
        return [difference for some in found for difference in some]
    return [] if before == now else [f"{name.removeprefix('parameters.')} was {json.dumps(before)}, now {json.dumps(now)}"]
