"""Events from the probabilities of frames: median filter, two thresholds, minimum gap and minimum duration.

Frames are processed as they arrive, so memory does not grow with the length of a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.config import ModelCard, check
from dymn.inference.frames import FramePart, Frames, FrameSettings, Times, chosen_labels, frame_parts
from dymn.inference.methods import Around, Nearby, odd_frames
from dymn.inference.selection import SPECIFIC_SHARE
from dymn.inference.windows import AudioLike, Result
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores, ThresholdOrName, check_threshold, thresholds_of
from dymn.runtime.vocabulary import kinds

GAP_TOLERANCE = 1e-9
"""In seconds; needed because edges are sums of rounded numbers."""


class Event(NamedTuple):
    """An event: a label, its start and end in seconds, and its highest probability between them."""

    label: str
    start: float
    end: float
    score: float


class Rule(NamedTuple):
    """The rule by which events are detected: the threshold, and times in seconds."""

    threshold: ThresholdOrName
    median: float
    min_gap: float
    min_duration: float


@dataclass(frozen=True)
class EventSettings(FrameSettings):
    """Settings of frames and of the detection of events in them.

    Attributes:
        threshold: an event has a frame with at least this probability; "auto" and "precise" select the thresholds per
            label that are stored in the checkpoint.
        off_threshold: an event lasts while the probability is at least this, or `threshold` if that is lower; by
            default, a share of `threshold`, or less where the probabilities of the label nearby are lower, see
            `dymn.inference.methods.Nearby`.
        median: length of the median filter over the probabilities, in seconds of the signal as played; a length of up
            to one frame has no effect.
        min_gap: events of one label with at most this many seconds between them are joined.
        min_duration: shorter events are dropped, in seconds.
        specific: whether to leave out an event, such as "Animal", if at least half of its duration is covered by events
            of more specific labels, such as "Dog", with at least half of its score.

    Settings that are None have the method's defaults, see `dymn.inference.frames.METHODS`.
    """

    threshold: ThresholdOrName | None = None
    off_threshold: float | None = None
    median: float | None = None
    min_gap: float | None = None
    min_duration: float = 0.0
    specific: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.rule()
        threshold = rule.threshold
        check_threshold(threshold)
        check(threshold != 0, "threshold is 0; it must be above 0, and at most 1.")
        off, most = self.off_threshold, 1.0 if isinstance(threshold, str) else threshold
        check(
            off is None or 0 < off <= most,
            f"off_threshold is {off}; it must be above 0, and at most threshold, which is {most}. Lower it, or raise "
            "threshold (--threshold)."
            if most < 1
            else f"off_threshold is {off}; it must be above 0, and at most 1.",
        )
        for name in ("median", "min_gap", "min_duration"):
            value = getattr(rule, name)
            check(0 <= value <= 3600, f"{name} is {value}; it must be from 0 to 3600 seconds.")

    @property
    def nearby(self) -> Nearby | None:
        """The rule by which the lower threshold adapts to nearby probabilities, or None."""
        return self.usual.nearby if self.off_threshold is None else None

    def around(self, step: float) -> Around:
        """Return the neighbourhood of a frame; `step` is the time between frames in the recording."""
        step /= self.speed  # settings are seconds of the signal as played
        half = odd_frames(self.rule().median, step) // 2
        return Around(half, max(1, round(self.nearby.seconds / step)) if self.nearby else 0)

    def rule(self) -> Rule:
        """Return the rule of detection, with the method's defaults for settings that are None."""
        usual = self.usual
        return Rule(
            threshold=usual.threshold if self.threshold is None else self.threshold,
            median=usual.median if self.median is None else self.median,
            min_gap=usual.min_gap if self.min_gap is None else self.min_gap,
            min_duration=self.min_duration,
        )


@dataclass(frozen=True)
class EventRecording(Result):
    """The events of one recording in the order of their starts, or the error that prevented them."""

    events: Sequence[Event] = ()


