"""`dymn events`: when each sound begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dymn.commands.options import WHAT, Backend, Computes, Device, Exclude, Labels, Model, Paths, Quiet, Threads, hush
from dymn.commands.recordings import Failures, check_output, find, load_tagger, write
from dymn.errors import AudioError

if TYPE_CHECKING:
    from dymn.events import EventSettings
    from dymn.events.formats import EventRecording
    from dymn.formats import Run
    from dymn.tagger import Tagger

WHEN = "What is an event"


class Format(str, Enum):
    """The keys of `dymn.events.formats.FORMATS`."""

    text = "text"
    csv = "csv"
    json = "json"
    audacity = "audacity"
    rttm = "rttm"


class How(str, Enum):
    """The keys of `dymn.events.METHODS`."""

    activation = "activation"
    windows = "windows"


def events(
    paths: Paths,
    model: Model = None,
    labels: Labels = None,
    exclude: Exclude = None,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="How to write the events: text, csv, json, audacity (a label track) or rttm. Without it the ending of --output decides "
            "(.csv, .json, .rttm), and else it is text.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to this file, which appears when it is complete. Audacity labels of several recordings go to a folder.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        How,
        typer.Option(
            help="How to find out what is when: short windows that overlap (windows), or the last feature map of long windows frame by "
            "frame (activation), which is quicker, finds less, and needs a model that PyTorch computes.",
            rich_help_panel=WHEN,
        ),
    ] = How.windows,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", "-t", metavar="FROM 0 TO 1", max=1, help="An event reaches at least this probability.", rich_help_panel=WHEN
        ),
    ] = 0.1,
    off_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="FROM 0 TO 1",
            max=1,
            help="An event lasts while its probability is at least this. Without it, 0.3 of --threshold.",
            rich_help_panel=WHEN,
            show_default=False,
        ),
    ] = None,
    median: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Smooth the probabilities by their median over so long.", rich_help_panel=WHEN),
    ] = 0.0,
    min_gap: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Join events of one label with at most so much between them.", rich_help_panel=WHEN),
    ] = 0.64,
    min_duration: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Drop events that are shorter.", rich_help_panel=WHEN),
    ] = 0.0,
    window: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=600,
            metavar="SECONDS",
            help="How much the network hears at once. Without it, what is best for the method.",
            rich_help_panel=WHEN,
            show_default=False,
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=600,
            metavar="SECONDS",
            help="From the start of one window to the next. Without it, what is best for the method.",
            rich_help_panel=WHEN,
            show_default=False,
        ),
    ] = None,
    backend: Backend = Computes.torch,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Tell when each sound in a recording begins and ends.

    An event begins and ends where the probability of its label passes --off-threshold, and reaches --threshold in between.

    Recordings that cannot be read are named on standard error, and in JSON and CSV. The others are still done, and the exit code is 1.
    """
    from dymn.commands.progress import progress_bar
    from dymn.events import EventSettings
    from dymn.events.formats import FORMATS, SUFFIXES, EventRecording

    hush(quiet)
    settings = EventSettings(
        method=method.value,
        window=window,
        hop=hop,
        labels=tuple(labels or ()),
        exclude=tuple(exclude or ()),
        threshold=threshold,
        off_threshold=off_threshold,
        median=median,
        min_gap=min_gap,
        min_duration=min_duration,
    )
    name = format.value if format else SUFFIXES.get(output.suffix.lower() if output else "", "text")
    found, failed = find(paths)
    check_output(output, name, found)
    tagger = load_tagger(model, device, threads, quiet, backend)
    bar = progress_bar(len(found), quiet)
    missing = (EventRecording(recording.name, error=recording.error) for recording in failed)
    recordings = chain(missing, bar.over(detected(tagger, map(Path, found), settings, bar.update)))
    failures = Failures()
    run = describe(tagger, model or "", settings)
    write(failures.reported(recordings), run, FORMATS[name], output, separately=name == "audacity" and len(found) > 1)
    if failures.count:
        raise typer.Exit(1)


def detected(
    tagger: Tagger, paths: Iterable[Path], settings: EventSettings, progress: Callable[[float, str], None]
) -> Iterator[EventRecording]:
    """Yield the events of recordings; one that cannot be read has an error, and the others go on."""
    from dymn.events import decide, frames
    from dymn.events.formats import EventRecording

    for i, path in enumerate(paths):
        progress(i, path.name)
        try:
            found = frames(tagger, path, None, settings)
            yield EventRecording(str(path), found.seconds, decide(found, settings))
        except AudioError as error:
            yield EventRecording(str(path), error=error)
        except OSError as error:
            reason = AudioError(f"{path}: {error.strerror or error}. Check that the file is there and readable.")
            yield EventRecording(str(path), error=reason)


def describe(tagger: Tagger, model: str, settings: EventSettings) -> Run:
    """Return what is written beside the events, so that they can be made again."""
    from dymn import __version__
    from dymn.config import to_dict
    from dymn.formats import Run

    window, hop = settings.cutting()
    digest = str(tagger.card.provenance.get("sha256", ""))
    return Run(__version__, tagger.card.name or model, digest, to_dict(settings) | {"window": window, "hop": hop})
