"""The probabilities of labels at points in time, in three ways, piece by piece.

`activation` runs the network over windows as long as those of its training and applies its head to each frame of the
last feature map, as class activation maps do, instead of to their mean. `windows` runs the whole network over short
windows that overlap. `frames` takes the frames that a frame-wise network scores itself, in windows as long as those of
its training, end to end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dymn.audio.settings import ReadSettings
from dymn.config import check
from dymn.errors import DymnError
from dymn.inference.methods import METHODS as METHODS
from dymn.inference.methods import CutSeconds, Method
from dymn.inference.selection import Selection, TagSettings
from dymn.inference.windows import AudioLike, AudioSource, Piece, Told, one_result, run_windows
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores
from dymn.system.arrays import Floats

if TYPE_CHECKING:
    from typing_extensions import Self

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FrameSettings(ReadSettings):
    """How to get frames, and of which labels; how recordings are read is in `ReadSettings`.

    Attributes:
        method: a key of `METHODS`, see `dymn.inference.frames`; None is "frames" for a frame-wise network, and
            "windows" for another one.
        window: seconds that the network hears at once; None is the method's own.
        hop: seconds from the start of one window to the next; None is the method's own.
        smoothing: seconds over which the feature map is averaged around each frame ("activation" only).
        clip: the weight of the window's probability in a frame's, from 0 to 1: the probability of a frame is their
            weighted geometric mean ("activation" only).
        labels: patterns such as "Dog" or "*music*" of labels to choose from; none means all.
        exclude: patterns of labels to leave out.
    """

    method: str | None = None
    window: float | None = None
    hop: float | None = None
    smoothing: float = 0.96
    clip: float = 0.3
    labels: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.method is None or self.method in METHODS, f"method is {self.method!r}; allowed: {', '.join(METHODS)}."
        )
        check(0 <= self.smoothing <= 60, f"smoothing is {self.smoothing}; it must be from 0 to 60 seconds.")
        check(0 <= self.clip <= 1, f"clip is {self.clip}; it must be from 0 to 1.")
        tagging = self.tagging()  # checks what it shares with tagging
        for name in ("labels", "exclude"):
            object.__setattr__(self, name, getattr(tagging, name))
        window, hop = self.cutting()
        check(
            hop <= window or (self.method is None and self.window is None),  # `of` knows the window
            f"hop is {hop} s and window {window} s; a hop longer than the window would leave out parts of the "
            "recording.",
        )

    @property
    def usual(self) -> Method:
        """The defaults of the method."""
        return METHODS[self.method or "windows"]

    def of(self, backend: Backend) -> Self:
        """Return the settings with the method of a backend's network, unless they name one that fits it.

        Raises:
            ConfigError: if the method does not fit the network.
        """
        own = backend.frame_seconds is not None
        method = self.method or ("frames" if own else "windows")
        name = backend.card.name or "This model"
        check(
            own == (method == "frames"),
            f"method is {method!r}, but {name} is a frame-wise network. Leave the method out."
            if own
            else f"method is 'frames', but {name} is not a frame-wise network. Use windows or activation.",
        )
        given = [seconds for seconds in (self.window, self.hop) if seconds is not None]
        check(
            not own or all(abs(seconds - (backend.frame_seconds or 0)) < 1e-6 for seconds in given),
            f"window, hop are {self.window}, {self.hop}; {name} processes consecutive windows of "
            f"{backend.frame_seconds} s. Leave both out.",
        )
        return replace(self, method=method)

    def cutting(self) -> CutSeconds:
        """Return window and hop in seconds."""
        window = self.usual.window if self.window is None else self.window
        return CutSeconds(window, min(self.usual.hop, window) if self.hop is None else self.hop)

    def tagging(self) -> TagSettings:
        """Return the settings that tag such windows with all chosen labels."""
        return TagSettings(0, 0.0, self.labels, self.exclude, *self.cutting())


@dataclass(frozen=True)
class Frames(Told):
    """The probabilities of labels at points in time.

    Attributes:
        labels: the chosen labels, C of them.
        times: the middles of the frames in seconds [T].
        scores: probabilities [T, C].
        seconds: the length of the recording.
    """

    labels: tuple[str, ...]
    times: Times = field(repr=False)
    scores: Scores = field(repr=False)
    seconds: float

    @property
    def edges(self) -> Times:
        """The borders of the frames [T + 1].

        They lie half way between the middles, the first at 0 and the last at the recording's end.
        """
        between = (self.times[1:] + self.times[:-1]) / 2
        return np.concatenate([[0.0], between, [max(self.seconds, self.times[-1])]])

    @property
    def hop(self) -> float:
        """Seconds from one frame to the next."""
        return float(self.times[1] - self.times[0]) if len(self.times) > 1 else self.seconds


class FramePart(NamedTuple):
    """Consecutive frames of a recording.

    The last part of each recording has its length and its notes, or the error that ended it. With the method
    "frames", its last frames may lie beyond the end.
    """

    name: str
    times: Times  # [n], the middles of the frames in seconds
    scores: Scores  # [n, C]
    seconds: float | None = None
    error: DymnError | None = None
    told: Mapping[str, Any] = {}  # the fields of `Told`

    @property
    def is_last(self) -> bool:
        """Whether the recording ends with this part."""
        return self.seconds is not None or self.error is not None


PART_FRAMES = 512
"""The least number of frames of a part that is not the last: 1 MB of probabilities of 527 labels."""


def frames(
    backend: Backend,
    source: AudioLike,
    sample_rate: int | None = None,
    settings: FrameSettings | None = None,
    heard: Callable[[Floats], object] | None = None,
) -> Frames:
    """Return the probabilities of labels at points in time.

    An hour has some 12,000 frames, 24 MB if all 527 labels of AudioSet are asked for; `frame_parts` holds only some of
    them at a time.

    Args:
        backend: computes the network.
        source: as in `dymn.inference.files.tag_files`.
        sample_rate: of an array, in Hz.
        settings: how, and which labels.
        heard: called with each block of samples [n] that is read.

    Raises:
        AudioError: if the source cannot be read.
        ConfigError: if a setting does not fit the model, or `sample_rate` is missing.
    """
    settings = (settings or FrameSettings()).of(backend)
    one_result(settings)
    parts = list(frame_parts(backend, [source], settings, sample_rate=sample_rate, heard=heard))
    return joined(parts, backend, settings)


def joined(parts: Sequence[FramePart], backend: Backend, settings: FrameSettings) -> Frames:
    """Return the parts of a recording as one.

    Raises:
        DymnError: that which ended the recording, if one did.
    """
    settings = settings.of(backend)
    last = parts[-1]
    if last.error is not None:
        raise last.error
    times: Times = np.concatenate([part.times for part in parts])
    scores: Scores = np.concatenate([part.scores for part in parts])
    if settings.method == "frames":  # the last window may reach beyond the end
        within = max(1, int(np.searchsorted(times, last.seconds or 0.0)))
        times, scores = times[:within], scores[:within]
    return Frames(chosen_labels(backend, settings), times, scores, last.seconds or 0.0, **last.told)


def chosen_labels(backend: Backend, settings: FrameSettings) -> tuple[str, ...]:
    """Return the labels that are asked for, in the order of a backend's.

    Raises:
        ConfigError: if a pattern matches no label.
    """
    return tuple(backend.labels[i] for i in Selection(backend.card, settings.tagging()).allowed)


def frame_parts(
    backend: Backend,
    sources: Iterable[AudioSource],
    settings: FrameSettings | None = None,
    *,
    sample_rate: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[str, float], None] | None = None,
    heard: Callable[[Floats], object] | None = None,
) -> Iterator[FramePart]:
    """Return the frames of recordings in parts, in memory that does not grow with the length of a recording.

    Arguments and errors are those of `dymn.inference.files.tag_files`; `heard` is called with each block that is read.

    Yields:
        parts of some `PART_FRAMES` frames in the order of the recordings and of time; the last part of each recording
        `is_last`.
    """
    maker = frame_maker(backend, settings or FrameSettings())
    scored = run_windows(
        backend,
        sources,
        maker,
        maker.compute,
        sample_rate=sample_rate,
        batch_size=batch_size,
        workers=workers,
        heard=heard,
        joins=maker.joins,
    )
    return collect_parts(scored, maker, backend.sample_rate, progress)


def collect_parts(
    scored: Iterable[tuple[Piece, Floats | None]],
    maker: FrameMaker,
    rate: int,
    progress: Callable[[str, float], None] | None,
) -> Iterator[FramePart]:
    """Yield the frames of recordings in parts, in order, from windows and what `maker.compute` returned for them."""
    times: list[Times] = []
    scores: list[Scores] = []
    for piece, row in scored:
        name, is_last = piece.recording.name, row is None
        seconds = piece.recording.seconds(rate) if is_last and piece.error is None else None
        middles, values = maker.finish(seconds) if row is None else maker.add(piece, row)
        times.append(middles)
        scores.append(values)
        if progress is not None and not is_last:
            progress(name, piece.end)
        if is_last or sum(map(len, times)) >= PART_FRAMES:
            told = piece.recording.told() if seconds is not None else {}
            yield FramePart(name, np.concatenate(times), np.concatenate(scores), seconds, piece.error, told)
            times, scores = [], []


def frame_maker(backend: Backend, settings: FrameSettings) -> FrameMaker:
    """Return what makes frames of windows.

    Raises:
        ConfigError: if a pattern matches no label, or the backend cannot score frames and the method needs it.
    """
    settings = settings.of(backend)
    return _MAKERS[settings.method or "windows"](backend, settings)


class FrameMaker(ABC):
    """How windows become frames: how they are cut and computed, and the frames that are complete after each.

    Attributes:
        window: seconds of a window.
        hop: seconds from the start of one window to the next.
        fill: what a shorter window is filled with, a key of `dymn.audio.windows.FILLS`.
        read: how recordings are read.
        joins: whether a short remainder joins the window before it.
    """

    fill: str
    joins = True

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        self.window, self.hop = settings.cutting()
        self.read: ReadSettings = settings
        self._backend, self._settings = backend, settings
        self._chosen = Selection(backend.card, settings.tagging()).allowed

    @abstractmethod
    def compute(self, features: Floats) -> Floats:
        """Return a row [B, ...] for each of a batch of windows."""

    @abstractmethod
    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return times [n] and probabilities [n, C] of the frames that no later window changes."""

    def finish(self, seconds: float | None) -> tuple[Times, Scores]:
        """Return the remaining frames of a recording of `seconds`, or none if it failed (None).

        The recording is then forgotten.
        """
        return np.empty(0), np.empty((0, len(self._chosen)), np.float32)


