"""Decoding with libsndfile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from dymn.audio.content import Content, ContentFile
from dymn.audio.decoder import CHUNK_SAMPLES, Block, Decoder, UnknownFormatError, check_format
from dymn.audio.notes import Report
from dymn.audio.sources import reason
from dymn.errors import AudioError

_UNKNOWN_FRAMES = 2**62  # libsndfile returns 2^63 - 1 if it is unknown


def open_libsndfile(
    content: Content, report: Report, stack: ExitStack, go_on: Callable[[int], Iterator[Block]]
) -> Decoder:
    """Open a recording with libsndfile.

    Args:
        content: of the recording.
        report: what to report to.
        stack: closes the decoder.
        go_on: yields the blocks behind so many samples, where libsndfile fails; it raises `UnknownFormatError` if it
            cannot.

    Raises:
        UnknownFormatError: if libsndfile does not support the format.
        AudioError: if the header cannot be right, or libsndfile is missing.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise AudioError(
            f"{report.name} cannot be decoded: libsndfile is not usable ({reason(error)}). Reinstall soundfile."
        ) from error
    handle = None
    if os.name == "posix":
        content.rewind()
    else:
        handle = ContentFile(content)  # a descriptor of another C library means nothing to this one
    try:
        sound = soundfile.SoundFile(content.descriptor if handle is None else handle, closefd=False)
    except Exception as error:
        if handle is not None:
            handle.check()
        raise UnknownFormatError(_reason(error)) from error
    stack.callback(sound.close)
    rate, channels = int(sound.samplerate), int(sound.channels)
    check_format(report.name, rate, channels)
    frames = sound.frames if 0 <= sound.frames < _UNKNOWN_FRAMES else None
    blocks = _blocks(sound, handle, report, frames, go_on)
    return Decoder(rate, channels, frames, f"{sound.format} {sound.subtype}", blocks)


def _blocks(
    sound: Any, handle: ContentFile | None, report: Report, frames: int | None, go_on: Callable[[int], Iterator[Block]]
) -> Iterator[Block]:
    rate, channels = int(sound.samplerate), int(sound.channels)
    done = 0
    # else soundfile seeks after every read, which a FLAC of unknown length does not survive
    sound.seekable = lambda: False
    while True:
        buffer = np.empty((max(1, CHUNK_SAMPLES // channels), channels), np.float32)
        failure: Exception | None = None
        try:
            block = sound.read(out=buffer)
        except Exception as error:
            failure = error
        if handle is not None:
            handle.check()
        if failure is not None:
            try:
                for rest in go_on(done):
                    yield rest
                    done += len(rest.samples)
            except UnknownFormatError:
                seconds = None if frames is None else frames / rate
                report.damage(done / rate, seconds, _reason(failure), failure)
            break
        if len(block) == 0:
            break
        yield Block(block, rate)
        done += len(block)


def _reason(error: Exception) -> str:
    words = reason(Exception(getattr(error, "error_string", error))).removeprefix("Error : ")
    return "no MPEG audio found" if "not a regular file" in words else words  # its message for an MP3 without frames
