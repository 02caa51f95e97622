"""The journal of a long run, stored next to its output, from which the run can be resumed.

A run can be resumed after any interruption, including a power failure. A journal is an SQLite database. Records are
stored completely or not at all, a torn or damaged record is detected by its checksum, and an interruption leaves the
state of the last commit. It holds the settings, the list of recordings in the order of the output, and for each
finished one its size, its time of modification and its result. A recording is computed again only if size or time have
changed. While a run has its journal open, no other run can open it.
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

from dymn.errors import ConfigError, DataError
from dymn.inference.discovery import Listed, identity, whole

FORMAT = 5
COMMIT_SECONDS = 1.0
"""The most work, besides what is in flight, that is lost when the power fails or the process is killed."""
MAX_RESULT = 2**29
"""The most bytes of a result; SQLite's limit is 10^9."""
PAGE = 256

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS listed (place BLOB PRIMARY KEY, name BLOB, path BLOB UNIQUE, size INTEGER, \
changed INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS done (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, seconds REAL, result BLOB, \
error TEXT, crc INTEGER);
"""
_VALID = "done.path = listed.path AND done.size = listed.size AND done.changed = listed.changed"


class Stamp(NamedTuple):
    """Size in bytes and time of modification in ns, which show changes of a file; -1 and 0 if there is none."""

    size: int
    changed: int


class Task(NamedTuple):
    """A recording to compute: its path as given, its absolute path, and its stamp at the start."""

    name: Path
    path: bytes
    stamp: Stamp


class Done(NamedTuple):
    """A finished recording: its path as given, its length, and its result, or why there is none."""

    name: Path
    seconds: float
    result: bytes | None
    error: str | None


class Counts(NamedTuple):
    """Numbers of recordings that are listed, of those that are finished, and of those among them that failed."""

    listed: int
    done: int
    failed: int


def journal_path(output: Path) -> Path:
    """Return the path of an output's journal: next to it, or next to the file that a link leads to."""
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
    """The journal of the run that writes `output`; for one thread, and a `with`."""

    def __init__(self, output: Path, settings: Mapping[str, Any], *, fresh: bool = False, retry: bool = False) -> None:
        """Open the journal of an output, or create one.

        Args:
            output: the file that the run writes.
            settings: all that results depend on besides the recordings, as JSON types. An unfinished run is resumed if
                they are equal.
            fresh: drop all earlier results.
            retry: drop earlier failures; this also resumes a run that ended with failures.

        Raises:
            ConfigError: if another run has the journal open, or settings differ; the message names the difference.
            DataError: if the file is not a journal, or damaged.
            OSError: if the output cannot be written where it is to be.
        """
        self.output, self.path = output, journal_path(output)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(output)) from error
        self._committed = time.monotonic()
        with self._readable_errors():
            try:
                self._open(settings, fresh, retry)
            except (sqlite3.DatabaseError, DataError) as error:
                if not fresh or isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.unlink()
                self._open(settings, fresh, retry)

    def _open(self, settings: Mapping[str, Any], fresh: bool, retry: bool) -> None:
        """Open, lock and prepare the file at `path`; again if the run that had it open removed it meanwhile."""
        while True:
            self._database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            try:
                self._database.executescript(
                    "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                )
                before = identity(self.path)
                self._database.execute("BEGIN EXCLUSIVE")
                if before is not None and before == identity(self.path):
                    self._begin(json.loads(json.dumps(settings)), fresh, retry)
                    return
            except BaseException as error:
                self._database.close()
                if isinstance(error, UnicodeDecodeError):  # SQLite's message quotes it
                    raise self._damaged("a name in it is not text") from error
                raise
            self._database.close()

    def _begin(self, settings: dict[str, Any], fresh: bool, retry: bool) -> None:
        for statement in _TABLES.strip().splitlines():
            self._database.execute(statement)
        found = {sql for (sql,) in self._database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found != {statement.replace("IF NOT EXISTS ", "").rstrip(";") for statement in _TABLES.strip().splitlines()}:
            raise self._damaged("it has unexpected tables")
        try:
            facts = {name: json.loads(value) for name, value in self._database.execute("SELECT name, value FROM facts")}
            differing = _differences(facts.get("settings", settings), settings)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._damaged("its settings are not valid") from error
        self.was_complete = bool(facts.get("complete")) and not retry and not fresh
        if facts.get("format", FORMAT) != FORMAT:
            differing = [f"the journal's format is {facts['format']}, now {FORMAT}"]
        if differing and not fresh and (retry or not facts.get("complete")):
            raise ConfigError(
                f"{self.path} belongs to a run with other settings: {'; '.join(differing)}. Use the same settings to "
                "resume it, or --fresh to start over."
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
        """Commit; remove a journal without results."""
        try:
            with contextlib.suppress(sqlite3.Error):  # a full disk has been reported
                self.commit()
            with contextlib.suppress(sqlite3.Error):
                if not self._database.execute("SELECT EXISTS (SELECT 1 FROM done)").fetchone()[0]:
                    self._remove()
        finally:
            self._database.close()

    def commit(self) -> None:
        """Write all results to the disk."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._database.execute("BEGIN")
        self._committed = time.monotonic()

    def find(self, paths: Iterable[Listed]) -> None:
        """List recordings, each once, in the order of the paths that named them, then by the parts of their names."""
        with self._readable_errors():
            self._database.execute("DELETE FROM listed")
            self._database.executemany("INSERT OR IGNORE INTO listed VALUES (?, ?, ?, ?, ?)", map(_row, paths))
            self.commit()

    def counts(self) -> Counts:
        """Count the listed, the finished and the failed recordings."""
        with self._readable_errors():
            (listed,) = self._database.execute("SELECT count(*) FROM listed").fetchone()
            row = self._database.execute(
                f"SELECT count(*), count(done.error) FROM listed JOIN done ON {_VALID}"
            ).fetchone()
        return Counts(listed, *row)

    def to_do(self) -> Iterator[Task]:
        """Yield the listed recordings that are not finished, or have changed since, in their order."""
        place = b""
        missing = f"listed LEFT JOIN done ON {_VALID} WHERE done.path IS NULL"
        query = f"SELECT name, listed.path, place FROM {missing} AND place > ? ORDER BY place LIMIT {PAGE}"
        while True:
            with self._readable_errors():
                page = self._database.execute(query, (place,)).fetchall()
            if not page:
                return
            for name, path, _ in page:
                yield Task(Path(os.fsdecode(name)), path, stamp(name))
            place = page[-1][2]

    def put(self, task: Task, seconds: float, result: bytes | None, error: str | None) -> None:
        """Store the result of a recording; it is on the disk within `COMMIT_SECONDS` if more follow."""
        if result is not None and len(result) > MAX_RESULT:
            size = f"{len(result) / 2**20:.0f} MiB"
            error = f"{task.name} has a result of {size}, too large for a journal. Run the command without --output."
            result = None
        with self._readable_errors():
            row = (task.path, *task.stamp, seconds, result, error, _crc(seconds, result, error))
            self._database.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            # The newest result counts, also if the file has changed since it was listed.
            self._database.execute("UPDATE listed SET size = ?, changed = ? WHERE path = ?", (*task.stamp, task.path))
            if time.monotonic() - self._committed >= COMMIT_SECONDS:
                self.commit()

    def results(self) -> Iterator[Done]:
        """Yield the results of all listed recordings, in their order.

        Raises:
            DataError: if one is missing or damaged. All damaged ones are removed, so that the next run computes them
                again.
        """
        query = (
            f"SELECT name, seconds, result, error, crc, done.path FROM listed LEFT JOIN done ON {_VALID} ORDER BY place"
        )
        with self._readable_errors():
            for name, *record, path in self._database.execute(query):
                if path is None:
                    raise DataError(
                        f"{self.path} has no result for {os.fsdecode(name)}. Start the command again to resume."
                    )
                if not _is_sound(*record):
                    raise self._remove_damaged(query)
                yield Done(Path(os.fsdecode(name)), *record[:3])

    def _remove_damaged(self, query: str) -> DataError:
        """Remove all damaged records, and return the error that reports them."""
        damaged = [
            (name, path) for name, *record, path in self._database.execute(query) if path and not _is_sound(*record)
        ]
        self._database.executemany("DELETE FROM done WHERE path = ?", [(path,) for _, path in damaged])
        first, others = os.fsdecode(damaged[0][0]), f" and of {len(damaged) - 1} other(s)" if len(damaged) > 1 else ""
        return DataError(
            f"{self.path} is damaged: the result of {first}{others}. Start the command again to compute what is "
            "missing."
        )

    def complete(self, keep: bool) -> None:
        """Record that the output is complete; remove the journal unless failed recordings are to be retried."""
        with self._readable_errors():
            self._write_facts(complete=True)
            self.commit()
            if not keep:
                self._remove()

    def _write_facts(self, **facts: Any) -> None:
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        self._database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    def _remove(self) -> None:
        """Remove the file while it is still locked, where the system allows it."""
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
    def _readable_errors(self) -> Iterator[None]:
        """Raise errors of SQLite as errors with a remedy."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "locked" in text:
                raise ConfigError(
                    f"Another run is writing {self.output}: it has {self.path} open. Wait until it has finished, or "
                    "give another --output."
                ) from error
            if "full" in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
            if "unable to open" in text:
                raise OSError(errno.EACCES, "it cannot be written there", str(self.output)) from error
            if "I/O" in text or "readonly" in text:
                raise OSError(errno.EIO, f"the journal cannot be used ({text})", str(self.path)) from error
            raise self._damaged(text) from error

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{self.path} is not a journal, or is damaged: {why}. --fresh starts over.")


def _row(listed: Listed) -> tuple[bytes, bytes, bytes, int, int]:
    """Return a row of the table of recordings, whose places are in the order of the parts of paths."""
    given = Path(listed.path)
    name, path = os.fsencode(given), os.fsencode(whole(given))
    place = struct.pack(">I", listed.number) + b"\0".join(map(os.fsencode, given.parts))
    return place, name, path, *stamp(given)  # of what is opened: a link before .. may lead elsewhere


def _is_sound(seconds: Any, result: Any, error: Any, crc: Any) -> bool:
    """Whether a record holds values that `Journal.put` writes, and its checksum is right."""
    return (
        isinstance(seconds, float)
        and math.isfinite(seconds)
        and isinstance(result, (bytes, type(None)))
        and isinstance(error, (str, type(None)))
        and crc == _crc(seconds, result, error)
    )


def _crc(seconds: float, result: bytes | None, error: str | None) -> int:
    """Return the checksum of a record, since SQLite has none; the other columns are its key."""
    head = struct.pack("<d?", seconds, result is None) + (error or "").encode("utf-8", "surrogatepass")
    return zlib.crc32(result or b"", zlib.crc32(head))


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Describe the settings in which two runs differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = f"{name}." if name else ""
        found = [_differences(before.get(key), now.get(key), f"{inner}{key}") for key in {**before, **now}]
        return [difference for some in found for difference in some]
    return (
        [] if before == now else [f"{name.removeprefix('parameters.')} was {json.dumps(before)}, now {json.dumps(now)}"]
    )