def event_files(
    backend: Backend,
    sources: Iterable[AudioLike],
    settings: EventSettings | None = None,
    *,
    sample_rate: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Iterator[EventRecording]:
    """Detect the events of recordings in order; only the events are kept in memory.

    Arguments and errors are those of `dymn.inference.files.tag_files`.

    Yields:
        one `EventRecording` per source, in order, or with `channel="each"` one per channel. Recordings that cannot be
        read have an `error`; the others are still processed.
    """
    settings = (settings or EventSettings()).of(backend)
    parts = frame_parts(
        backend, sources, settings, sample_rate=sample_rate, batch_size=batch_size, workers=workers, progress=progress
    )  # fmt: skip
    return collect_events(parts, chosen_labels(backend, settings), settings, backend.card)


def collect_events(
    parts: Iterable[FramePart], labels: Sequence[str], settings: EventSettings, card: ModelCard | None = None
) -> Iterator[EventRecording]:
    """Return the events of recordings, from their frames in parts; `card` is the model's, with its thresholds.

    Raises:
        ConfigError: at once, if thresholds are requested that the model does not contain.
    """
    return _collect(parts, lambda: Decider(labels, settings, card), Decider(labels, settings, card))


def _collect(parts: Iterable[FramePart], fresh: Callable[[], Decider], decider: Decider) -> Iterator[EventRecording]:
    for part in parts:
        if part.error is not None:
            yield EventRecording(part.name, error=part.error, **part.info)
        else:
            decider.feed(part.times, part.scores)
            if part.seconds is not None:
                events = decider.finish(part.seconds)
                yield EventRecording(part.name, part.seconds, events, **part.info)
        if part.is_last:
            decider = fresh()


def decide(frames: Frames, settings: EventSettings | None = None, card: ModelCard | None = None) -> list[Event]:
    """Return the events in frames, ordered by start; of events with the same start, the most probable comes first.

    Args:
        frames: probabilities of labels over time.
        settings: thresholds and further rules of detection.
        card: the model's card with its stored thresholds; needed if `settings` use them.
    """
    decider = Decider(frames.labels, settings, card)
    decider.feed(frames.times, frames.scores)
    return decider.finish(frames.seconds)


class _Passage(NamedTuple):
    """A passage of one label above the lower threshold: start and end in seconds, and its highest probability."""

    start: float
    end: float
    score: np.float32


class Decider:
    """Decides on the events of one recording whose frames come in parts; how they are cut into parts changes nothing.

    It holds the frames that the median needs, and what its tracker holds.
    """

    def __init__(
        self, labels: Sequence[str], settings: EventSettings | None = None, card: ModelCard | None = None
    ) -> None:
        """Prepare for the probabilities of `labels`, some or all of those of a model.

        Raises:
            ConfigError: if thresholds are requested that the model does not contain.
        """
        self._settings = settings or EventSettings()
        self._tracker = EventTracker(labels, self._settings, card)
        self._labels = labels
        self._kinds = kinds(labels) if self._settings.specific else None
        self._around = Around()  # known from the second frame on
        self._is_begun = False
        self._times: Times = np.empty(0)  # of the undecided frames
        # `_around.reach` frames before the undecided frames, then those
        self._scores = np.empty((0, len(labels)), np.float32)
        self._edge = 0.0  # where the first undecided frame begins
        self._events: list[Event] = []

    def feed(self, times: Times, scores: Scores) -> None:
        """Add the next frames: their middles [n] in seconds, and probabilities [n, C]."""
        self._times = np.concatenate([self._times, times])
        self._scores = np.concatenate([self._scores, scores])
        if not self._is_begun:
            self._begin()
        count = len(self._times) - max(1, self._around.reach)  # a frame ends half way to the next one
        if self._is_begun and count > 0:
            self._decide(count, (self._times[:count] + self._times[1 : count + 1]) / 2)

    def finish(self, seconds: float) -> list[Event]:
        """Return the events of a recording of `seconds` by start time; of equal starts, the likeliest comes first.

        Frames beyond its end are used, and events end with it.
        """
        if count := len(self._times):
            if not self._is_begun:
                self._begin(is_whole=True)
            self._scores = np.pad(self._scores, ((0, self._around.reach), (0, 0)), mode="symmetric")
            between, end = (self._times[1:] + self._times[:-1]) / 2, max(seconds, float(self._times[-1]))
            self._decide(count, np.append(between, end))
        self._events += self._tracker.finish()
        found = [event._replace(end=min(event.end, seconds)) for event in self._events if event.start < seconds]
        kept = found if self._kinds is None else most_specific(found, self._labels, self._kinds)
        return sorted(kept, key=lambda event: (event.start, -event.score, event.label))

    def _begin(self, is_whole: bool = False) -> None:
        """Reflect the probabilities at the beginning, if the frames for it are there or there are no more of them."""
        if len(self._times) > 1:
            self._around = self._settings.around(float(self._times[1] - self._times[0]))
        if is_whole or len(self._times) >= max(2, self._around.reach):
            self._scores = np.pad(self._scores, ((self._around.reach, 0), (0, 0)), mode="symmetric")
            self._is_begun = True

    def _decide(self, count: int, ends: Times) -> None:
        """Decide on the first `count` undecided frames, which end at `ends`."""
        scores = self._scores[: count + 2 * self._around.reach]
        self._events += self._tracker.add(scores, np.append(self._edge, ends), self._around)
        self._times, self._scores, self._edge = self._times[count:], self._scores[count:], float(ends[-1])


class EventTracker:
    """Follows labels through frames, and gives each event once no later frame can change it.

    It holds the lasting passage of each label, and its last event, which a later one may join.
    """

    def __init__(self, labels: Sequence[str], settings: EventSettings, card: ModelCard | None = None) -> None:
        """Prepare for the probabilities of `labels`, as `Decider`, but the caller applies the median."""
        self._labels = labels
        # settings are seconds of the signal as played, and frames have times of the recording
        rule = settings.rule()
        self._min_gap, self._min_duration = rule.min_gap * settings.speed, rule.min_duration * settings.speed
        card = card or ModelCard(labels=tuple(labels))
        self._on = thresholds_of(card, rule.threshold)[[card.labels.index(label) for label in labels]]  # [C]
        share = settings.usual.off_share
        off = share * self._on.astype(np.float64) if settings.off_threshold is None else settings.off_threshold
        self._off = np.minimum(off, self._on).astype(np.float32)  # [C]
        self._nearby = settings.nearby
        self._edge = 0.0  # where the last frame ended
        self._open: dict[int, _Passage] = {}  # by column
        self._last: dict[int, _Passage] = {}  # by column
        self._events: list[Event] = []

    def add(self, scores: Scores, edges: Times, around: Around | None = None) -> list[Event]:
        """Take the next frames and return the events that are settled with them.

        Args:
            scores: probabilities of the frames, and of `around.reach` frames before and behind them.
            edges: the borders of the frames [n + 1] in seconds. Where they begin after the last frame, passages end.
            around: what is taken into account of the frames on each side of one; None is nothing.
        """
        if edges[0] > self._edge + GAP_TOLERANCE:
            self._interrupt()
        around = around or Around()
        nearby = self._nearby if around.near else None
        least = nearby.least * self._on if nearby else self._off
        loud = set(np.flatnonzero(scores.max(axis=0) >= least).tolist())
        for column in sorted(loud | self._open.keys()):
            off: Scores = self._off[column, None]
            if nearby:
                off = np.clip(nearby.lowest(around.nearby(scores[:, column])), least[column], off)
            self._passages(column, around.smooth(scores[:, column]), off, edges)
        self._edge = float(edges[-1])
        for column, last in list(self._last.items()):
            following = self._open[column].start if column in self._open else self._edge
            if not self._joins(last, following):
                self._keep(column, self._last.pop(column))
        return self._taken()

    @property
    def lower(self) -> Scores:
        """The lower threshold of each label [C]."""
        return self._off

    def sounding(self) -> Iterator[Event]:
        """Yield the events that have reached the upper threshold and are not settled, as they are so far."""
        for column in sorted(self._open.keys() | self._last.keys()):
            parts = [part for part in (self._last.get(column), self._open.get(column)) if part is not None]
            loud = [part for part in parts if part.score >= self._on[column]]
            if loud:
                score = float(max(part.score for part in loud))
                yield Event(self._labels[column], loud[0].start, loud[-1].end, score)

    def finish(self) -> list[Event]:
        """Return the events that are left, as if nothing followed."""
        self._interrupt()
        for column, passage in self._last.items():
            self._keep(column, passage)
        self._last = {}
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _interrupt(self) -> None:
        for column, passage in self._open.items():
            self._close(column, passage._replace(end=self._edge))
        self._open = {}

    def _passages(self, column: int, scores: Scores, off: Scores, edges: Times) -> None:
        """Find the passages of one label: where its probabilities [n], between `edges` [n + 1], reach `off`."""
        opened = self._open.pop(column, None)
        above = np.append(opened is not None, scores >= off)
        changes = np.flatnonzero(above[1:] != above[:-1]).tolist()
        bounds = changes if opened is None else [0, *changes]
        for i in range(0, len(bounds), 2):
            is_complete = i + 1 < len(bounds)
            first, last = bounds[i], bounds[i + 1] if is_complete else len(scores)
            begun = opened if opened is not None and i == 0 else _Passage(float(edges[first]), 0.0, np.float32(-1))
            found = _Passage(begun.start, float(edges[last]), scores[first:last].max(initial=begun.score))
            if is_complete:
                self._close(column, found)
            else:
                self._open[column] = found

    def _close(self, column: int, passage: _Passage) -> None:
        """Make a complete passage an event if it is loud enough; merge it with the previous one if the gap is short."""
        if passage.score < self._on[column]:
            return
        last = self._last.get(column)
        if last is not None and self._joins(last, passage.start):
            passage = _Passage(last.start, passage.end, max(last.score, passage.score))
        elif last is not None:
            self._keep(column, last)
        self._last[column] = passage

    def _joins(self, last: _Passage, start: float) -> bool:
        return start - last.end <= self._min_gap + GAP_TOLERANCE

    def _keep(self, column: int, passage: _Passage) -> None:
        if passage.end - passage.start >= self._min_duration - GAP_TOLERANCE:
            self._events.append(Event(self._labels[column], passage.start, passage.end, float(passage.score)))


def most_specific(events: Sequence[Event], labels: Sequence[str], kinds: npt.NDArray[np.bool_]) -> list[Event]:
    """Return the events without those that are covered by events of more specific labels.

    Args:
        events: of one recording, those of one label apart from each other.
        labels: of the events, C of them.
        kinds: which labels are kinds of which [C, C], as in `dymn.runtime.vocabulary.kinds`.
    """
    by_label: dict[str, list[Event]] = {}
    for event in events:
        by_label.setdefault(event.label, []).append(event)
    rivals = {
        label: [
            event
            for kind in np.flatnonzero(kinds[labels.index(label)]).tolist()
            for event in by_label.get(labels[kind], ())
        ]
        for label in by_label
    }

    def is_covered(event: Event) -> bool:
        spans = [
            (max(event.start, one.start), min(event.end, one.end))
            for one in rivals[event.label]
            if one.score >= SPECIFIC_SHARE * event.score
        ]
        covered, reached = 0.0, event.start
        for start, end in sorted(spans):
            covered += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return bool(spans) and covered >= 0.5 * (event.end - event.start)

    return [event for event in events if not is_covered(event)]
