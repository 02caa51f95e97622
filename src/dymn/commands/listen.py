"""`dymn listen`: live tags and sounds."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from dymn.commands import options
from dymn.commands.label_options import GroupsFile, Level, Specific, vocabulary
from dymn.commands.live_sources import Pcm, check_use, list_devices, opened
from dymn.commands.live_table import display
from dymn.commands.options import (
    WHAT,
    format_option,
    hush,
    note,
    note_gaps,
    number_option,
    output_option,
    seconds_option,
    threshold_option,
)
from dymn.commands.reading_options import READING
from dymn.commands.recordings import load_tagger
from dymn.commands.wrong_use import reject_unused
from dymn.errors import ConfigError

if TYPE_CHECKING:
    from dymn.audio.microphone import Chunk
    from dymn.inference.events import EventSettings
    from dymn.inference.selection import TagSettings
    from dymn.inference.tagger import Tagger
    from dymn.live.clips import ClipSettings
    from dymn.live.delivery import Delivery

PIPE, LIVE, EVENTS, ACTIONS = "Samples from a pipe", "Listening", "Sounds", "Actions"
ListenFormat = Literal["text", "jsonl"]
TAG_THRESHOLD, EVENT_THRESHOLD, TOP_K, MIN_GAP = 0.1, 0.3, 5, 1.0
SLOW = "Use a longer --hop or a smaller --model."
ClipKind = Literal["flac", "wav"]
"""The names in `dymn.live.clips.KINDS`."""


def listen(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[-|URL]",
            help="- for raw samples on standard input, or the URL of a stream (http, https, rtsp, rtsps). The "
            "default is the microphone.",
        ),
    ] = None,
    model: options.Model = None,
    top_k: Annotated[
        int | None,
        number_option("Report at most this many labels per window. The default is 5.", WHAT, "--top-k", "-k"),
    ] = None,
    threshold: Annotated[
        Any,
        threshold_option(
            "Report only labels, or sounds, that reach this probability. auto and precise use the thresholds per "
            "label that `dymn fit` and `dymn calibrate` store in a model. The default is 0.1, and 0.3 for sounds.",
            WHAT,
        ),
    ] = None,
    labels: options.Labels = None,
    exclude: options.Exclude = None,
    specific: Specific = False,
    level: Level = None,
    groups: GroupsFile = None,
    format: Annotated[
        ListenFormat,
        format_option(
            "text (in a terminal, a table of windows that is updated in place), or jsonl (one line of JSON each)."
        ),
    ] = "text",
    output: Annotated[
        Path | None, output_option("Append lines of JSON to this file, in addition to standard output.")
    ] = None,
    events: Annotated[
        bool,
        typer.Option(
            "--events",
            help="Report when each sound starts and ends, instead of each window. --off-threshold, --min-gap, "
            "--min-duration, --webhook, --run, --mqtt and --save imply it.",
            rich_help_panel=EVENTS,
        ),
    ] = False,
    off_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="FROM 0 TO 1",
            max=1,
            help="A sound lasts while its probability is at least this. The default is 0.3 of --threshold. In `dymn "
            "events`, it also depends on later probabilities, which are not available live.",
            rich_help_panel=EVENTS,
        ),
    ] = None,
    min_gap: Annotated[
        float | None,
        seconds_option(
            "A sound ends after its probability has been below --off-threshold for longer than this. The default is 1.",
            EVENTS,
            least=0,
            most=None,
        ),
    ] = None,
    min_duration: Annotated[
        float | None, seconds_option("Report a sound once it has lasted this long.", EVENTS, least=0, most=None)
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Post each message as JSON to this URL.", rich_help_panel=ACTIONS),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run this program, without a shell, when a sound starts; {label}, {score}, {start}, {time} and "
            "{source} are replaced. With {end}, {end_time} or {duration} it runs when the sound has ended, with "
            "{path} when it is saved, with {event} at each message.",
            rich_help_panel=ACTIONS,
        ),
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Publish to this broker, such as mqtt://user@broker.local, with discovery by Home Assistant (needs "
            "dymn\\[mqtt]). DYMN_MQTT_PASSWORD holds the password.",
            rich_help_panel=ACTIONS,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Save the audio of each sound in this folder.", rich_help_panel=ACTIONS),
    ] = None,
    before: Annotated[
        float | None,
        seconds_option(
            "Length of audio to save before the start of a sound. The default is 2.", ACTIONS, least=0, most=30
        ),
    ] = None,
    after: Annotated[
        float | None,
        seconds_option("Length of audio to save after its end. The default is 2.", ACTIONS, least=0, most=30),
    ] = None,
    save_format: Annotated[
        ClipKind | None,
        typer.Option(help="The format of saved audio. The default is flac.", rich_help_panel=ACTIONS),
    ] = None,
    keep: Annotated[
        int | None,
        number_option(
            "Maximum number of saved sounds in the folder; the oldest are deleted. The default is 1000.", ACTIONS
        ),
    ] = None,
    window: Annotated[float, seconds_option("Length of a window.", LIVE)] = 2.0,
    hop: Annotated[float, seconds_option("Distance between the starts of two windows.", LIVE)] = 0.5,
    max_lag: Annotated[
        float | None,
        seconds_option(
            "Maximum length of audio that is buffered if the machine is too slow; more is dropped and counted. The "
            "default is 2 for a microphone and 10 for a URL; nothing is dropped from a pipe.",
            LIVE,
            least=0.1,
        ),
    ] = None,
    give_up: Annotated[
        float | None,
        seconds_option("Exit if a URL has sent no audio for this long. The default is never.", LIVE, most=None),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The name of the source in messages about sounds. The default is its URL, or the name of the "
            "microphone.",
            rich_help_panel=LIVE,
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
        Pcm | None,
        typer.Option(
            help="The encoding of the samples on standard input, by its FFmpeg name. The default is s16le.",
            rich_help_panel=PIPE,
        ),
    ] = None,
    channels: Annotated[
        int | None, number_option("Number of channels of standard input. The default is 1.", PIPE, most=256)
    ] = None,
    channel: Annotated[
        str,
        typer.Option(
            metavar="CHANNEL",
            help="The channel to use: mix (the mean of all), left, right, or a number from 1.",
            rich_help_panel=READING,
        ),
    ] = "mix",
    gain: Annotated[float, typer.Option(metavar="DB", help="Amplify the audio, in dB.", rich_help_panel=READING)] = 0.0,
    backend: options.BackendOption = "auto",
    device: options.Device = None,
    precision: options.PrecisionOption = "float32",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Report sounds as they happen: from a microphone, a stream, or raw samples on standard input.

    In a terminal, windows are shown in a table that is updated in place; otherwise each window is printed on one
    line. A window is reported once a tenth of its length beyond its end has arrived. With --events, one line is printed
    when a sound starts, and another when it has ended. Lost streams are reopened. Press Ctrl-C to stop; the exit code
    is then 0.

    Examples: `dymn listen`; `dymn listen rtsp://camera.local/audio --labels "Dog,Speech" --save clips`;
    `ffmpeg -i URL -f s16le -ac 1 -ar 32000 - | dymn listen - --rate 32000 --format jsonl`.
    """
    from dymn.audio.microphone import devices as microphones
    from dymn.inference.events import EventSettings
    from dymn.inference.selection import Selection, TagSettings
    from dymn.live.lines import LineFile, json_line

    hush(quiet)
    if devices:
        list_devices()
        return
    events = events or any(value is not None for value in (off_threshold, min_gap, min_duration))
    events = events or any(value is not None for value in (webhook, run, mqtt, save))
    check_use(source, rate, microphone, events)
    if source != "-":
        reject_unused({"--encoding": encoding, "--channels": channels}, "applies to standard input (-)")
    if source in (None, "-"):
        reject_unused({"--give-up": give_up}, "applies to URLs")
    if not events:
        reject_unused({"--name": name}, "names the source in messages about sounds, which need --events")
    clip: dict[str, Any] = {"before": before, "after": after, "kind": save_format, "keep": keep}
    if save is None:
        names = ("--before", "--after", "--save-format", "--keep")
        reject_unused(dict(zip(names, clip.values(), strict=True)), "applies to saved sounds, which need --save")
    if events and top_k is not None:
        raise ConfigError(
            "--top-k applies to windows, but --events reports sounds. Use --labels instead, or leave it out."
        )
    chosen = tuple(labels or ()), tuple(exclude or ())
    is_stream = source not in (None, "-")  # of which the channel is chosen where it is decoded
    how: dict[str, Any] = {"specific": specific, "channel": "mix" if is_stream else channel, "gain": gain}
    saving = None
    if save is not None:
        from dymn.live.clips import ClipSettings

        saving = ClipSettings(save, **{field: value for field, value in clip.items() if value is not None})
    deliveries = list(deliver(webhook, run, mqtt))
    check_actions(save, run)
    if events:
        settings = EventSettings(
            "windows", window, hop, labels=chosen[0], exclude=chosen[1],
            threshold=EVENT_THRESHOLD if threshold is None else threshold, off_threshold=off_threshold,
            min_gap=MIN_GAP if min_gap is None else min_gap, min_duration=min_duration or 0.0, **how,
        )  # fmt: skip
    least = TAG_THRESHOLD if threshold is None else threshold
    tagging = TagSettings(top_k or TOP_K, least, *chosen, window, hop, **how)
    if source is None:
        microphones()  # an error before a model is loaded, if something is missing
    note_gaps(window, hop, quiet)
    words = vocabulary(level, groups, threshold=threshold)
    writers: list[Callable[[dict[str, Any]], None]] = [] if output is None else [LineFile(output, note).write]
    if format == "jsonl":
        writers.append(lambda fields: typer.echo(json_line(fields)))
    tagger = words.of(load_tagger(model, device, threads, quiet, backend, precision))
    Selection(tagger.card, settings.tagging() if events else tagging)  # an error before the source is opened
    with ExitStack() as stack:
        try:
            place = LiveSource(
                *opened(
                    stack,
                    source,
                    rate,
                    encoding or "s16le",
                    channels or 1,
                    microphone,
                    max_lag,
                    quiet,
                    give_up,
                    channel,
                )
            )
            if events:
                shown = writers if format == "jsonl" else [show_sound, *writers]
                follow_events(
                    stack, tagger, settings, place._replace(name=name or place.name), saving, deliveries, shown, quiet
                )
            else:
                follow_windows(stack, tagger, tagging, place, str(tagger.card.name or model), format, writers, quiet)
        except KeyboardInterrupt:
            stack.close()
            note("Stopped listening.", quiet)


