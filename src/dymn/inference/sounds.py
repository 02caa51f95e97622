"""Sounds: the events of live audio, reported when they start and end."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio.settings import ReadSettings
from dymn.inference.events import GAP_TOLERANCE, Event, EventSettings, EventTracker
from dymn.inference.selection import Selection, is_general
from dymn.inference.stream import Scored, Stream
from dymn.runtime.backend import Backend
from dymn.runtime.scores import thresholds_of
from dymn.runtime.vocabulary import kinds


class Sound(NamedTuple):
    """The start or the end of a sound, and its event, which is incomplete at the start."""

    kind: Literal["start", "end"]
    event: Event


class Sounds:
    """Accepts chunks of samples and reports when a sound starts and when it has ended.

    A sound is reported when its label reaches the threshold, and lasts while the probability is above the lower
    threshold. It has ended when the probability has stayed below it for longer than `min_gap`. Except for the last
    window, the events equal those of `dymn.inference.events` with the same settings, a given `off_threshold` and the
    method "windows". Without `off_threshold`, the lower threshold of files also depends on later probabilities, that of
    live audio on the threshold only. There is no median filter, and `specific` is applied to each window; a specific
    sound that has been reported replaces general ones down to its lower threshold.

    Example:
        >>> sounds = Sounds(tagger.backend, 16_000, EventSettings(threshold=0.3, window=2, hop=0.5))  # doctest: +SKIP
        >>> for chunk in chunks:  # doctest: +SKIP
        ...     for kind, event in sounds.feed(chunk):
        ...         print(kind, event.label, event.start)
    """

    def __init__(self, backend: Backend, sample_rate: int, settings: EventSettings) -> None:
        """Prepare for samples of `sample_rate` in Hz; a `ConfigError` if it is not allowed or a label is unknown."""
        self._backend, self._rate, self._settings = backend, sample_rate, settings
        reading = {setting.name: getattr(settings, setting.name) for setting in fields(ReadSettings)}
        self._tagging = replace(settings.tagging(), **reading)
        self._chosen = Selection(backend.card, self._tagging).allowed
        self.labels = tuple(backend.labels[i] for i in self._chosen)
        self._kinds = kinds(self.labels) if settings.specific else None
        self._thresholds = thresholds_of(backend.card, settings.rule().threshold)[self._chosen]
        self._tracker = EventTracker(self.labels, settings, backend.card)
        self._begun: set[str] = set()
        self._begin(0.0)

    @property
    def seconds(self) -> float:
        """The length of the audio that has been fed, in seconds."""
        return self._stream.seconds

    def feed(self, chunk: npt.NDArray[Any], dropped: int = 0) -> list[Sound]:
        """Append a chunk and return the sounds that start or end with it.

        Args:
            chunk: samples [n] or [n, channels], as for `Stream.feed`.
            dropped: number of samples that are missing before the chunk. A sound continues after a gap of up to
                `min_gap`.

        Raises:
            AudioError: as `Stream.feed`.
        """
        if dropped:
            self._begin(self.seconds + dropped / self._rate)
        return [sound for window in self._stream.score(chunk) for sound in self._add(window)]

    def lose(self) -> list[Sound]:
        """End all sounds, because the source is interrupted; `feed` can be called again afterwards."""
        return self._report(self._tracker.finish())

    def finish(self) -> list[Sound]:
        """Return the remaining sounds; nothing can be fed afterwards."""
        windows = self._stream.score_rest()
        found = [sound for window in windows[:-1] for sound in self._add(window)]
        for window in windows[-1:]:
            found += self._add(window, self.seconds)
        return found + self.lose()

    def _begin(self, seconds: float) -> None:
        self._stream = Stream(self._backend, self._rate, self._tagging, seconds)
        self._edge: float | None = None

    def _add(self, window: Scored, end: float | None = None) -> list[Sound]:
        """Take a window as a frame from where the last one ended to half a hop beyond its middle, or to `end`."""
        begin = window.start if self._edge is None else self._edge
        self._edge = (window.start + window.end + self._settings.cutting().hop) / 2 if end is None else end
        scores = window.scores[self._chosen]
        if self._kinds is not None:
            sounding = np.isin(self.labels, [event.label for event in self._tracker.sounding()])
            least = np.where(sounding, self._tracker.lower, self._thresholds)
            scores = np.where(is_general(scores, self._kinds, least), np.float32(0), scores)
        return self._report(self._tracker.add(scores[None], np.array([begin, self._edge])))

    def _report(self, settled: list[Event]) -> list[Sound]:
        found = []
        for event in settled:
            if event.label not in self._begun:
                found.append(Sound("start", event))
            self._begun.discard(event.label)
            found.append(Sound("end", event))
        least = self._settings.min_duration - GAP_TOLERANCE
        for event in self._tracker.sounding():
            if event.label not in self._begun and event.end - event.start >= least:
                self._begun.add(event.label)
                found.append(Sound("start", event))
        return found
