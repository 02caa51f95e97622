"""Runs over many recordings that keep a journal: what `dymn tag` and `dymn embed` have in common there."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic

import typer

from dymn.commands.options import note
from dymn.errors import AudioError, ConfigError, DymnError
from dymn.inference.runs import Kind, R, compute, results

if TYPE_CHECKING:
    from dymn.commands.progress import RateBar
    from dymn.inference.journal import Journal


@dataclass(frozen=True)
class Bulk(Generic[R]):
    """What is done with recordings.

    Attributes:
        name: of the command.
        kind: how results are kept.
        work: `Tagger.tag_files` and its like, with their settings bound.
        write: writes results as they come to a file.
        settings: all that results depend on besides the recordings, as JSON types.
    """

    name: str
    kind: Kind[R]
    work: Callable[..., Iterator[R]]
    write: Callable[[Iterable[R], BinaryIO], None]
    settings: Mapping[str, Any]


def keeps_journal(output: Path | None, streams: bool, paths: Sequence[str], *asked: bool) -> Path | None:
    """Return the output of a run that keeps a journal: one that writes rows to a file, from recordings that can be read again.

    Args:
        output: the file to write, or None for standard output.
        streams: whether the format is one of rows.
        paths: as given.
        asked: options that make sense with a journal only.

    Raises:
        ConfigError: if one of those was given and there will be none.
    """
    can_be_read_again = not any(path == "-" or "://" in path for path in paths)
    keeps = output is not None and streams and can_be_read_again and not (output.exists() and not stat.S_ISREG(output.stat().st_mode))
    if any(asked) and not keeps:
        raise ConfigError(
            "--fresh and --retry-failed are for runs with a journal: those that write rows of files to a file. See --output, --format."
        )
    return output if keeps else None


def report_path(output: Path) -> Path:
    """Return where the report of recordings that failed lies: beside the output."""
    return output.with_name(f"{output.name}.failed.jsonl")


@contextlib.contextmanager
def report(output: Path | None) -> Iterator[Callable[[Iterable[R]], Iterator[R]]]:
    """Give a function that passes results on and lists those that failed in a report beside the output, if it is a file and any did."""
    from dymn.system.files import atomic_write

    if output is None:
        yield iter
        return
    path = report_path(output)
    with atomic_write(path) as lines:

        def reported(found: Iterable[R]) -> Iterator[R]:
            for result in found:
                if result.error is not None:
                    line = json.dumps({"file": result.name, "error": str(result.error)}, ensure_ascii=False)
                    lines.write(line.encode("utf-8", "backslashreplace") + b"\n")
                yield result

        yield reported
    if not path.stat().st_size:
        path.unlink()


def run_bulk(bulk: Bulk[R], paths: Sequence[str], output: Path, fresh: bool, retry: bool, quiet: bool) -> int:
    """Do recordings and write the output, or go on with a run that did not end. Returns how many recordings failed."""
    from dymn.commands.progress import rate_bar
    from dymn.inference.journal import Journal
    from dymn.system.files import atomic_write

    with Journal(output, {"command": bulk.name, **bulk.settings}, fresh=fresh, retry=retry) as journal:
        if journal.was_complete:
            note(f"The run before has ended, and its {journal.path.name} is begun anew; --retry-failed would do only what failed.", quiet)
        lost = journal.find(paths)
        for _, error in lost:
            typer.echo(f"dymn: {error}", err=True)
        counts = journal.counts()
        if counts.done:
            failed = f" ({counts.failed} of them failed, and are not tried again without --retry-failed)" if counts.failed else ""
            note(f"{counts.done:,} of {counts.listed:,} recordings are done already{failed}. The others follow.", quiet)
        try:
            with rate_bar(counts.listed, counts.done, quiet) as bar:
                compute(journal, bulk.kind, lambda found: bulk.work(found, progress=bar.at), lambda result: _follow(bar, result))
        except BaseException:
            _say_kept(journal, quiet)
            raise
        failures = [(name, AudioError(str(error))) for name, error in lost]
        found = chain((bulk.kind.failed(name, error) for name, error in failures), results(journal, bulk.kind))
        with report(output) as reported, atomic_write(output) as file:
            bulk.write(reported(found), file)
        counts = journal.counts()
        journal.complete(keep=counts.failed > 0)
    n_failed = counts.failed + len(lost)
    if n_failed:
        again = "" if not counts.failed else " With --retry-failed the same command tries these again."
        note(f"{n_failed:,} of {counts.listed + len(lost):,} recordings failed; {report_path(output)} says why.{again}", quiet)
    return n_failed


def _follow(bar: RateBar, result: R) -> None:
    bar.advance(result.name)
    if result.error is not None:
        bar.say(f"dymn: {result.error}")


def _say_kept(journal: Journal, quiet: bool) -> None:
    with contextlib.suppress(DymnError, OSError):  # why the run ends is what must be told
        counts = journal.counts()
        if counts.done:
            note(f"{counts.done:,} of {counts.listed:,} recordings are kept in {journal.path}; the same command goes on there.", quiet)
