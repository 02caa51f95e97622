"""Decoding with FFmpeg, through PyAV: frames are placed according to their timestamps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from dymn.audio.content import Content, ContentFile
from dymn.audio.decoder import CHUNK_SAMPLES, Block, Decoder, MissingDecoderError, UnknownFormatError, check_format
from dymn.audio.notes import SLACK_SECONDS, Report, duration
from dymn.audio.samples import to_float32
from dymn.audio.sources import reason
from dymn.errors import AudioError
from dymn.system.arrays import Floats

_JITTER_SECONDS = 0.1
"""Timestamps of containers are rounded, and clocks drift; what is below this is no gap."""
_MOST_PLANES = 8
_MOST_TRIES = 100
_LOOSE_SECONDS = 1.0
"""How much shorter than the length in an FLV, which is that of the picture, a recording may be."""
_MAX_GAP_SECONDS = 12 * 3600.0
_MAX_LATE_START = 600.0
_MAX_JUMP_SECONDS = 600.0
"""Streams that were joined jump by any time; a longer gap is kept only where a file has one timeline."""
_ABSOLUTE = frozenset(("mov", "matroska"))  # their time begins at 0, whenever their sound does
_TIMED = frozenset(("mov", "matroska", "mpegts", "mpeg", "flv", "asf", "nut", "rm"))
_EXACT = frozenset(("flac", "ogg"))  # a gap in their timestamps is a part that is missing
_LISTS = frozenset(("hls", "concat", "dash", "sdp", "rtsp", "imf", "applehttp"))
_OWN_DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
"""Decoders that can do what those that FFmpeg prefers cannot: discontinuous transmission."""


def open_ffmpeg(
    content: Content,
    report: Report,
    stack: ExitStack,
    *,
    kind: str | None = None,
    skip: int = 0,
    skip_samples: int = 0,
    counted: bool = False,
) -> Decoder:
    """Open a recording with FFmpeg.

    Args:
        content: of the recording.
        report: what to report to.
        stack: closes the decoder.
        kind: FFmpeg's name of the container; None lets it look.
        skip: how many bytes at the start to pass over.
        skip_samples: how many decoded samples to pass over.
        counted: whether the caller knows how many samples there should be, and compares.

    Raises:
        UnknownFormatError: if FFmpeg does not support the format, or finds no sound that it can decode.
        MissingDecoderError: if PyAV is not installed.
        AudioError: if the header cannot be right.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDecoderError(f"Reading {report.name}", reason(error)) from error
    options = {"skip_initial_bytes": str(skip)} if skip else {}
    handle = None
    source: Any
    if os.name == "posix" and "fd" in _protocols():
        content.rewind()
        # No other protocol is allowed: a playlist must not open other files or addresses.
        source, options["fd"], options["protocol_whitelist"] = "fd:", str(content.descriptor), "fd"
    else:
        source = handle = ContentFile(content)
        options["protocol_whitelist"] = "none"
    try:
        container = stack.enter_context(av.open(source, format=kind, metadata_errors="ignore", options=options))
        names = set(container.format.name.split(","))
        tracks = container.streams.audio if not names & _LISTS else ()
        report.tracks = len(tracks)
        track, note = _chosen(tracks, report) if tracks else (None, "")
        context = None if track is None else track.codec_context
        rate, channels = (0, 0) if context is None else (int(context.sample_rate), int(context.channels))
    except AudioError:
        raise
    except Exception as error:
        if handle is not None:
            handle.check()
        raise UnknownFormatError(error_words(error)) from error
    if names & _LISTS:
        raise UnknownFormatError(
            f"a playlist ({container.format.name}) contains no audio; give the recordings that it lists"
        )
    if track is None:
        raise AudioError(f"{report.name} has no audio track. Choose another file.")
    if context is None:
        raise UnknownFormatError("the codec of its audio track is unknown")
    check_format(report.name, rate, channels)
    if note:
        report.note(note, "--track selects another one.")
    reader = _Reader(container, track, _decoder(context), report, handle, skip_samples, counted)
    return Decoder(rate, channels, None, f"{container.format.name} {context.name}", reader.blocks(), reader.promised)


