"""Saved clips: the audio around each sound, as files."""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dymn.audio.samples import mean, to_float32
from dymn.config import check
from dymn.errors import ConfigError
from dymn.live.messages import Message
from dymn.system.arrays import Floats
from dymn.system.files import claim, set_usual_mode

KINDS = ("flac", "wav")
MOST_SECONDS = 60.0
"""Maximum length of a clip, including the time before the sound."""
MOST_OPEN = 16
"""Maximum number of clips at the same time."""
MOST_DELAY = 60.0
_MOST_CHANNELS = 8
_NAME = re.compile(r"[\w-]+_[01]\.\d\d_\d{8}_\d{6}Z(?:_\d+)?\.(?:flac|wav)")


@dataclass(frozen=True)
class ClipSettings:
    """Which clips are saved, and where.

    Attributes:
        folder: created if it does not exist.
        before: seconds before the start of a sound.
        after: seconds after its end.
        kind: the format, "flac" or "wav".
        keep: maximum number of clips in the folder; the oldest ones are deleted.
        delay: seconds until the end of a sound is detected.
    """

    folder: Path
    before: float = 2.0
    after: float = 2.0
    kind: str = "flac"
    keep: int = 1000
    delay: float = 5.0

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            value = getattr(self, name)
            check(0 <= value <= 30, f"{name} is {value}; it must be from 0 to 30 seconds.")
        check(self.kind in KINDS, f"The format of clips is {self.kind!r}; allowed: {', '.join(KINDS)}.")
        check(self.keep >= 1, f"keep is {self.keep}; it must be at least 1.")


class ClipRecorder:
    """Saves the audio of each sound as LABEL_SCORE_DATE_TIME (start in UTC); only the last seconds are in memory."""

    def __init__(self, settings: ClipSettings, sample_rate: int, note: Callable[[str], None]) -> None:
        """Prepare to save; `note` is called with messages for the user.

        Raises:
            ConfigError: if the format does not support the sample rate.
            OSError: if the folder cannot be created.
        """
        import soundfile

        if settings.kind == "flac" and sample_rate > 655_350:
            raise ConfigError(
                f"FLAC does not support a sample rate of {sample_rate} Hz. Save WAV files: --save-format wav."
            )
        self._settings, self._rate, self._note = settings, sample_rate, note
        self._soundfile = soundfile
        delay = min(settings.delay, MOST_DELAY)
        self._delay = round(delay * sample_rate)
        self._recent = _Recent(round((settings.before + delay) * sample_rate))
        self._open: dict[str, _Clip] = {}  # by label, of sounds that have not ended
        self._ended: list[_Clip] = []
        self._unsaved = 0
        settings.folder.mkdir(parents=True, exist_ok=True)
        for part in settings.folder.glob(".dymn-clip-*.part"):
            with suppress(OSError):  # such as on Windows, where a file in use cannot be removed
                with part.open("rb") as file:
                    is_left = claim(file)  # left by a run that was killed
                if is_left:
                    part.unlink()
        found = [path for path in settings.folder.iterdir() if _NAME.fullmatch(path.name)]
        self._kept = deque(sorted(found, key=lambda path: path.stat().st_mtime))

    def feed(self, samples: npt.NDArray[Any], dropped: int = 0) -> Iterator[Message]:
        """Process samples [n, channels] that follow `dropped` missing ones; yield the messages of saved clips."""
        floats = to_float32(samples if samples.ndim == 2 else samples[:, None])
        self._recent.add(floats if floats.shape[1] <= _MOST_CHANNELS else mean(floats)[:, None], dropped)
        for clip in self._open.values():
            self._write(clip, self._recent.end - self._delay)
        yield from self._complete(lambda clip: clip.stop <= self._recent.end)
        self._recent.forget()

    def start(self, message: Message) -> None:
        """Begin the clip of a sound."""
        if len(self._open) + len(self._ended) >= MOST_OPEN:
            self._fail(f"more than {MOST_OPEN} sounds at once")
            return
        begin = max(self._recent.begin, round((message["start"] - self._settings.before) * self._rate))
        try:
            handle, name = tempfile.mkstemp(prefix=".dymn-clip-", suffix=".part", dir=self._settings.folder)
            file = os.fdopen(handle, "w+b")
            claim(file)
            sound = self._soundfile.SoundFile(
                file, "w", self._rate, self._recent.channels, "PCM_16", format=self._settings.kind.upper()
            )
        except (OSError, self._soundfile.SoundFileError) as error:
            self._fail(str(error))
            return
        self._open[message["label"]] = _Clip(sound, file, Path(name), begin, begin)

    def end(self, message: Message) -> None:
        """End the clip of a sound."""
        clip = self._open.pop(message["label"], None)
        if clip is not None:
            clip.stop = round((message["end"] + self._settings.after) * self._rate)
            clip.message = message
            self._ended.append(clip)

    def complete(self) -> Iterator[Message]:
        """Complete the clips of all sounds that have ended, without more audio, and yield their messages."""
        yield from self._complete(lambda clip: True)

    def close(self) -> Iterator[Message]:
        """End all clips, and yield the messages of those whose sound has ended."""
        yield from self.complete()
        for clip in self._open.values():
            clip.discard()
        self._open = {}

    def _write(self, clip: _Clip, stop: int) -> None:
        """Write the remaining samples of a clip up to the position `stop`."""
        stop = min(stop, clip.begin + round(MOST_SECONDS * self._rate))
        if stop <= clip.written or clip.failed:
            return
        try:
            samples = self._recent.read(clip.written, stop)
            clip.sound.write(np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16))
        except (OSError, RuntimeError, self._soundfile.SoundFileError) as error:
            clip.failed = str(error)
        clip.written = stop

    def _complete(self, is_ready: Callable[[_Clip], bool]) -> Iterator[Message]:
        waiting = []
        for clip in self._ended:
            self._write(clip, min(clip.stop, self._recent.end))  # now: `after` may exceed what is in memory
            if not is_ready(clip):
                waiting.append(clip)
                continue
            if (message := self._saved(clip)) is not None:
                yield message
        self._ended = waiting

    def _saved(self, clip: _Clip) -> Message | None:
        """Rename a complete clip, and return the message about it."""
        try:
            if clip.failed:
                raise OSError(clip.failed)
            clip.sound.close()
            clip.file.close()
            path = self._name(clip.message)
            set_usual_mode(clip.part)
            clip.part.replace(path)
        except (OSError, RuntimeError, self._soundfile.SoundFileError) as error:
            clip.discard()
            self._fail(str(error))
            return None
        self._kept.append(path)
        while len(self._kept) > self._settings.keep:
            with suppress(OSError):
                self._kept.popleft().unlink()
        seconds = (clip.written - clip.begin) / self._rate
        return clip.message | {"event": "saved", "path": str(path), "seconds": round(seconds, 3)}

    def _name(self, message: Message) -> Path:
        when = datetime.fromisoformat(message["time"]).astimezone(timezone.utc).strftime("%Y%m%d_%H%M%SZ")
        stem = f"{plain(message['label'])}_{message['score']:.2f}_{when}"
        path, number = self._settings.folder / f"{stem}.{self._settings.kind}", 1
        while path.exists():
            number += 1
            path = self._settings.folder / f"{stem}_{number}.{self._settings.kind}"
        return path

    def _fail(self, why: str) -> None:
        """Count a clip that is not saved, and print a note at the first, second, fourth, eighth … one."""
        self._unsaved += 1
        if self._unsaved & (self._unsaved - 1) == 0:
            self._note(f"{self._unsaved} clips were not saved in {self._settings.folder} ({why}).")


