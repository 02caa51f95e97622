"""Live audio from a URL: reconnection, agreement with the wall clock, and bounded memory.

Timestamps of streams are not reliable, so samples are counted and compared with the wall clock. If the audio is behind
the clock because a part is missing, this part is a gap. If it is ahead, like the first seconds of an Icecast stream or
a file, the reader waits.
"""

from __future__ import annotations

import base64
import errno
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import numpy as np

from dymn.audio.decoder import CHUNK_SAMPLES, MIN_RATE, MissingDecoderError, check_format, check_played_rate
from dymn.audio.ffmpeg import error_words, frame_samples
from dymn.audio.microphone import BoundedQueue, Notice
from dymn.audio.recording import chosen
from dymn.audio.resampling import Resampler
from dymn.audio.samples import MAX_PEAK, mean
from dymn.audio.settings import ReadSettings
from dymn.audio.sources import reason
from dymn.config import check
from dymn.errors import AudioError, ConfigError, visible
from dymn.system.arrays import Floats

SCHEMES = ("http", "https", "rtsp", "rtsps")
PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto,rtsp,rtsps,rtp,udp"
"""What FFmpeg may open: a playlist must not reach files."""
STREAM_FORMATS = (
    "mp3,aac,ogg,flac,wav,w64,aiff,au,matroska,webm,mpegts,mov,mp4,asf,flv,hls,rtsp,sdp,rtp,adts,caf,ac3,eac3"
)
TIMEOUT = 15.0
"""Seconds without audio after which a source is lost."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
BURST_SECONDS = 10.0
"""Seconds of audio that are read at once when a connection begins; beyond that, the reader waits for the clock."""
GAP_SECONDS = 2.0
_PLAYLISTS = ("hls", "sdp")
_AUDIO_TOO = ("application/octet-stream", "application/ogg", "application/dash+xml")
_PROBE_BYTES = 2**20
_FULL_WAIT = 0.05


class NetworkSource:
    """A thread that reads a URL into a bounded queue until it is closed.

    Attributes:
        name: the URL without user and password.
        sample_rate: in Hz, that of the first connection; later ones are resampled to it.
        queue: mono chunks, and notices of lost audio and restored connections.
    """

    def __init__(
        self,
        url: str,
        max_lag: float = 10.0,
        *,
        channel: str = "mix",
        give_up: float | None = None,
        timeout: float = TIMEOUT,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        """Prepare to read a URL.

        Args:
            url: the URL.
            max_lag: maximum number of buffered seconds; more are dropped and counted.
            channel: "mix" (the mean of all channels), "left", "right", or a number from 1.
            give_up: seconds without audio after which an error ends the thread; None is never.
            timeout: seconds without audio after which the source is lost.
            first_wait: seconds before the second attempt; the wait doubles for each further one, up to a minute.

        Raises:
            ConfigError: if the URL is not valid or not supported, or the channel is not allowed.
        """
        check(
            ReadSettings(channel=channel).channel not in ("each", "loudest"),
            f"channel is {channel!r}; live sound has mix, left, right or a number.",
        )
        self._channel = channel
        self.name, self._url = shown_url(url), url
        self.sample_rate, self.queue = 0, BoundedQueue(1)
        self._max_lag, self._give_up, self._timeout, self._first_wait = max_lag, give_up, timeout, first_wait
        self._zero = 0.0  # the monotonic clock at second 0 of the audio
        self._position = 0  # frames since second 0, including lost ones
        self._burst = BURST_SECONDS
        self._least, self._least_until, self._placed_at = np.inf, 0.0, 0.0  # see `_place`
        self._rate, self._resampler = 0, Resampler(MIN_RATE, MIN_RATE)  # of this connection
        self._lost_at: float | None = time.monotonic()  # a source that has not started counts as lost
        self._has_started = False
        self._answer: str | None = None  # what the URL returns instead of audio; None if unknown
        self._on_failure: Callable[[str], None] | None = None
        self._ended = False
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dymn source", daemon=True)

    @property
    def zero(self) -> float:
        """The wall clock at second 0 of the audio, as returned by `time.time`; corrections of the clock change it."""
        return time.time() - time.monotonic() + self._zero

    def start(self, on_failure: Callable[[str], None] | None = None) -> None:
        """Start reading, and wait for the first audio.

        Args:
            on_failure: called with the reason if the first connection fails; the source is opened again.

        Raises:
            AudioError: if there is none within `give_up`.
        """
        self._on_failure = on_failure
        self._thread.start()
        while not self._ready.wait(0.1):  # in short steps, so that Ctrl-C is handled
            pass
        if not self.sample_rate:
            try:
                self.queue.get(0)  # raises the error that ended the thread
            except EOFError:
                raise AudioError(f"There is no audio in {self.name}. Check the URL.") from None

    def close(self) -> None:
        """End the thread; this takes at most the timeout."""
        self._closed.set()

    def _run(self) -> None:
        wait = self._first_wait
        try:
            while not self._closed.is_set() and not self._ended:
                begin = time.monotonic()
                try:
                    for samples, rate in self._connection():
                        self._take(samples, rate)
                        if self._closed.is_set():
                            return
                    why = "it has ended"
                except MissingDecoderError:
                    raise
                except Exception as error:
                    why = self._words(error)
                if not self._ended:
                    self._lose(why)
                    wait = self._first_wait if time.monotonic() - begin > 2 * wait else wait
                    self._closed.wait(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
        except Exception as error:
            self.queue.close(error)
        else:
            self.queue.close()
        finally:
            self._ready.set()

    def _words(self, error: Exception) -> str:
        if isinstance(error, AudioError):
            return str(error)
        if type(error).__name__ == "ExitError":  # how PyAV ends a call that takes too long
            return f"nothing arrived for {self._timeout:g} s"
        if isinstance(error, OSError) and error.errno == errno.EIO:  # FFmpeg's answer to a wrong name, among others
            host = urlsplit(self._url).hostname
            try:
                socket.getaddrinfo(host, None)
            except OSError:
                return f"the host name {host} is unknown"
        words = error_words(error)
        if isinstance(error, ValueError) or getattr(error, "errno", None) == errno.EIO:  # FFmpeg cannot use the answer
            if self._answer is None and not self._has_started:
                self._answer = other_content(self._url, self._timeout)
            return self._answer or words
        return words

    def _connection(self) -> Iterator[tuple[Floats, int]]:
        """Open the URL and yield mono samples [n] with their rate in Hz, until the connection ends.

        Raises:
            AudioError: if it contains no audio, or sends none within the timeout.
        """
        try:
            import av
        except ImportError as error:
            raise MissingDecoderError(f"Reading {self.name}", reason(error)) from error
        options = {
            "protocol_whitelist": PROTOCOLS,
            "format_whitelist": STREAM_FORMATS,
            "probesize": str(_PROBE_BYTES),
            "analyzeduration": "5000000",
            "rtsp_transport": "tcp",
            "allowed_media_types": "audio",
        }
        with av.open(self._url, timeout=self._timeout, metadata_errors="ignore", options=options) as container:
            if not container.streams.audio:
                raise AudioError("it contains no audio")
            track = container.streams.audio[0]
            context = track.codec_context
            if context is None:
                raise AudioError("the codec of its audio is unknown")
            check_format("it", int(context.sample_rate), int(context.channels))
            check_played_rate("it", int(context.sample_rate))
            # a file of known size ends; a stream of unknown size is only interrupted. The size of a playlist is not
            # that of the audio; it has a duration if nothing will be appended to it
            is_list = container.format.name in _PLAYLISTS
            finite = container.duration is not None if is_list else container.size > 0
            yield from self._decoded(container, track)
            self._ended = finite

    def _decoded(self, container: Any, track: Any) -> Iterator[tuple[Floats, int]]:
        import av

        last = time.monotonic()
        for packet in container.demux(track):
            frames: Any = ()
            with suppress(av.FFmpegError):  # a damaged packet; its audio is missing and becomes a gap
                frames = packet.decode()
            for frame in frames:
                check_format("it", frame.sample_rate, len(frame.layout.channels))
                check_played_rate("it", frame.sample_rate)
                samples = mean(chosen(frame_samples(frame, "it"), self._channel, "it"))
                yield np.where(np.abs(samples) <= MAX_PEAK, samples, np.float32(0)), frame.sample_rate
                last = time.monotonic()
            if time.monotonic() - last > self._timeout:
                raise AudioError(f"it sent no audio for {self._timeout:g} s")
            if self._closed.is_set():
                return

    def _lose(self, why: str) -> None:
        """Report a failure if the source was not lost before; raise an AudioError if it has been lost for `give_up`."""
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            self.queue.notify(Notice("lost", why))
        elif not self._has_started and self._on_failure is not None:
            self._on_failure(why)
            self._on_failure = None
        if self._give_up is not None and now - self._lost_at >= self._give_up:
            raise AudioError(
                f"{self.name} has sent no audio for {now - self._lost_at:.0f} s: {why}. Check the URL, or give a "
                "longer --give-up."
            )

    def _take(self, samples: Floats, rate: int) -> None:
        """Queue samples, aligned with the wall clock."""
        if not self.sample_rate:
            self._zero = time.monotonic()
            self.queue = BoundedQueue(max(1, round(self._max_lag * rate)))
            self.sample_rate = rate
            self._ready.set()
        if self._lost_at is not None:
            self._return(time.monotonic() - self._lost_at)
        if rate != self._rate:
            self._rate, self._resampler = rate, Resampler(rate, self.sample_rate)
        for begin in range(0, len(samples), CHUNK_SAMPLES):
            block = self._resampler.feed(samples[begin : begin + CHUNK_SAMPLES])
            self._place(len(block))
            self._put(block)

    def _return(self, seconds: float) -> None:
        """Continue after the source was lost."""
        self._lost_at, self._rate = None, 0
        self._burst = BURST_SECONDS
        self._placed_at = 0.0
        if self._has_started:
            self._skip(self._late())
            self.queue.notify(Notice("back", "", seconds))
        self._has_started = True

    def _late(self) -> float:
        """Return how many seconds the audio is behind the wall clock; negative if it is ahead."""
        return time.monotonic() - self._zero - self._position / self.sample_rate

    def _skip(self, seconds: float) -> None:
        """Add a gap."""
        frames = max(0, round(seconds * self.sample_rate))
        self._position += frames
        self.queue.lose(frames)

    def _place(self, frames: int) -> None:
        """Compare the audio with the wall clock after `frames` more have arrived."""
        self._position += frames
        late = self._late()
        if late < 0:  # audio cannot arrive early, so second 0 was earlier than assumed
            shift = min(-late, self._burst)
            self._zero -= shift
            self._burst -= shift
            late += shift
            if late < 0:
                self._closed.wait(-late)
        now = time.monotonic()
        if now - self._placed_at > GAP_SECONDS:  # delayed audio may arrive all at once
            self._least, self._least_until = np.inf, now + BURST_SECONDS
        self._placed_at = now
        self._least = min(self._least, late)
        if now >= self._least_until:  # audio that stayed late is missing
            if self._least > GAP_SECONDS:
                self._position -= frames
                self._skip(self._least)
                self._position += frames
                self.queue.notify(Notice("gap", "a part of it never arrived", self._least))
            self._least, self._least_until = np.inf, now + BURST_SECONDS

    def _put(self, block: Floats) -> None:
        """Append samples; if the queue is full, wait first, then drop audio beyond `max_lag`."""
        while not self.queue.has_room(len(block)) and self._late() < self._max_lag and not self._closed.is_set():
            self._closed.wait(_FULL_WAIT)
        self.queue.put(block[:, None])


def shown_url(url: str) -> str:
    """Return a URL without user, password and query, which may be secrets.

    Raises:
        ConfigError: if it is not valid or not supported.

    Example:
        >>> shown_url("rtsp://me:secret@camera.example:554/audio?key=1")
        'rtsp://camera.example:554/audio'
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # which is a number, or raises
    except ValueError as error:
        raise ConfigError(f"This is not a valid URL: {error}.") from error
    if parts.scheme.lower() not in SCHEMES or not host:
        raise ConfigError(f"The URL {url!r} is not supported. Allowed: {', '.join(SCHEMES)}, with a host.")
    return urlunsplit((parts.scheme, _place(parts), parts.path, "", ""))


def _place(parts: SplitResult) -> str:
    """Return host and port of a URL, without user and password."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port is None else f"{host}:{parts.port}"


def other_content(url: str, timeout: float) -> str:
    """Describe the content type of an HTTP URL; return "" if it is audio or unknown.

    Example:
        >>> other_content("http://radio.example/listen", 5)  # doctest: +SKIP
        'it is a web page (text/html), not audio'
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        return ""
    request = urllib.request.Request(urlunsplit((*parts[:1], _place(parts), *parts[2:4], "")))
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret).decode()}")
    trusting = ssl._create_unverified_context()  # as FFmpeg does, whose words this explains
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=trusting) as answer:
            kind = answer.headers.get_content_type()
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    if kind == "text/html":
        return f"it is a web page ({kind}), not audio"
    is_audio = kind.startswith(("audio/", "video/")) or kind in _AUDIO_TOO or "mpegurl" in kind
    return "" if is_audio else f"its content is {visible(kind[:80])}, not audio"


def is_url(text: str) -> bool:
    """Whether a text is an address, of whatever kind."""
    return "://" in text