def _protocols() -> frozenset[str]:
    """Return the protocols that are used here and that FFmpeg has: that of descriptors came with version 6."""
    import av

    return frozenset(("fd",)) if av.library_versions.get("libavformat", (0,))[0] >= 60 else frozenset()


def _chosen(tracks: Any, report: Report) -> tuple[Any, str]:
    """Return the selected track, or the default one of several and a note on it; an AudioError if there is none."""
    report.check_track()
    if report.track is not None:
        return tracks[report.track - 1], ""
    if len(tracks) == 1:
        return tracks[0], ""
    default = [
        track for track in tracks if int(getattr(track, "disposition", 0) or 0) & 1 and track.codec_context is not None
    ]
    usable = [track for track in tracks if track.codec_context is not None]
    track = (default or usable or list(tracks))[0]
    about = ", ".join(filter(None, (track.language, getattr(track.codec_context, "name", ""))))
    which = "the default one" if default else "the first"
    number = list(tracks).index(track) + 1
    return track, f"it has {len(tracks)} audio tracks; number {number} ({about}), {which}, is read."


def _decoder(context: Any) -> Any:
    """Return the decoder of a track: its own codec context, or a better one."""
    import av

    better = _OWN_DECODERS.get(context.name)
    if better is None or better not in av.codecs_available:
        return context
    try:
        own: Any = av.CodecContext.create(better, "r")
        own.sample_rate, own.layout = context.sample_rate, context.layout
        own.open()
    except Exception:
        return context
    return own


def _tagged_end(track: Any) -> float | None:
    """Return when a track of Matroska ends by the tag that FFmpeg writes; a tag of mkvmerge leaves out a late start."""
    words = track.metadata
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d\.?\d*)", words.get("DURATION", ""))
    if match is None or any(key.startswith("_STATISTICS") for key in words):
        return None
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


