"""Tags of live audio that arrives in chunks, equal to the tags of a file with the same audio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio.recording import chosen
from dymn.audio.resampling import Resampler
from dymn.audio.samples import to_float32, to_mono
from dymn.audio.windows import Cutter, Filled, Window, fill
from dymn.config import check
from dymn.errors import AudioError
from dymn.inference.selection import Selection, TagSettings, WindowTags
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores

if TYPE_CHECKING:
    from dymn.audio.microphone import Chunk


class Scored(NamedTuple):
    """Start and end of a window in seconds, and its probabilities [C]."""

    start: float
    end: float
    scores: Scores


class Heard(NamedTuple):
    """The tags of a window, and the number of seconds that have been dropped so far."""

    window: WindowTags
    dropped: float


def follow(
    backend: Backend, chunks: Iterable[Chunk], sample_rate: int, settings: TagSettings | None = None
) -> Iterator[Heard]:
    """Yield the tags of each window of live audio. After dropped audio, a new window starts, at its true time.

    Args:
        backend: runs the network.
        chunks: samples, and the number of frames that were dropped before them.
        sample_rate: sample rate of the samples, in Hz.
        settings: settings of tagging.

    Raises:
        AudioError: for samples that are not finite, and whatever `chunks` raises.
    """
    stream = Stream(backend, sample_rate, settings)
    lost = 0
    for chunk in chunks:
        if chunk.dropped:
            lost += chunk.dropped
            stream = Stream(backend, sample_rate, settings, stream.seconds + chunk.dropped / sample_rate)
        for window in stream.feed(chunk.samples):
            yield Heard(window, lost / sample_rate)
    for window in stream.finish():
        yield Heard(window, lost / sample_rate)


class Stream:
    """Accepts chunks of samples and returns the tags of each window as soon as it is complete.

    A window is complete when a tenth of its length beyond its end has been fed, because a shorter remainder at the end
    of a recording belongs to the last window. Results are bit-identical for all chunk sizes. `Tagger.timeline`, which
    computes several windows at once, returns the same tags up to about 1e-6.

    Example:
        >>> stream = tagger.stream(sample_rate=16_000, window=2, hop=0.5)  # doctest: +SKIP
        >>> for chunk in chunks:  # doctest: +SKIP
        ...     for window in stream.feed(chunk):
        ...         print(window.start, window.end, window.tags)
        >>> stream.finish()  # doctest: +SKIP
    """

    def __init__(
        self, backend: Backend, sample_rate: int, settings: TagSettings | None = None, begin: float = 0.0
    ) -> None:
        """Prepare a stream.

        Args:
            backend: runs the network.
            sample_rate: of what will be fed, in Hz.
            settings: what to tag and how; `combine` has no effect.
            begin: the time in seconds of the first sample.

        Raises:
            ConfigError: if the sample rate is not allowed, a label is unknown, or a setting needs all of a recording.
        """
        self._settings = how = settings or TagSettings()
        heard_once = how.channel not in ("each", "loudest") and not isinstance(how.gain, str) and how.speed == 1
        check(
            heard_once and how.band is None and how.track is None and how.clock == "none",
            "For live sound, only the reading settings channel (mix, left, right or a number) and gain (in dB) are "
            "available. For others, record it to a file.",
        )
        self._gain = np.float32(10 ** (float(how.gain) / 20))
        self._backend = backend
        self._rate, self._begin = sample_rate, begin
        self._selection = Selection(backend.card, self._settings)
        self._resampler = Resampler(sample_rate, backend.sample_rate)
        self._length = round(self._settings.window * backend.sample_rate)
        hop = round((self._settings.hop or self._settings.window) * backend.sample_rate)
        self._cutter = Cutter(self._length, hop)
        self._window: Filled | None = None
        self._features = backend.features(self._windows(), hop)  # shared frames are computed once, as for files
        self._fed = 0
        self._channels = 0
        self._finished = False

    @property
    def seconds(self) -> float:
        """The length of the audio that has been fed, in seconds."""
        return self._begin + self._fed / self._rate

    def feed(self, chunk: npt.NDArray[Any]) -> list[WindowTags]:
        """Append a chunk and return the tags of the windows that it completes, in chronological order.

        Args:
            chunk: samples [n] or [n, channels] of any number n, including 0: float with full scale 1, int8, int16,
                int32 or uint8.

        Raises:
            AudioError: if the chunk has another shape or type, another number of channels than earlier chunks, or
                values that are not finite. The chunk is then ignored, and further chunks can be fed.
            ConfigError: if the stream is finished.
        """
        return [self._tagged(window) for window in self.score(chunk)]

    def finish(self) -> list[WindowTags]:
        """Return the tags of the remaining windows; nothing can be fed afterwards."""
        return [self._tagged(window) for window in self.score_rest()]

    def score(self, chunk: npt.NDArray[Any]) -> list[Scored]:
        """Append a chunk like `feed`, and return the probabilities of the windows instead of their tags."""
        check(not self._finished, "The stream has ended. Start another one with Tagger.stream.")
        mono = self._mono(np.asarray(chunk))
        self._fed += len(mono)
        return self._answers(self._cutter.feed(self._resampler.feed(mono)))

    def score_rest(self) -> list[Scored]:
        """Return the probabilities of the remaining windows; nothing can be fed afterwards."""
        if self._finished:
            return []
        self._finished = True
        return self._answers(self._cutter.feed(self._resampler.finish())) + self._answers(self._cutter.finish())

    def _tagged(self, window: Scored) -> WindowTags:
        best = self._selection.best(window.scores)
        span = window.start, window.end
        return WindowTags(*span, self._selection.tags(best, window.scores[best], *span))

    def _mono(self, chunk: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if chunk.ndim not in (1, 2) or (chunk.ndim == 2 and chunk.shape[1] == 0):
            raise AudioError(f"The chunk has shape {list(chunk.shape)}; [n] or [n, channels] is allowed.")
        samples = to_float32(chunk if chunk.ndim == 2 else chunk[:, None])
        channels = samples.shape[1]
        if channels != (self._channels or channels):
            raise AudioError(
                f"The chunk has {channels} channels, but earlier chunks had {self._channels}. Start another stream."
            )
        heard = chosen(samples, self._settings.channel, "The stream")
        mono = to_mono("The stream", heard, self.seconds, self._rate)
        self._channels = channels
        return mono if self._gain == 1 else mono * self._gain

    def _answers(self, windows: Iterable[Window]) -> list[Scored]:
        """Compute windows one at a time, because the size of a batch changes the last bits."""
        answers = []
        rate = self._backend.sample_rate
        for start, samples in windows:
            self._window = Filled(fill(samples, self._length, self._settings.fill), len(samples))
            scores = self._backend.run(next(self._features)[None]).probabilities[0]
            answers.append(Scored(self._begin + start / rate, self._begin + (start + len(samples)) / rate, scores))
        return answers

    def _windows(self) -> Iterator[Filled]:
        """Yield the current window each time."""
        while self._window is not None:
            yield self._window
