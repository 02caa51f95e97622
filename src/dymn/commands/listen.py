"""`dymn listen`: which sounds there are, now."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from dymn.commands.label_options import GroupsFile, Level, Specific, vocabulary
from dymn.commands.options import (
    WHAT,
    BackendOption,
    Device,
    Exclude,
    Labels,
    Model,
    PrecisionOption,
    Quiet,
    Threads,
    Threshold,
    format_option,
    hush,
    note,
    note_gaps,
    seconds_option,
)
from dymn.commands.reading_options import READING
from dymn.commands.recordings import load_tagger
from dymn.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from dymn.audio.microphone import BoundedQueue, Chunk
    from dymn.audio.pcm import PcmReader
    from dymn.inference.stream import Heard

PIPE, LIVE = "Samples from a pipe", "Listening"
ListenFormat = Literal["text", "jsonl"]
READ_BYTES = 65_536
POLL_SECONDS = 0.2
MICROPHONE_LAG = 2.0
Pcm = Literal["s8", "u8", "s16le", "s16be", "s24le", "s32le", "s32be", "f32le", "f32be"]
"""The names in `dymn.audio.pcm.PCM_FORMATS`."""


def listen(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[-]", help="- for raw samples on standard input. The default is the microphone."),
    ] = None,
    model: Model = None,
    top_k: Annotated[
        int,
        typer.Option(
            "--top-k", "-k", metavar="NUMBER", min=1, help="Give at most this many labels.", rich_help_panel=WHAT
        ),
    ] = 5,
    threshold: Threshold = 0.1,
    labels: Labels = None,
    exclude: Exclude = None,
    specific: Specific = False,
    level: Level = None,
    groups: GroupsFile = None,
    format: Annotated[
        ListenFormat,
        format_option("text (in a terminal a table that changes), or jsonl: a line of JSON for each window."),
    ] = "text",
    window: Annotated[float, seconds_option("Length of a window.", LIVE)] = 2.0,
    hop: Annotated[float, seconds_option("From the start of one window to the next.", LIVE)] = 0.5,
    max_lag: Annotated[
        float | None,
        seconds_option(
            "The most sound that waits on a slow machine; more is dropped and counted. The default is 2 for a "
            "microphone; a pipe waits, and nothing is dropped.",
            LIVE,
            least=0.1,
        ),
    ] = None,
    microphone: Annotated[
        str | None,
        typer.Option(metavar="NAME|NUMBER", help="The microphone; --devices lists them.", rich_help_panel=LIVE),
    ] = None,
    devices: Annotated[
        bool, typer.Option("--devices", help="List the microphones and exit.", rich_help_panel=LIVE)
    ] = False,
    rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="The sample rate of standard input.", rich_help_panel=PIPE)
    ] = None,
    encoding: Annotated[
        Pcm,
        typer.Option(help="The encoding of the samples on standard input, in FFmpeg's names.", rich_help_panel=PIPE),
    ] = "s16le",
    channels: Annotated[
        int,
        typer.Option(
            min=1, max=256, metavar="NUMBER", help="Number of channels of standard input.", rich_help_panel=PIPE
        ),
    ] = 1,
    channel: Annotated[
        str,
        typer.Option(
            metavar="CHANNEL",
            help="Which channel to hear: mix (the mean of all), left, right, or a number from 1.",
            rich_help_panel=READING,
        ),
    ] = "mix",
    gain: Annotated[
        float, typer.Option(metavar="DB", help="Make the sound louder, in dB.", rich_help_panel=READING)
    ] = 0.0,
    backend: BackendOption = "auto",
    device: Device = None,
    precision: PrecisionOption = "float32",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Report sounds as they happen: from a microphone, or raw samples on standard input.

    A terminal shows a table that is updated; elsewhere each window is a line. A window is reported when another tenth
    of a window has arrived. Ctrl-C ends listening; the exit code is then 0, as this is the usual way to end.

    Examples: `dymn listen`; `ffmpeg -i URL -f s16le -ac 1 -ar 32000 - | dymn listen - --rate 32000 --format jsonl`.
    """
    from dymn.audio.microphone import devices as microphones
    from dymn.inference.selection import TagSettings
    from dymn.inference.stream import follow

    hush(quiet)
    if devices:
        list_devices()
        return
    check_use(source, rate, microphone)
    if source is None:
        microphones()  # what is missing is said before a model is loaded
    note_gaps(window, hop, quiet)
    words = vocabulary(level, groups)
    settings = TagSettings(
        top_k, threshold, tuple(labels or ()), tuple(exclude or ()), window, hop,
        specific=specific, channel=channel, gain=gain,
    )  # fmt: skip
    tagger = words.of(load_tagger(model, device, threads, quiet, backend, precision))
    title = f"{tagger.card.name or model}, {window:g} s"
    with ExitStack() as stack:
        try:
            name, sample_rate, chunks = opened(stack, source, rate, encoding, channels, microphone, max_lag, quiet)
            heard = follow(tagger.backend, chunks, sample_rate, settings)
            show = stack.enter_context(display(format == "jsonl", f"{name}: {title}", top_k))
            for answer in noticed(heard, quiet):
                show(answer)
        except KeyboardInterrupt:
            stack.close()
            note("Stopped listening.", quiet)