class LiveSource(NamedTuple):
    """A source: its name, its sample rate, its audio, and the wall clock at second 0 if corrections change it."""

    name: str
    sample_rate: int
    chunks: Iterator[Chunk]
    zero: Callable[[], float] | None = None


def follow_windows(
    stack: ExitStack,
    tagger: Tagger,
    settings: TagSettings,
    place: LiveSource,
    title: str,
    format: ListenFormat,
    writers: list[Callable[[dict[str, Any]], None]],
    quiet: bool,
) -> None:
    """Show the tags of each window, and write them."""
    from dymn.inference.stream import follow

    def write(fields: dict[str, Any]) -> None:
        for writer in writers:
            writer(fields)

    chunks = counted(announced(place, quiet), place.sample_rate, quiet)
    title = f"{place.name}: {title}, {settings.window:g} s"
    shows = [] if format == "jsonl" else [stack.enter_context(display(None, title, settings.top_k, place.zero))]
    if writers:
        shows.append(stack.enter_context(display(write, title, settings.top_k, place.zero)))
    for answer in follow(tagger.backend, chunks, place.sample_rate, settings):
        for show in shows:
            show(answer)


def follow_events(
    stack: ExitStack,
    tagger: Tagger,
    settings: EventSettings,
    place: LiveSource,
    saving: ClipSettings | None,
    deliveries: list[Delivery],
    receivers: list[Callable[[dict[str, Any]], None]],
    quiet: bool,
) -> None:
    """Report when sounds begin and end, save them, and deliver messages."""
    from dymn.inference.sounds import Sounds
    from dymn.live.clips import ClipRecorder
    from dymn.live.listening import listen as follow
    from dymn.live.messages import Messages

    sounds = Sounds(tagger.backend, place.sample_rate, settings)
    begun = time.time()
    messages = Messages(place.name, place.zero or (lambda: begun))
    clips = None
    if saving is not None:
        window, hop = settings.cutting()
        delay = settings.rule().min_gap + settings.min_duration + 1.6 * window + 2 * hop
        clips = ClipRecorder(dataclasses.replace(saving, delay=delay), place.sample_rate, note)
    for delivery in deliveries:
        delivery.start(place.name, sounds.labels)
        stack.callback(delivery.close)
        receivers = [*receivers, delivery.offer]
    follow(counted(announced(place, quiet), place.sample_rate, quiet), sounds, messages, receivers, clips)