class _Reader:
    """Packets to blocks of samples."""

    def __init__(
        self,
        container: Any,
        track: Any,
        decoder: Any,
        report: Report,
        handle: ContentFile | None,
        skip_samples: int,
        counted: bool,
    ) -> None:
        self._container, self._track, self._decoder = container, track, decoder
        self._report, self._handle, self._skip, self._counted = report, handle, skip_samples, counted
        self._names = names = set(container.format.name.split(","))
        self._absolute, self._timed, self._exact = bool(names & _ABSOLUTE), bool(names & _TIMED), bool(names & _EXACT)
        self._channels = max(1, int(track.codec_context.channels or 1))
        self._rate = int(decoder.sample_rate or track.codec_context.sample_rate)
        self._done = 0.0  # seconds that were given out, silence too
        self._origin: float | None = None  # the timestamp of the first sample, were there no gaps
        self._zero = 0.0  # the timestamp that counts as 0
        self._end = container.duration / 1e6 + self._start() if container.duration is not None else None
        self._lost = 0.0  # seconds that cannot be decoded
        self._last_lost = False
        self._gaps = 0.0
        self._pictures_end = 0.0  # the latest timestamp of a picture, in FLV
        self.promised = self._promised()

    def _start(self) -> float:
        return (self._container.start_time or 0) / 1e6

    def _promised(self) -> float | None:
        """Return when the sound ends by the header, in formats whose header states it; others only estimate."""
        track, length = self._track, self._container.duration
        if "avi" in self._names and track.frames and track.time_base:
            return float(track.frames * track.time_base)
        if "matroska" in self._names and len(self._container.streams) > 1:
            return _tagged_end(track)  # the duration of its tracks is that of the whole file
        if self._absolute and track.duration is not None:
            return float((track.duration + (track.start_time or 0)) * track.time_base)
        states_end = "flv" in self._names or (self._absolute and len(self._container.streams) == 1)
        return float(length) / 1e6 if states_end and length is not None else None

    def blocks(self) -> Iterator[Block]:
        """Yield blocks of samples; what their timestamps leave out is silence."""
        import av

        fifo, held = av.AudioFifo(), 0
        shape: tuple[Any, ...] = ()
        for frame in self._frames():
            for silence in self._gap(frame):
                if held:
                    yield self._block(fifo, shape)
                    held = 0
                yield silence
            now = (frame.sample_rate, frame.format.name, frame.layout.name)
            if held and (now != shape or held >= max(1, CHUNK_SAMPLES // max(1, len(frame.layout.channels)))):
                yield self._block(fifo, shape)
                held = 0
            if now != shape:
                if shape and now[0] != shape[0]:
                    where = duration(self._done)
                    self._report.note(
                        f"its sample rate changes from {shape[0]} to {now[0]} Hz at {where}; all of it is read."
                    )
                fifo, shape = av.AudioFifo(), now
            self._done += frame.samples / frame.sample_rate
            if len(frame.layout.channels) >= _MOST_PLANES:
                yield Block(self._skipped(frame_samples(frame, self._report.name)), frame.sample_rate)
                continue
            frame.pts = None  # the fifo wants them without gaps
            try:
                fifo.write(frame)
            except Exception as error:  # a frame that does not fit those before it
                self._report.damage(self._done, self.promised, error_words(error), error)
                continue
            held += frame.samples
        if held:
            yield self._block(fifo, shape)
        slack = _LOOSE_SECONDS if "flv" in self._names else SLACK_SECONDS
        stated = None if self.promised is None else self.promised - self._zero
        if self.promised is not None and self._pictures_end > self.promised - slack:
            stated = None  # the file is complete, and its sound ends before its pictures
        self._report.check_length(self._done, stated, slack)
        if self.promised is not None and self._zero + self._done > self.promised + 1:
            counted, there = duration(self.promised - self._zero), duration(self._done)
            self._report.note(f"its header states {counted}, but its packets extend to {there}; all are read.")
        if self._last_lost:
            if not self._counted:
                self._report.damage(self._done, self.promised, "its last packet cannot be decoded")
        elif self._lost:
            self._report.note(f"{duration(self._lost)} of it cannot be decoded.")

    def _block(self, fifo: Any, shape: tuple[Any, ...]) -> Block:
        return Block(self._skipped(_samples(fifo.read())), shape[0])

    def _skipped(self, samples: Floats) -> Floats:
        """Leave out the samples that are to be passed over."""
        skipped = min(self._skip, len(samples))
        self._skip -= skipped
        return samples[skipped:]

    def _frames(self) -> Iterator[Any]:
        """Yield decoded frames; a packet that cannot be decoded is reported once more than a moment is lost."""
        packets = self._packets()
        tries = 0
        while True:
            try:
                packet = next(packets, None)
            except BlockingIOError:  # MPEG-TS looks for its next packet, at the end too
                tries += 1
                if tries > _MOST_TRIES:
                    return
                packets = self._packets()
                continue
            except Exception as error:
                self._check_handle()
                self._lose(None, error)
                return
            try:
                frames = () if packet is None else self._decoder.decode(packet)
            except EOFError:
                return
            except Exception as error:
                self._check_handle()
                self._lose(packet, error)
                continue
            self._check_handle()
            if packet is None:
                return
            for frame in frames:
                self._last_lost = False
                yield frame

    def _packets(self) -> Iterator[Any]:
        """Yield the track's packets. The header of FLV states when the pictures end, so those are looked at as well."""
        if "flv" not in self._names:
            yield from self._container.demux(self._track)
            return
        for packet in self._container.demux():
            if packet.stream.index == self._track.index:
                yield packet
            elif packet.pts is not None:
                self._pictures_end = max(self._pictures_end, float(packet.pts * packet.time_base))

    def _check_handle(self) -> None:
        if self._handle is not None:
            self._handle.check()

    def _lose(self, packet: Any, error: Exception) -> None:
        """Report that a packet cannot be decoded, or that none can be read any more (None)."""
        self._last_lost = True
        self._lost += 0.02 if packet is None or not packet.duration else float(packet.duration * packet.time_base)
        if packet is None or self._lost > SLACK_SECONDS:
            self._report.damage(self._done, self.promised, error_words(error), error)

    def _gap(self, frame: Any) -> Iterator[Block]:
        """Yield the silence that belongs before a frame by its timestamp."""
        if frame.time is None or not (self._timed or self._exact):
            return
        time = float(frame.time)
        if self._origin is None:
            self._origin = self._zero = self._first(time)
        gap = time - self._origin - self._done
        if gap < -_JITTER_SECONDS:
            self._origin += gap  # timestamps start again, as in files that were joined
            return
        if gap <= _JITTER_SECONDS:
            return
        late = self._end is not None and time > self._end + 1
        late = late or (gap > _MAX_JUMP_SECONDS and not self._absolute)
        if late or self._gaps + gap > _MAX_GAP_SECONDS:
            self._report.note(f"its timestamps jump by {duration(gap)} at {duration(self._done)}; the gap is removed.")
            self._origin += gap
            return
        if self._exact:
            self._report.damage(self._done, self.promised, f"{duration(gap)} are missing")
        elif self._done == 0:
            self._report.note(f"its audio starts at {duration(gap)}; silence is inserted before it.")
        else:
            at, to = duration(self._done), duration(self._done + gap)
            self._report.note(f"its timestamps have a gap from {at} to {to}; silence is inserted.")
        self._gaps += gap
        yield from self._silence(gap, frame.sample_rate)

    def _first(self, time: float) -> float:
        """Return the time that counts as 0, from that of the first frame."""
        begin = 0.0 if self._absolute else self._start()
        late = time - begin
        if self._exact or late <= _JITTER_SECONDS:
            return time
        alone = len(self._container.streams) == 1
        if late > (_MAX_LATE_START if alone else _MAX_GAP_SECONDS):
            self._report.note(f"its timestamps start at {duration(late)}; times are relative to its first sample.")
            return time
        return begin

    def _silence(self, seconds: float, rate: int) -> Iterator[Block]:
        left = round(seconds * rate)
        self._done += left / rate
        while left > 0:
            n = min(left, max(1, CHUNK_SAMPLES // self._channels))
            yield Block(np.zeros((n, self._channels), np.float32), rate)
            left -= n


def frame_samples(frame: Any, name: str) -> Floats:
    """Return a decoded frame of any number of channels as float32 [samples, channels]."""
    return _packed(frame, name) if len(frame.layout.channels) >= _MOST_PLANES else _samples(frame)


def _packed(frame: Any, name: str) -> Floats:
    """Return a frame of many channels as float32 [samples, channels]; PyAV would read planes beyond the last one."""
    import av

    frame.pts = None
    channels = len(frame.layout.channels)
    resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
    try:
        packed = [*resampler.resample(frame), *resampler.resample(None)]
    except Exception as error:  # more than 64 channels, for example
        raise AudioError(
            f"{name} has {channels} channels, which FFmpeg cannot convert ({error_words(error)}). Save it with fewer "
            "channels."
        ) from error
    parts = [part.to_ndarray().reshape(part.samples, -1) for part in packed]
    return np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)


def _samples(frame: Any) -> Floats:
    """Return a decoded frame as float32 [samples, channels]."""
    array = frame.to_ndarray()  # planar [channels, samples], packed [1, samples * channels]
    if array.dtype == np.int64:
        array = array * 2.0**-63
    array = to_float32(array)
    return array.T if frame.format.is_planar else array.reshape(frame.samples, -1)


def error_words(error: Exception) -> str:
    """Return the message of an error of FFmpeg, without the address or the file that it names."""
    words = (getattr(error, "strerror", None) or "the codec is unknown").rstrip(".")
    return "it uses a feature that FFmpeg cannot decode yet" if "patches welcome" in words else words
