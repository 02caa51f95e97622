"""Recordings as mono float32 samples at their own rate: decoded, one channel or the mean of all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from dymn.audio.content import Content
from dymn.audio.decoder import Decoder
from dymn.audio.decoding import open_decoder
from dymn.audio.gain import loudest
from dymn.audio.notes import Notes, Report
from dymn.audio.resampling import Resampler
from dymn.audio.samples import Levels, check_finite, mean
from dymn.audio.settings import PLAIN, ReadSettings, channel_index
from dymn.audio.sources import FileLike, display, opened, reading_errors
from dymn.system.arrays import Floats


@dataclass(frozen=True)
class AudioInfo:
    """The header of a recording; `frames` (samples per channel) and `seconds` are None where the format lacks them."""

    sample_rate: int
    channels: int
    frames: int | None
    seconds: float | None
    format: str


@dataclass(frozen=True)
class Decoding:
    """An open recording.

    Attributes:
        name: for messages.
        info: its header.
        chunks: its samples as mono float32 [n], at its own rate.
        notes: unusual properties of it; complete after the last chunk.
    """

    name: str
    info: AudioInfo
    chunks: Iterator[np.ndarray]
    notes: Notes


@contextlib.contextmanager
def recording(
    source: FileLike, settings: ReadSettings = PLAIN, *, notes: Notes | None = None, content: Content | None = None
) -> Iterator[Decoding]:
    """Open a recording for reading once; it closes at the end of the `with` block.

    Args:
        source: a path, "-" for standard input, or a binary file object.
        settings: the channel, a number or "mix" (see `settled`), the track, and whether to read what can be read of a
            damaged recording; a note then states what is missing.
        notes: where notes are added; None is a new list.
        content: its bytes, if they have been opened already.

    Raises:
        AudioError: if it cannot be opened or is not audio. `chunks` raises it too: for samples that are not finite,
            and, unless `partial`, for a recording that is damaged or ends more than `SLACK_SECONDS` before its header
            says.
        MissingDecoderError: an AudioError, if FFmpeg is needed and PyAV is not installed.
    """
    report = Report(display(source), notes, settings.partial, settings.track)
    with ExitStack() as stack:
        content = stack.enter_context(opened(source)) if content is None else content
        decoder = open_decoder(content, report, stack)
        seconds = decoder.seconds if decoder.frames is None else decoder.frames / decoder.rate
        info = AudioInfo(decoder.rate, decoder.channels, decoder.frames, seconds, decoder.format)
        yield Decoding(report.name, info, _mono(decoder, report, settings), report.notes)


def settled(settings: ReadSettings, source: FileLike, content: Content, notes: Notes) -> ReadSettings:
    """Return settings with the number of the loudest channel in place of "loudest"; all of the recording is read."""
    if settings.channel != "loudest":
        return settings
    with ExitStack() as stack, reading_errors(display(source)):
        decoder = open_decoder(content, Report(display(source), Notes(), settings.partial, settings.track), stack)
        number = loudest(decoder.blocks)
    if decoder.channels > 1:
        notes.add(f"channel {number} of {decoder.channels} is the loudest and is read.")
    return replace(settings, channel=number)


def _mono(decoder: Decoder, report: Report, settings: ReadSettings) -> Iterator[np.ndarray]:
    """Yield a channel or the mean over channels [n], and compare their length with that in the header."""
    channel = settings.channel
    if decoder.omni and channel == "mix":
        report.note(
            f"it is ambisonic: the first of its {decoder.channels} channels, which is omnidirectional, is read."
        )
        channel = decoder.mix
    if channel != "mix":
        report.notes.channel = channel_index(channel, decoder.channels, report.name) + 1
    levels, place = Levels(), 0.0
    resampler: Resampler | None = None
    rate_before = decoder.rate
    with reading_errors(report.name):
        for samples, rate in decoder.blocks:
            if len(samples) == 0:
                continue
            samples = chosen(samples, channel, report.name)
            mono = mean(samples)
            levels.add(samples, mono, check_finite(report.name, mono, place, rate))
            place += len(mono) / rate
            if rate != rate_before:
                if resampler is not None:
                    yield resampler.finish()
                resampler = None if rate == decoder.rate else Resampler(rate, decoder.rate)
                rate_before = rate
            yield mono if resampler is None else resampler.feed(mono)
    if resampler is not None:
        yield resampler.finish()
    levels.add_notes(report.notes, settings)
    report.check_length(place, None if decoder.frames is None else decoder.frames / decoder.rate)


def chosen(samples: Floats, channel: str, name: str) -> Floats:
    """Return the samples [n, channels] of all channels for "mix", or those of one of them, [n, 1].

    Raises:
        AudioError: if the recording `name` does not have that channel.
    """
    if channel == "mix":
        return samples
    index = channel_index(channel, samples.shape[1], name)
    return np.ascontiguousarray(samples[:, index : index + 1])
