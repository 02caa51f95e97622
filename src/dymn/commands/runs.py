"""Discover, compute, write: the common part of the commands over recordings (`tag`, `embed`, `events`).

The paths are walked once, and each recording is opened once. A run that writes rows to a file keeps a journal and can
be resumed; other runs write results immediately.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import typer

from dymn.audio.notes import shared_at_end
from dymn.audio.settings import PLAIN, ReadSettings
from dymn.commands.failures import has_errors, is_file, report, report_path
from dymn.commands.label_options import MODELS_OWN, Vocabulary
from dymn.commands.options import Computes, Precisions, note
from dymn.commands.output import binary_output, free_name, note_new_folder, text_output
from dymn.commands.progress import Bar
from dymn.commands.segments import cut, seen
from dymn.errors import ConfigError, DymnError
from dymn.inference.discovery import Discovery, Expand
from dymn.inference.formats.layout import Layout, R
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.writers import ROWS, TEXT, choose, write_file
from dymn.inference.runs import Kind, compute, results
from dymn.inference.windows import is_last, source_name

if TYPE_CHECKING:
    from dymn.inference.journal import Journal
    from dymn.inference.segments import SegmentCutter
    from dymn.inference.tagger import Tagger
    from dymn.ray import Engine

NO_CLOCK = ("audacity", "label-studio", "rttm")
LONGEST_STEM = 200  # bytes of a name, to which an ending is added; file systems allow 255
MANY = 2**31
"""A number of recordings that is not known, and larger than that of CPUs."""


@dataclass(frozen=True)
class RunOptions:
    """The options that the commands share.

    Attributes:
        command: the name of the command.
        paths: as given.
        output: the file to write, or None for standard output.
        format: its name, or None.
        looks_inside: whether the command needs more of the network than probabilities and the last embedding.
        draws: whether recordings are drawn as they are computed; then there is no journal.
        read: how recordings are read.
        labels: the labels that results have.
        others: those of the same name in `dymn.commands.options`.
    """

    command: str
    paths: Sequence[str]
    output: Path | None
    format: str | None
    model: str | None
    backend: Computes
    device: str | None
    precision: Precisions
    threads: int | None
    batch_size: int | None
    workers: int | None
    ray: str | None
    fresh: bool
    retry_failed: bool
    quiet: bool
    looks_inside: bool = False
    draws: bool = False
    read: ReadSettings = PLAIN
    labels: Vocabulary = MODELS_OWN


@dataclass(frozen=True)
class Form(Generic[R]):
    """The form of results.

    Attributes:
        layout: how they are written.
        kind: how they are stored in a journal.
        origin: what made them.
    """

    layout: Layout[R]
    kind: Kind[R]
    origin: Origin


Files = Callable[..., Iterator[R]]
"""`Tagger.tag_files` or its like: from sources, with settings as keywords, to one result each."""


class Outcome(NamedTuple):
    """A run that has ended.

    Attributes:
        failed: the number of recordings that failed.
        damaged: the names of those that were read in part.
        format: the name of the format.
        origin: what made the results.
        written: whether the output was written, rather than an earlier one kept.
    """

    failed: int
    damaged: Sequence[str]
    format: str
    origin: Origin
    written: bool


class RunEnd(NamedTuple):
    """How many recordings of a run failed, and whether its output was written."""

    failed: int
    written: bool


def run(
    given: RunOptions,
    layout: Layout[R],
    form_of: Callable[[Tagger | None], Form[R]],
    files_of: Callable[[Tagger, Engine | None], Files[R]],
    check: Callable[[Sequence[Path | str]], None] = lambda found: None,
    cutter: SegmentCutter | None = None,
) -> Outcome:
    """Find recordings, load the model, compute and write.

    Args:
        given: the options of the command.
        layout: of the results, for the choice of the format.
        form_of: the form of the results of a tagger, or of failures alone.
        files_of: from the tagger and, with --ray, the engine to the function that computes, with its settings bound.
        check: refuses recordings before the model is loaded; not called for a run with a journal.
        cutter: what is found is cut out with these.

    Raises:
        ConfigError: if options do not fit each other, the model, or the recordings.
    """
    from dymn.commands.recordings import load_tagger, ray_engine
    from dymn.inference.journal import journal_path

    name = choose(layout, given.format, given.output)
    note_other_ending(layout, name, given.output, given.quiet)
    if given.read.clock == "auto" and name in NO_CLOCK:
        note(f"--clock auto has no effect: the format {name} cannot contain absolute times.", given.quiet)
    if given.output is not None:
        note_new_folder(given.output)
    engine = ray_engine(given.ray, given.workers, given.threads, given.device, given.backend)
    kept = journaled(given, name)
    damaged: list[str] = []
    if given.retry_failed and not given.fresh and kept and not journal_path(kept).exists():
        if kept.exists() and not has_errors(kept):
            note(f"The run that wrote {kept} had no failures, so there is nothing to try again.", given.quiet)
            return Outcome(0, (), name, form_of(None).origin, written=False)
        note(f"No journal of {kept} is there, so all recordings are computed.", given.quiet)
    excluded = None if cutter is None else cutter.folder
    with (
        shared_at_end(),
        Discovery(given.paths, given.output, _expand(engine), given.read.partial, excluded) as discovery,
    ):
        readable = engine is not None or discovery.any_readable()
        found = [] if readable and kept else discovery.sorted()
        check_output(given.output, name, len(found) or len(discovery.lost))
        check(found)
        if not readable:
            form = form_of(None)
            ended = stream(given, form, name, damaged, discovery, found, None)
            return Outcome(ended.failed, (), name, form.origin, ended.written)
        device, inside = (given.device, given.looks_inside) if engine is None else ("cpu", True)
        tagger = load_tagger(given.model, device, given.threads, given.quiet, given.backend, given.precision, inside)
        tagger = given.labels.of(tagger)
        form = form_of(tagger)
        files = partial(files_of(tagger, engine), batch_size=given.batch_size)
        if engine is None:
            workers = default_workers(given.threads, len(found) or MANY) if given.workers is None else given.workers
            files = partial(files, workers=workers)
        if kept:
            ended = resume(given, form, name, kept, damaged, discovery, files, cutter)
            return Outcome(ended.failed, damaged, name, form.origin, ended.written)
        ended = stream(given, form, name, damaged, discovery, found, files, cutter)
    uncut = cut(cutter, given.quiet) if ended.written else 0
    return Outcome(ended.failed + uncut, damaged, name, form.origin, ended.written)


def note_other_ending(layout: Layout[Any], name: str, output: Path | None, quiet: bool) -> None:
    """Write a note where --format, which decides, and the extension of --output differ; `.txt` may be any text."""
    ending = "" if output is None else output.suffix.lower()
    meant = layout.suffixes.get(ending)
    if ending not in ("", ".txt") and meant not in (None, name, "json" if name == "label-studio" else None):
        note(f"{output} is written as {name}, as --format requests, although its extension means {meant}.", quiet)


def _expand(engine: Engine | None) -> Expand:
    if engine is None:
        from dymn.audio.listing import expand

        return expand
    from dymn.ray import expand as expand_urls

    return expand_urls


def stream(
    given: RunOptions,
    form: Form[R],
    name: str,
    damaged: list[str],
    discovery: Discovery,
    found: Sequence[Path | str],
    files: Files[R] | None,
    cutter: SegmentCutter | None = None,
) -> RunEnd:
    """Compute recordings and write their results as they come; without `files`, write why they cannot be read.

    The names of those that were read in part are added to `damaged`.
    """
    total = len(found) + len(discovery.lost)
    bar = Bar(total, quiet=given.quiet, lengths=discovery.seconds)
    computed = () if files is None else bar.over(files(map(discovery.source, found), progress=bar.at))
    lost = discovery.errors(found) if files is None else discovery.lost
    bad: set[str] = set()

    def with_errors() -> Iterator[R]:
        for result in chain((form.kind.result(source_name(path), error=error) for path, error in lost), computed):
            if result.error is not None:
                bad.add(result.name)
                typer.echo(f"dymn: {result.error}", err=True)
            yield result
            if is_last(result):
                bar.advance(result.name)

    separately = _separately(given.output, name, len(found) or len(discovery.lost))
    with report(given.output, form.layout, name, damaged, given.quiet) as listed:
        results = listed(seen(with_errors(), form.layout, cutter))
        written = write(results, form, name, given, stems(found) if separately else None)
    if bad and total > 1:
        note(f"{len(bad):,} of {total:,} recordings failed.", given.quiet)
    return RunEnd(len(bad), written)


def resume(
    given: RunOptions,
    form: Form[R],
    name: str,
    output: Path,
    damaged: list[str],
    discovery: Discovery,
    files: Files[R],
    cutter: SegmentCutter | None = None,
) -> RunEnd:
    """Compute recordings through a journal and write the output, or resume a run that did not end.

    The names of those that were read in part are added to `damaged`.
    """
    from dymn.inference.journal import Journal

    quiet = given.quiet
    settings = form.origin.to_dict() | {
        "command": given.command,
        "backend": given.backend,
        "precision": given.precision,
        "--per-window or --segments": form.kind.holds_windows,
    }
    with Journal(output, settings, fresh=given.fresh, retry=given.retry_failed) as journal:
        if journal.was_complete:
            note(
                "The last run is complete, so this one starts over. To compute only the failed recordings, use "
                "--retry-failed.",
                quiet,
            )
        fill(journal, form.kind, discovery, files, quiet)
        found = chain(
            (form.kind.result(path, error=error) for path, error in discovery.lost),
            results(journal, form.kind, given.read.channel == "each"),
        )
        with report(output, form.layout, name, damaged, quiet) as listed:
            written = write(listed(seen(found, form.layout, cutter)), form, name, given, separately=None)
        uncut = cut(cutter, quiet) if written else 0  # before the journal ends, so that it can be done again
        counts = journal.counts()
        n_failed = counts.failed + len(discovery.lost)
        journal.complete(keep=n_failed + uncut > 0)
    if n_failed:
        note(
            f"{n_failed:,} of {counts.listed + len(discovery.lost):,} recordings failed; {report_path(output)} lists "
            "them. To try them again, repeat the command with --retry-failed.",
            quiet,
        )
    elif uncut:
        note("To extract the segments again, repeat the command with --retry-failed.", quiet)
    return RunEnd(n_failed + uncut, written)


def fill(journal: Journal, kind: Kind[R], discovery: Discovery, files: Files[R], quiet: bool) -> None:
    """Compute the recordings that are not yet in a journal, and show the progress."""
    journal.find(discovery)
    for _, error in discovery.lost:
        typer.echo(f"dymn: {error}", err=True)
    counts = journal.counts()
    if counts.done:
        failed = f" ({counts.failed} of them failed; --retry-failed tries them again)" if counts.failed else ""
        rest = " Computing the others." if counts.done < counts.listed else ""
        note(f"{counts.done:,} of {counts.listed:,} recordings are already complete{failed}.{rest}", quiet)
    try:
        with Bar(counts.listed, counts.done, quiet, discovery.seconds) as bar:
            compute(
                journal,
                kind,
                lambda paths: files(map(discovery.source, paths), progress=bar.at),
                lambda result: _follow(bar, result),
            )
    except BaseException:
        _note_kept(journal, quiet)
        raise


def _follow(bar: Bar, result: R) -> None:
    if is_last(result):
        bar.advance(result.name)
    if result.error is not None:
        bar.say(f"dymn: {result.error}")


def _note_kept(journal: Journal, quiet: bool) -> None:
    with contextlib.suppress(DymnError, OSError):  # the error that ends the run matters more
        counts = journal.counts()
        if counts.done:
            note(
                f"{counts.done:,} of {counts.listed:,} recordings are kept in {journal.path}; the same command resumes "
                "there.",
                quiet,
            )


def journaled(given: RunOptions, name: str) -> Path | None:
    """Return the output of a run with a journal: it writes rows to a file, from recordings that can be read again.

    Raises:
        ConfigError: if there is no journal, and an option needs one.
    """
    output = given.output
    can_be_read_again = not any(path == "-" or "://" in path for path in given.paths)
    keeps = is_file(output) and name in ROWS and can_be_read_again and not given.draws
    if (given.fresh or given.retry_failed) and not keeps:
        raise ConfigError(
            "--fresh and --retry-failed need a journal, which is kept only if rows are written to a file. See "
            "--output and --format."
        )
    return output if keeps else None


def check_output(output: Path | None, name: str, count: int) -> None:
    """Raise a ConfigError, before any work is done, if an output does not fit the recordings, or is a folder."""
    tracks = _separately(output, name, count)
    if tracks and (output is None or (output.exists() and not output.is_dir())):
        raise ConfigError(
            f"A label track belongs to one recording, but there are {count}. Give a folder as --output, which "
            "receives one file each."
        )
    if output is not None and output.is_dir() and not tracks:
        raise ConfigError(f"--output {output} is a folder. Give the path of a file.")


def _separately(output: Path | None, name: str, count: int) -> bool:
    """Whether each recording gets a file of its own in a folder, which is to have no ending if it is new."""
    if name == "audacity" and count > 1:
        return True
    is_meant = output is not None and (output.is_dir() or not (output.suffix or output.exists()))
    return name in ("audacity", "raven") and is_meant and count > 0


def default_workers(threads: int | None, recordings: int) -> int:
    """Return how many threads decode: one per usable CPU, but no more than the recordings or the requested threads."""
    from dymn.system.cpus import available_cpus

    return max(1, min(available_cpus(), recordings, threads or recordings))


def stems(found: Sequence[Path | str]) -> dict[str, Path]:
    """Return the paths of the files of recordings, without their endings, by the recordings' names.

    A path is the stem of the recording, below the recording's folder if several recordings have the same stem.
    """
    paths = [Path(os.path.abspath(path)) for path in found]
    alike = len({path.stem.casefold() for path in paths}) < len(paths)
    levels = zip(*(path.parent.parts for path in paths), strict=False)
    shared = max(1, sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels)))  # at least the root
    places = {}
    for name, path in zip(found, paths, strict=True):
        stem = source_name(path.stem).encode()[:LONGEST_STEM].decode("utf-8", "ignore")
        places[source_name(name)] = Path(*path.parent.parts[shared:] if alike else (), stem)
    return places


def write(
    found: Iterator[R], form: Form[R], name: str, given: RunOptions, separately: Mapping[str, Path] | None
) -> bool:
    """Write results to a file or standard output, or to files in a folder with the paths `separately`, see `stems`.

    If all recordings failed, an earlier file is kept, because the paths may be wrong. Return whether it was written.
    """
    output = given.output
    if separately is not None and output is not None:
        used: set[str] = set()
        for result in found:
            if result.error is None:
                ending = ".selections.txt" if name == "raven" else ".txt"
                path = output / free_name(f"{separately[result.name]}{ending}", used)
                with binary_output(path) as file:
                    write_file([result], form.layout, form.origin, name, file)
    elif output is None:
        with text_output(None) as stream:
            plain = "utf" not in (stream.encoding or "").lower()
            stream.writelines(TEXT[name](found, form.layout, dataclasses.replace(form.origin, plain=plain)))
    else:
        failed, others = _until_success(found)
        if failed and not others and output.is_file():
            note(f"No recording could be read, so {output} is kept as it was.", given.quiet)
            return False
        with binary_output(output) as file:
            write_file(chain(failed, others), form.layout, form.origin, name, file)
    return True


def _until_success(found: Iterator[R]) -> tuple[list[R], Iterable[R]]:
    """Return the failures before the first success, and the results from there on, an empty list if there are none."""
    failed = list[R]()
    for result in found:
        if result.error is None:
            return failed, chain((result,), found)
        failed.append(result)
    return failed, []
