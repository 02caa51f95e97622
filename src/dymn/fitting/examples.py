"""Labelled recordings as embeddings of windows, with the labels of each window."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio.annotations import warn_late
from dymn.audio.notes import without_advice
from dymn.audio.sources import display
from dymn.errors import AudioError, DataError, DymnError
from dymn.fitting.background import made_background
from dymn.fitting.labelled import AnnotatedRecording, Labelled, LabelledClip
from dymn.fitting.thresholds import BackgroundHours
from dymn.inference.embedding import Embedder, Embedding, EmbedSettings
from dymn.inference.windows import AudioLike, blocks
from dymn.system.arrays import Bools, Floats

CLIP_WINDOW, TRACK_WINDOW = 10.0, 3.0
"""Seconds of a window in clips, as `dymn tag` cuts them, and in annotated recordings, where they overlap by half."""
SHARE = 0.5
"""The part of a window or of an annotation that their overlap covers at least, for the window to have its label."""
MADE = "made"
"""The group of background that is made, not recorded."""
GENERAL = "general"
"""The groups of background that comes with dymn, see `dymn.fitting.general`."""

OnClip = Callable[[int, int], None]


class Place(NamedTuple):
    """Where a window lies: its recording, start and end in seconds."""

    path: str
    start: float
    end: float


@dataclass(frozen=True)
class LabelledWindows:
    """N windows.

    Attributes:
        labels: the C classes.
        vectors: embeddings of the last layer [N, D].
        targets: whether a class is heard [N, C].
        known: whether the target is known [N, C].
        weights: of windows [N]; those of a clip add up to 1.
        groups: windows of one group are never on both sides of a validation [N].
        places: where they lie.
    """

    labels: tuple[str, ...]
    vectors: Floats
    targets: Bools
    known: Bools
    weights: npt.NDArray[np.float64]
    groups: tuple[str, ...]
    places: Sequence[Place]

    @property
    def made(self) -> Bools:
        """Which windows are of background that is made [N]."""
        return np.array([group.startswith(MADE) for group in self.groups], dtype=bool)

    @property
    def general(self) -> Bools:
        """Which windows are of background that comes with dymn [N]."""
        return np.array([group.startswith(GENERAL) for group in self.groups], dtype=bool)

    @property
    def background(self) -> Bools:
        """Which windows are of recorded sound that is known to have none of the classes, of the user or of dymn [N]."""
        return np.asarray(~self.targets.any(axis=1) & self.known.all(axis=1) & ~self.made)

    def background_of(self, general: bool = False) -> BackgroundHours:
        """Return the background of the user, or of dymn; where windows overlap, its hours count once."""
        chosen = self.background & (self.general == general)
        spans: dict[str, list[tuple[float, float]]] = {}
        for place, use in zip(self.places, chosen, strict=True):
            if use:
                spans.setdefault(os.path.realpath(place.path), []).append((place.start, place.end))
        union = sum(map(_covered, spans.values()))
        total = sum(end - start for each in spans.values() for start, end in each)
        return BackgroundHours(chosen, union / 3600, total / union if union else 1.0)

    def groups_of(self, column: int) -> set[str]:
        """Return the groups in which a class is heard."""
        return {self.groups[i] for i in np.flatnonzero(self.targets[:, column])}


@without_advice("gain", "partial")  # fitting has no settings for reading
def embed_labelled(
    embedder: Embedder,
    labelled: Labelled,
    *,
    made: bool = True,
    track_window: float = TRACK_WINDOW,
    workers: int = 0,
    progress: OnClip | None = None,
) -> tuple[LabelledWindows, dict[str, DymnError]]:
    """Embed labelled recordings, and background that is made.

    Whole clips are cut as `dymn tag` cuts them; annotated recordings into short windows that overlap by half. A window
    that an annotation only touches teaches nothing of its label.

    Args:
        embedder: of the last layer.
        labelled: what is known of which recording.
        made: whether to add silence, noise, hum, tones and clicks without any class.
        track_window: seconds of a window in annotated recordings.
        workers: threads that decode.
        progress: called with the recordings done and their number.

    Returns:
        the examples, and by name the errors of recordings that cannot be read, which are left out.

    Raises:
        DataError: if none can be read.
        ResourceError: if a batch does not fit the memory.
    """
    rate, rows, bad = embedder.sample_rate, _Rows(labelled.labels), dict[str, DymnError]()
    whole = EmbedSettings(CLIP_WINDOW, fill="repeat")
    sliding = EmbedSettings(track_window, track_window / 2, fill="repeat")
    sounds, files = (_sound(clip, rate) for clip in labelled.clips), [track.path for track in labelled.tracks]
    clips = embedder.embed_files(sounds, whole, sample_rate=rate, workers=workers)
    tracks = embedder.embed_files(files, sliding, workers=workers)
    items: list[LabelledClip | AnnotatedRecording] = [*labelled.clips, *labelled.tracks]
    for done, (item, found) in enumerate(zip(items, chain(clips, tracks), strict=True), start=1):
        if found.error is not None:
            bad[_name(item)] = found.error if found.name else AudioError(f"{_name(item)}: {found.error}")
        elif isinstance(item, LabelledClip):
            rows.add_clip(item, found)
        else:
            rows.add_track(item, found)
        if progress is not None:
            progress(done, len(items))
    if not rows.vectors:
        raise DataError(f"None of the {len(items)} recordings can be read: {next(iter(bad.values()), 'none is given')}")
    if made:
        for i, sound in enumerate(made_background(rate)):
            rows.add_made(embedder.vectors(sound[None])[0], i)
    return rows.examples(), bad


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return how many seconds intervals cover together."""
    covered, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