def deliver(webhook: str | None, run: str | None, mqtt: str | None) -> Iterator[Delivery]:
    """Yield the deliveries of these options; --quiet does not hide their failures, which are more than notes."""
    from dymn.live.mqtt import Mqtt
    from dymn.live.program import ProgramRunner
    from dymn.live.webhook import Webhook

    for kind, value in ((Webhook, webhook), (ProgramRunner, run), (Mqtt, mqtt)):
        if value is not None:
            yield kind(value, note)


def check_actions(save: Path | None, run: str | None) -> None:
    """Raise a ConfigError, before a source is opened, if a folder or a program cannot be used."""
    if save is not None and save.exists() and not save.is_dir():
        raise ConfigError(f"--save {save} is a file. Give a folder.")
    program = "" if run is None else shlex.split(run)[0]
    if program and "{" not in program and shutil.which(program) is None:
        raise ConfigError(f"--run: there is no program {program!r} that can be executed. Check its name and path.")


def show_sound(message: dict[str, Any]) -> None:
    """Write a message about a sound as a line of text; messages about the source are on standard error."""
    from dymn.live.messages import line

    if "label" in message:
        typer.echo(line(message))


def announced(place: LiveSource, quiet: bool) -> Iterator[Chunk]:
    """Yield the chunks of a source, after notes on its changes."""
    from dymn.live.messages import notice_line

    for chunk in place.chunks:
        if chunk.notice is not None:
            note(notice_line(chunk.notice, place.name), quiet)
        yield chunk


def counted(chunks: Iterable[Chunk], sample_rate: int, quiet: bool) -> Iterator[Chunk]:
    """Yield chunks, with a note on audio that was dropped without a notice: the first time, and after each second."""
    dropped, noted = 0, -sample_rate
    is_explained = False
    for chunk in chunks:
        dropped += 0 if is_explained else chunk.dropped
        is_explained = chunk.notice is not None
        if dropped and dropped - noted >= sample_rate:
            noted = dropped
            seconds = dropped / sample_rate
            note(f"This machine is too slow: {seconds:.1f} s of audio dropped so far. {SLOW}", quiet)
        yield chunk