def plain(label: str) -> str:
    """Return a label as a part of a file's name or of an address: letters, digits and hyphens.

    Example:
        >>> plain("Domestic animals, pets")
        'Domestic-animals-pets'
    """
    return re.sub(r"[^\w]+|_+", "-", label).strip("-")[:60] or "sound"


@dataclass
class _Clip:
    """A clip that is being written; positions count samples from second 0 of the sound."""

    sound: Any
    file: BinaryIO
    part: Path
    begin: int
    written: int  # up to this position
    stop: int = 0
    message: Message = field(default_factory=dict)
    failed: str = ""

    def discard(self) -> None:
        """Delete the file."""
        with suppress(Exception):
            self.sound.close()
        with suppress(OSError):
            self.file.close()
        self.part.unlink(missing_ok=True)


class _Recent:
    """The last samples, with their positions."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[tuple[int, Floats]] = deque()
        self.end = 0
        self.channels = 1

    @property
    def begin(self) -> int:
        """The position of the oldest sample."""
        return self._chunks[0][0] if self._chunks else self.end

    def add(self, samples: Floats, dropped: int) -> None:
        """Append samples [n, channels] behind `dropped` missing ones."""
        self.end += dropped
        self.channels = samples.shape[1]
        if len(samples):
            self._chunks.append((self.end, samples))
            self.end += len(samples)

    def forget(self) -> None:
        """Remove samples older than the limit."""
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) < self.end - self._limit:
            self._chunks.popleft()

    def read(self, begin: int, end: int) -> Floats:
        """Return the samples from one position to another; missing ones are 0."""
        out = np.zeros((end - begin, self.channels), np.float32)
        for start, samples in self._chunks:
            first, last = max(start, begin), min(start + len(samples), end)
            if first < last:
                out[first - begin : last - begin] = samples[first - start : last - start]
        return out