def check_use(source: str | None, rate: int | None, microphone: str | None) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: the message says what to give instead.
    """
    if source not in (None, "-"):
        raise ConfigError(
            f"dymn listen reads the microphone, or raw samples on standard input (-), not {source!r}. For files: dymn "
            "tag"
        )
    if source == "-" and rate is None:
        raise ConfigError("Raw samples carry no sample rate. Give --rate, such as --rate 16000.")
    if source == "-" and microphone is not None:
        raise ConfigError("Either standard input (-) or --microphone can be read, not both. Leave one out.")
    if source is None and rate is not None:
        raise ConfigError(
            "--rate is for samples on standard input. Give - as well, or leave --rate out: a microphone has its own."
        )


def opened(
    stack: ExitStack,
    source: str | None,
    rate: int | None,
    format: str,
    channels: int,
    microphone: str | None,
    max_lag: float | None,
    quiet: bool,
) -> tuple[str, int, Iterator[Chunk]]:
    """Return the name of what is heard, its sample rate, and its sound."""
    from dymn.audio.microphone import BoundedQueue
    from dymn.audio.microphone import microphone as open_microphone
    from dymn.audio.pcm import PcmReader

    if source is None:
        device = stack.enter_context(open_microphone(microphone, max_lag or MICROPHONE_LAG))
        note(f"Listening to {device.name} at {device.sample_rate} Hz. Ctrl-C ends.", quiet)
        return device.name, device.sample_rate, queued(device.queue)
    reader = PcmReader(format, channels)
    sample_rate = rate or 0
    if max_lag is None:
        return "standard input", sample_rate, read(sys.stdin.buffer, reader, quiet)
    queue = BoundedQueue(max(1, round(max_lag * sample_rate)))
    threading.Thread(target=pump, args=(sys.stdin.buffer, reader, queue, quiet), daemon=True).start()
    return "standard input", sample_rate, queued(queue)


def read(stream: BinaryIO, reader: PcmReader, quiet: bool) -> Iterator[Chunk]:
    """Yield chunks from a pipe as soon as they arrive.

    The writer to the pipe blocks while a chunk is processed.

    Raises:
        AudioError: if the pipe ends before anything has arrived.
    """
    from dymn.audio.microphone import Chunk

    read_some = getattr(stream, "read1", stream.read)
    received = 0
    while data := read_some(READ_BYTES):
        received += len(data)
        yield Chunk(reader.feed(data), 0)
    if not received:
        raise AudioError("Standard input ended before it sent anything. Check what writes to it.")
    if reader.rest:
        note(
            f"Standard input ends within a sample; the last {reader.rest} bytes are left out. Check --encoding and "
            "--channels.",
            quiet,
        )


def pump(stream: BinaryIO, reader: PcmReader, queue: BoundedQueue, quiet: bool) -> None:
    """Move chunks from a pipe to a queue, which drops those that do not fit."""
    try:
        for chunk in read(stream, reader, quiet):
            queue.put(chunk.samples)
    except Exception as error:
        queue.close(error)
    else:
        queue.close()


def queued(queue: BoundedQueue) -> Iterator[Chunk]:
    """Yield what a queue holds; waits in short steps, so that Ctrl-C is heard."""
    while True:
        try:
            chunk = queue.get(POLL_SECONDS)
        except EOFError:
            return
        if chunk is not None:
            yield chunk


def noticed(heard: Iterable[Heard], quiet: bool) -> Iterator[Heard]:
    """Yield the answers, after a note where more sound has been dropped than before."""
    dropped = 0.0
    for answer in heard:
        if answer.dropped > dropped:
            dropped = answer.dropped
            note(
                f"This machine is too slow: {dropped:.1f} s of sound dropped so far. Give a longer --hop or a smaller "
                "--model.",
                quiet,
            )
        yield answer


def display(as_json: bool, title: str, top_k: int) -> AbstractContextManager[Any]:
    """Return a context that gives a function which shows a result.

    It shows JSON, a line, or a table that is updated in place.
    """
    if as_json:
        return nullcontext(show_json)
    if not sys.stdout.isatty():
        return nullcontext(show_line)
    return LiveTable(title, top_k)


def show_json(answer: Heard) -> None:
    """Write an answer as a line of JSON."""
    tags = [{"label": tag.label, "score": round(tag.score, 6)} for tag in answer.window.tags]
    start, end = (round(seconds, 3) for seconds in answer.window[:2])
    typer.echo(
        json.dumps({"start": start, "end": end, "tags": tags, "dropped": round(answer.dropped, 3)}, ensure_ascii=False)
    )


def show_line(answer: Heard) -> None:
    """Write an answer as a line of text."""
    from dymn.inference.formats.text import clock

    found = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in answer.window.tags)
    typer.echo(f"{clock(answer.window.start)} – {clock(answer.window.end)}  {found or '–'}")


class LiveTable:
    """A table in the terminal that each answer changes."""

    def __init__(self, title: str, top_k: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title, self._top_k = title, top_k
        self._live = Live(console=Console(), auto_refresh=False, transient=False)

    def __enter__(self) -> Any:
        self._live.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, answer: Heard) -> None:
        """Put an answer in place of the one before."""
        self._live.update(self.table(answer), refresh=True)

    def table(self, answer: Heard) -> Any:
        """Return an answer as a table of rich, as high for few labels as for many."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        from dymn.inference.formats.text import bar, clock

        dropped = f"   {answer.dropped:.1f} s dropped" if answer.dropped else ""
        caption = f"{clock(answer.window.end)}{dropped}"
        table = Table(
            title=Text(self._title),
            caption=Text(caption),
            title_justify="left",
            caption_justify="left",
            box=SIMPLE,
            min_width=60,
        )
        table.add_column("score", justify="right", width=5)
        table.add_column("", width=20, style="cyan")
        table.add_column("label", ratio=1, no_wrap=True)
        for tag in answer.window.tags:
            table.add_row(f"{tag.score:.2f}", bar(tag.score), Text(tag.label))
        for _ in range(self._top_k - len(answer.window.tags)):
            table.add_row("", "", "")
        return table


def list_devices() -> None:
    """Write the input devices, one a line; a star marks the one that the system prefers."""
    from dymn.audio.microphone import devices

    found = devices()
    for info in found:
        star = "*" if info["default"] else " "
        typer.echo(f"{star} {info['index']:3}  {info['name']}  ({info['default_samplerate']:.0f} Hz)")
    if not found:
        note("There is no microphone.")