class _WindowFrames(FrameMaker):
    """One frame a window, in its middle."""

    fill = "repeat"

    def compute(self, features: Floats) -> Floats:
        """Return probabilities [B, C]."""
        return self._backend.run(features).probabilities[:, self._chosen]

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return the frame of a window."""
        return np.array([(piece.start + piece.end) / 2]), row[None]


class _ActivationFrames(FrameMaker):
    """The frames of the last feature map.

    Windows begin at multiples of a frame, so that the frames of overlapping ones coincide.

    They are averaged there; those in the middle of a window count most.
    """

    fill = "bare"

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        super().__init__(backend, settings)
        self._frame = backend.frame_samples / backend.sample_rate  # seconds
        self.window, self.hop = (max(1, round(seconds / self._frame)) * self._frame for seconds in settings.cutting())
        # odd, to be symmetric around a frame
        self._smoothing = max(0, round((settings.smoothing / self._frame - 1) / 2)) * 2 + 1
        self._reset()

    def _reset(self) -> None:
        self._first = 0  # index of the first frame in `_total`
        self._total = np.zeros((0, len(self._chosen)), np.float32)
        self._weights = np.zeros((0, 1), np.float32)

    def compute(self, features: Floats) -> Floats:
        """Return probabilities of frames [B, T, C]."""
        output = self._backend.frame_run(features, self._smoothing)
        frames, clip, share = (
            output.frames[:, :, self._chosen],
            output.probabilities[:, None, self._chosen],
            self._settings.clip,
        )
        return frames if share == 0 else frames ** (1 - share) * clip**share

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Add the frames [T, C] of a window; return those before it, which no later window reaches."""
        done = self._take(round(piece.start / self.read.speed / self._frame) - self._first)
        length = len(row)
        missing = ((0, max(0, length - len(self._total))), (0, 0))
        self._total, self._weights = np.pad(self._total, missing), np.pad(self._weights, missing)
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)[:, None]
        self._total[:length] += row * ramp
        self._weights[:length] += ramp
        return done

    def finish(self, seconds: float | None) -> tuple[Times, Scores]:
        """Return the other frames that begin within the recording."""
        is_first = self._first == 0
        times, scores = self._take(len(self._total))
        self._reset()
        if seconds is None:
            return super().finish(seconds)
        heard = max(int(is_first), int(np.searchsorted(times, seconds)))
        return times[:heard], scores[:heard]

    def _take(self, count: int) -> tuple[Times, Scores]:
        # Convolutions of stride s centre frame i on frame i * s of the spectrogram.
        times: Times = np.arange(self._first, self._first + count, dtype=np.float64) * self._frame * self.read.speed
        scores = self._total[:count] / self._weights[:count]
        self._total, self._weights = self._total[count:], self._weights[count:]
        self._first += count
        return times, scores


class _NetworkFrames(FrameMaker):
    """The frames of a frame-wise network, window by window, end to end; the last window is filled with zeros.

    The frames that lie in the zeros are kept: a median filter at the end of the recording takes them in, as published.
    """

    fill = "pad"
    joins = False

    def __init__(self, backend: Backend, settings: FrameSettings) -> None:
        super().__init__(backend, settings)
        self._frame = backend.frame_samples / backend.sample_rate
        self.window = self.hop = backend.frame_seconds or 0.0

    def compute(self, features: Floats) -> Floats:
        """Return probabilities of frames [B, T, C]."""
        return self._backend.frame_run(features).frames[:, :, self._chosen]

    def add(self, piece: Piece, row: Floats) -> tuple[Times, Scores]:
        """Return the frames of a window."""
        speed = self.read.speed
        first = round(piece.start / speed / self._frame)
        middles: Times = (np.arange(first, first + len(row), dtype=np.float64) + 0.5) * self._frame * speed
        return middles, row


_MAKERS: dict[str, type[FrameMaker]] = {
    "activation": _ActivationFrames,
    "windows": _WindowFrames,
    "frames": _NetworkFrames,
}
