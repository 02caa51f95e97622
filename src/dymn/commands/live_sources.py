"""Sources of live audio: a microphone, a URL, or samples from a pipe."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import typer

from dymn.commands.options import note
from dymn.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from dymn.audio.microphone import BoundedQueue, Chunk
    from dymn.audio.pcm import PcmReader

READ_BYTES = 65_536
POLL_SECONDS = 0.2
MICROPHONE_LAG, NETWORK_LAG = 2.0, 10.0
Pcm = Literal["s8", "u8", "s16le", "s16be", "s24le", "s32le", "s32be", "f32le", "f32be"]
"""The names in `dymn.audio.pcm.PCM_FORMATS`."""


def check_use(source: str | None, rate: int | None, microphone: str | None, events: bool) -> None:
    """Raise a ConfigError if options cannot be combined; `events` is whether events are reported."""
    from dymn.audio.network import is_url, shown_url

    if source is not None and is_url(source):
        shown_url(source)  # rejects other texts
        if rate is not None or microphone is not None:
            raise ConfigError("--rate and --microphone do not apply to URLs. Leave them out.")
    elif source not in (None, "-"):
        raise ConfigError(
            "dymn listen reads the microphone, a URL such as http://radio.example/stream, or raw samples on "
            f"standard input (-), not {source!r}. For files, use `dymn {'events' if events else 'tag'}`."
        )
    if source == "-" and rate is None:
        raise ConfigError("Raw samples have no sample rate. Give --rate, such as --rate 16000.")
    if source == "-" and microphone is not None:
        raise ConfigError("Either standard input (-) or --microphone can be read, not both. Leave one out.")
    if source is None and rate is not None:
        raise ConfigError(
            "--rate applies to samples on standard input (-). Leave it out: a microphone has its own sample rate."
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
    give_up: float | None = None,
    channel: str = "mix",
) -> tuple[Any, ...]:
    """Return name, sample rate, chunks and, if corrections change it, the clock of a source: see `LiveSource`."""
    from dymn.audio.microphone import BoundedQueue
    from dymn.audio.microphone import microphone as open_microphone
    from dymn.audio.pcm import PcmReader

    if source is None:
        device = stack.enter_context(open_microphone(microphone, max_lag or MICROPHONE_LAG))
        note(f"Listening to {device.name} at {device.sample_rate} Hz. Press Ctrl-C to stop.", quiet)
        return device.name, device.sample_rate, queued(device.queue)
    if source != "-":
        from dymn.audio.network import NetworkSource

        network = NetworkSource(source, max_lag or NETWORK_LAG, channel=channel, give_up=give_up)
        stack.callback(network.close)
        network.start(lambda why: note(f"{network.name} does not send audio yet ({why}). Trying again.", quiet))
        note(f"Listening to {network.name} at {network.sample_rate} Hz. Press Ctrl-C to stop.", quiet)
        return network.name, network.sample_rate, queued(network.queue), lambda: network.zero
    reader = PcmReader(format, channels)
    sample_rate = rate or 0
    if max_lag is None:
        return "standard input", sample_rate, read(sys.stdin.buffer, reader, quiet)
    queue = BoundedQueue(max(1, round(max_lag * sample_rate)))
    threading.Thread(target=pump, args=(sys.stdin.buffer, reader, queue, quiet), daemon=True).start()
    return "standard input", sample_rate, queued(queue)


def read(stream: BinaryIO, reader: PcmReader, quiet: bool) -> Iterator[Chunk]:
    """Yield chunks from a pipe as soon as they arrive; its writer blocks while a chunk is processed.

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
        raise AudioError("Standard input ended before it sent anything. Check the program that writes to it.")
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
    """Yield the chunks of a queue; waits in short steps, so that Ctrl-C is handled."""
    while True:
        try:
            chunk = queue.get(POLL_SECONDS)
        except EOFError:
            return
        if chunk is not None:
            yield chunk


def list_devices() -> None:
    """Write the input devices, one per line; a star marks the default of the system."""
    from dymn.audio.microphone import devices

    found = devices()
    for info in found:
        star = "*" if info["default"] else " "
        typer.echo(f"{star} {info['index']:3}  {info['name']}  ({info['default_samplerate']:.0f} Hz)")
    if not found:
        note("There is no microphone.")
