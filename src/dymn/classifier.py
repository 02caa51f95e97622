"""Tags with the interface of `pipeline("audio-classification")` in Hugging Face transformers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np

from dymn.audio import reading
from dymn.errors import ConfigError
from dymn.inference.files import tag_files
from dymn.inference.selection import TagSettings
from dymn.inference.tagger import Tagger
from dymn.inference.windows import AudioLike, raising
from dymn.runtime.opening import open_backend
from dymn.weights.default import open_default
from dymn.weights.format import Stored

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

TASK = "audio-classification"
OWN = -1  # the classifier's own `top_k`


class Answer(TypedDict):
    """A label and its probability."""

    score: float
    label: str


def pipeline(
    task: str = TASK,
    model: str | Path | MobileNet | None = None,
    *,
    top_k: int | None = 5,
    device: str | int | None = None,
) -> AudioClassifier:
    """Return a classifier for recordings, with the interface of `pipeline` in Hugging Face transformers.

    Args:
        task: "audio-classification", the only task.
        model: the name of a published model, a file or folder with one, or a network; by default, the model of `dymn
            tag`.
        top_k: maximum number of labels to return; None returns all.
        device: such as "cpu" or "cuda:0"; 0 is the first CUDA device, -1 the CPU; by default, the first CUDA device,
            otherwise the CPU.

    Raises:
        ConfigError: if there is no such task or device.
        WeightsError: if the model cannot be found, downloaded or read.
    """
    if task != TASK:
        raise ConfigError(f"task is {task!r}; allowed: {TASK}.")
    where = device if not isinstance(device, int) else "cpu" if device < 0 else f"cuda:{device}"
    source = open_default().stored if model is None else model
    opened = open_backend(source, device=where) if isinstance(source, (str, Path, Stored)) else source
    tagger = Tagger(opened, where)
    return AudioClassifier(tagger, top_k)


class AudioClassifier:
    """Classifies recordings in every form that transformers accepts."""

    def __init__(self, tagger: Tagger, top_k: int | None = 5) -> None:
        self.tagger = tagger
        self.top_k = top_k

    def __call__(self, inputs: Any, top_k: int | None = OWN, batch_size: int | None = None) -> Any:
        """Return the labels of a recording, best first, as [{"score", "label"}].

        For a list of recordings, return a list of these.

        Args:
            inputs: a path; the bytes of a file; an open binary file; an array [N] at the model's sample rate; {"raw" or
                "array": an array, "sampling_rate": its rate in Hz}; an `AudioDecoder` of torchcodec; a list of these;
                or an iterator over these, for which the answers are an iterator, too.
            top_k: the largest number of labels, instead of the classifier's own; None is all of them.
            batch_size: number of windows that go through the network at once.

        Raises:
            AudioError: if a recording cannot be read.
            ConfigError: if it is of another kind.
        """
        settings = TagSettings(top_k=(self.top_k if top_k == OWN else top_k) or 0)
        if isinstance(inputs, (list, tuple)):
            return list(self._answers(inputs, settings, batch_size))
        if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):  # an open file iterates over lines
            return self._answers(inputs, settings, batch_size)
        return next(self._answers([inputs], settings, batch_size))

    def _answers(self, inputs: Iterable[Any], settings: TagSettings, batch_size: int | None) -> Iterator[list[Answer]]:
        sources = map(self._source, inputs)
        backend = self.tagger.backend
        found = tag_files(backend, sources, settings, sample_rate=backend.sample_rate, batch_size=batch_size)
        for recording in raising(found):
            yield [{"score": tag.score, "label": tag.label} for tag in recording.tags]

    def _source(self, given: Any) -> AudioLike:
        """Return a recording as the tagger takes it; arrays with a rate become arrays at that of the model."""
        if isinstance(given, (str, Path)):
            if str(given).startswith(("http://", "https://")):
                raise ConfigError(f"{given} is a URL. Download the recording and give its path or its bytes.")
            return given
        if isinstance(given, (bytes, bytearray)):
            return io.BytesIO(given)
        if reading.is_array(given) or hasattr(given, "read"):
            return cast(AudioLike, given)
        if hasattr(given, "get_all_samples"):  # torchcodec.decoders.AudioDecoder
            samples = given.get_all_samples()
            return reading.from_array(samples.data, samples.sample_rate, self.tagger.sample_rate)
        if isinstance(given, Mapping):
            samples = given.get("raw", given.get("array"))
            if samples is None or given.get("sampling_rate") is None:
                raise ConfigError(
                    f"A dictionary has the keys {', '.join(map(str, given))}; it must have raw or array, and "
                    "sampling_rate."
                )
            array = samples if reading.is_array(samples) else np.asarray(samples)
            return reading.from_array(array, given["sampling_rate"], self.tagger.sample_rate)
        kinds = "a path, bytes, an open file, an array, a dictionary with one or an AudioDecoder"
        raise ConfigError(f"A recording is of type {type(given).__name__}; it must be {kinds}.")