class _Rows:
    """LabelledWindows while they are collected."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.vectors: list[Floats] = []
        self._targets: list[Bools] = []
        self._known: list[Bools] = []
        self._weights: list[float] = []
        self._groups: list[str] = []
        self._places: list[Place] = []

    def add_clip(self, clip: LabelledClip, found: Embedding) -> None:
        """Add the windows of a clip, each with its labels."""
        targets, known = self._answer(clip.heard, clip.absent)
        for vector, (start, end) in zip(found.windows, found.spans, strict=True):
            place = Place(str(clip.path), clip.start + start, clip.start + end)
            self._add(vector, targets, known, 1 / len(found.windows), clip.group, place)

    def add_track(self, track: AnnotatedRecording, found: Embedding) -> None:
        """Add the windows of an annotated recording: with the labels that are in them, or that fill them, by half."""
        warn_late(track.path, found.seconds, track.annotations)
        annotated = np.array([(one.start, one.end) for one in track.annotations]).reshape(-1, 2)
        for vector, (start, end) in zip(found.windows, found.spans, strict=True):
            overlap = np.minimum(annotated[:, 1], end) - np.maximum(annotated[:, 0], start)
            needed = SHARE * np.minimum(annotated[:, 1] - annotated[:, 0], end - start)
            heard = {one.label for one, is_in in zip(track.annotations, overlap >= needed, strict=True) if is_in}
            touched = {one.label for one, is_in in zip(track.annotations, overlap > 0, strict=True) if is_in} - heard
            targets, known = self._answer(heard, None)
            known &= ~np.isin(self.labels, list(touched))
            self._add(vector, targets, known, 1.0, track.group, Place(str(track.path), float(start), float(end)))

    def add_made(self, vector: Floats, number: int) -> None:
        """Add a sound of `made_background`."""
        targets, known = self._answer((), None)
        self._add(vector, targets, known, 1.0, f"{MADE} {number}", Place(MADE, 0.0, CLIP_WINDOW))

    def _answer(self, heard: Iterable[str], absent: Iterable[str] | None) -> tuple[Bools, Bools]:
        targets = np.isin(self.labels, list(heard))
        known = np.ones_like(targets) if absent is None else targets | np.isin(self.labels, list(absent))
        return targets, known

    def _add(self, vector: Floats, targets: Bools, known: Bools, weight: float, group: str, place: Place) -> None:
        self.vectors.append(vector)
        self._targets.append(targets)
        self._known.append(known)
        self._weights.append(weight)
        self._groups.append(group)
        self._places.append(place)

    def examples(self) -> LabelledWindows:
        """Return what was added."""
        return LabelledWindows(
            self.labels,
            np.stack(self.vectors),
            np.stack(self._targets),
            np.stack(self._known),
            np.array(self._weights),
            tuple(self._groups),
            self._places,
        )


def _name(item: LabelledClip | AnnotatedRecording) -> str:
    """Return what messages call a recording, or a passage of one."""
    if isinstance(item, AnnotatedRecording) or (item.start, item.end) == (0.0, math.inf):
        return display(item.path)
    return f"{display(item.path)}, {item.start:g} to {item.end:g} s"


def _sound(clip: LabelledClip, rate: int) -> AudioLike:
    """Return a clip as a source: its path, or the samples of a passage; a passage that cannot be read, by its path."""
    if (clip.start, clip.end) == (0.0, math.inf):
        return clip.path
    first, last = round(clip.start * rate), clip.end * rate
    parts, done = list[Floats](), 0
    try:
        for block in blocks(clip.path, rate):
            parts.append(block[max(0, first - done) : max(0, math.ceil(min(last - done, len(block))))])
            done += len(block)
            if done >= last:
                break
    except (AudioError, OSError):
        return clip.path  # whose reader says what is wrong
    return np.concatenate(parts)
