"""From recordings to tags: audio → windows → log-mel → network → probabilities → labels with a start and an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dymn.config import ModelCard, from_dict
from dymn.errors import ConfigError, DymnError
from dymn.inference.segments import Piece, Source, computed, pieces
from dymn.inference.selection import Selection, Tag, TagSettings, Timeline, WindowTags
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores
from dymn.system.prefetch import Team

if TYPE_CHECKING:
    import torch

    from dymn.inference.embedding import Embedder, Embedding
    from dymn.inference.events import Event
    from dymn.inference.frames import Frames
    from dymn.inference.stream import Stream
    from dymn.models.mobilenet import MobileNet
    from dymn.runtime.torch_backend import TorchBackend

__all__ = ["Recording", "Source", "Tag", "TagSettings", "Tagger"]


@dataclass(frozen=True)
class Recording:
    """What the network says of one recording, or the error that kept it from saying anything.

    Attributes:
        name: the path as given; "-" for standard input, "" for what has no name.
        seconds: how long the recording is.
        tags: the labels of the whole recording, best first.
        timeline: the labels of each window.
        scores: the probabilities of all labels for the whole recording [C]; empty after an error.
        error: why there are no tags, or None.
    """

    name: str
    seconds: float = 0.0
    tags: Sequence[Tag] = ()
    timeline: Sequence[WindowTags] = ()
    scores: Scores = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    error: DymnError | None = None


class _Work:
    """What is known of a recording while its windows come out of the network."""

    def __init__(self, selection: Selection) -> None:
        self.timeline = Timeline(selection)
        self.combined = np.zeros(len(selection.labels))
        self.weight = 0.0

    def add(self, start: float, end: float, scores: Scores, combine: str) -> None:
        """Take in the probabilities [C] of a window."""
        self.timeline.append(start, end, scores)
        if combine == "max":
            np.maximum(self.combined, scores, out=self.combined)
        else:
            self.combined += scores * (end - start)
            self.weight += end - start

    def scores(self) -> Scores:
        """Return the probabilities of the whole recording [C]."""
        return (self.combined / (self.weight or 1.0)).astype(np.float32)


class Tagger:
    """A network with its front end and labels, ready to tag recordings.

    Example:
        >>> tagger = Tagger.from_pretrained("dymn10_as")  # doctest: +SKIP
        >>> tagger.tag("street.wav", top_k=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: MobileNet | Backend,
        device: str | torch.device | None = None,
        threads: int | None = None,
        *,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        """Make a network ready to tag.

        Args:
            model: a network whose card names front end and labels, or a backend, which is taken as it is.
            device: where PyTorch computes a network, such as "cpu" or "cuda:0"; None is the first CUDA device, or else the CPU.
            threads: how many CPU threads PyTorch uses in this process from now on; None leaves it as it is.
            precision: "float32", or for GPUs "bfloat16" or "float16", which change the numbers: autocast computes the network.
            compile: whether `torch.compile` makes kernels for the probabilities, with CUDA graphs on a GPU; it takes its time at first.

        Raises:
            ConfigError: if there is no such device or precision, `threads` is below 1, or a backend is told how to compute.
        """
        if isinstance(model, Backend) and (precision != "float32" or compile):
            raise ConfigError("A backend computes as it was made. Give precision and compile to the backend, not to its tagger.")
        self.backend = model if isinstance(model, Backend) else _torch_backend(model, device, threads, precision, compile)
        self.labels = self.backend.labels
        self.sample_rate = self.backend.sample_rate

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, device: str | torch.device | None = None, threads: int | None = None, **options: Any
    ) -> Tagger:
        """Load a published model by its name (see `dymn models`), or a model file or folder, and return its tagger.

        `options` are `precision` and `compile`.

        Raises:
            WeightsError: if the model cannot be found, downloaded or read.
            ConfigError: if there is no such device or precision, or `threads` is below 1.
        """
        from dymn.system.devices import resolve_device
        from dymn.weights import load_model

        resolve_device(device)  # before anything is downloaded
        return cls(load_model(name_or_path), device, threads, **options)

    @classmethod
    def from_onnx(cls, path: str | Path, threads: int | None = None) -> Tagger:
        """Open a file that `dymn export` wrote, to be computed by ONNX Runtime, and return its tagger. PyTorch is not imported.

        Args:
            path: an .onnx file with waveforms as its input, or the name of a model that was exported to the cache.
            threads: how many CPU threads to use; one for each CPU that may be used if None.

        Raises:
            WeightsError: if there is no such file, or it was not written by `dymn export`.
            MissingExtraError: if onnxruntime is not installed.
            ConfigError: if `threads` is below 1.
        """
        from dymn.runtime.onnx_backend import OnnxBackend, find_file

        return cls(OnnxBackend(find_file(path), threads))

    @property
    def card(self) -> ModelCard:
        """What travels with the network: labels, front end, name, licence, digest."""
        return self.backend.card

    @property
    def model(self) -> MobileNet:
        """The network, where PyTorch computes it."""
        return self._torch.model

    @property
    def device(self) -> torch.device:
        """Where PyTorch computes the network."""
        return self._torch.device

    @property
    def _torch(self) -> TorchBackend:
        from dymn.runtime.torch_backend import TorchBackend

        if not isinstance(self.backend, TorchBackend):
            raise ConfigError(f"{type(self.backend).__name__} holds no PyTorch network. Load it with Tagger.from_pretrained.")
        return self.backend

    def probabilities(self, waveforms: npt.NDArray[np.float32] | torch.Tensor) -> Scores:
        """Return the probabilities [B, C] of waveforms [B, N] at `sample_rate`.

        Raises:
            AudioError: if the waveforms are not [B, N], or a sample is not finite.
            ResourceError: if the batch does not fit the device's memory.
        """
        return self.backend.run_waveforms(waveforms).probabilities

    def tag(self, source: Source, sample_rate: int | None = None, top_k: int = 10, **settings: Any) -> list[Tag]:
        """Return the labels of a whole recording, best first, each with 0 and the recording's length as start and end.

        Args:
            source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
            sample_rate: of an array, in Hz; files bring their own.
            top_k: how many labels to give at most; 0 is all of them.
            settings: further settings of `TagSettings` by name, such as `threshold=0.3`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        return list(self._one(source, sample_rate, {"top_k": top_k, **settings}).tags)

    def timeline(self, source: Source, sample_rate: int | None = None, top_k: int = 10, **settings: Any) -> list[Tag]:
        """Return the labels of each window of a recording, in the order of time; arguments and errors are those of `tag`."""
        return [tag for window in self._one(source, sample_rate, {"top_k": top_k, **settings}).timeline for tag in window.tags]

    def embed(self, source: Source, sample_rate: int | None = None, layers: str | Sequence[str] = "last", **settings: Any) -> Embedding:
        """Return the embedding of a recording, `vector` [D], and of each of its windows, `windows` [W, D].

        Args:
            source: as in `tag`.
            sample_rate: of an array, in Hz; files bring their own.
            layers: what the embedding is made of, see `dymn.inference.layers`, such as "last" or "mels,blocks".
            settings: those of `dymn.inference.embedding.EmbedSettings` by name, such as `window=1.0, hop=0.5`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, there is no such layer (ONNX files give "last" alone), or
                `sample_rate` is missing.
        """
        return self.embedder(layers).embed(source, sample_rate, **settings)

    def embedder(self, layers: str | Sequence[str] = "last") -> Embedder:
        """Return what embeds recordings with this network, many at a time too; see `embed`.

        Raises:
            ConfigError: if there is no such layer; ONNX files give "last" alone.
        """
        from dymn.inference.embedding import Embedder

        return Embedder(self.backend, layers)

    def frames(self, source: Source, sample_rate: int | None = None, **settings: Any) -> Frames:
        """Return the probabilities of labels at points in time [T, C], a third of a second apart.

        Args:
            source: as in `tag`.
            sample_rate: of an array, in Hz; files bring their own.
            settings: those of `dymn.events.FrameSettings` by name, such as `labels=["Dog"]` or `method="windows"`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        from dymn.inference.frames import FrameSettings, frames

        return frames(self, source, sample_rate, from_dict(FrameSettings, settings))

    def events(self, source: Source, sample_rate: int | None = None, **settings: Any) -> list[Event]:
        """Return the sounds of a recording with beginning and end, in the order of time.

        Args:
            source: as in `tag`.
            sample_rate: of an array, in Hz; files bring their own.
            settings: those of `dymn.events.EventSettings` by name, such as `labels=["Dog"]` or `threshold=0.5`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        from dymn.inference.events import EventSettings, decide
        from dymn.inference.frames import frames

        checked = from_dict(EventSettings, settings)
        return decide(frames(self, source, sample_rate, checked), checked)

    def stream(self, sample_rate: int, top_k: int = 10, **settings: Any) -> Stream:
        """Return a stream, which takes chunks of samples of any size and gives the tags of each window when it is complete.

        Args:
            sample_rate: of what will be fed, in Hz.
            top_k: how many labels to give at most; 0 is all of them.
            settings: further settings of `TagSettings` by name, such as `window=2.0, hop=0.5`.

        Raises:
            ConfigError: if a setting is unknown or not allowed.
        """
        from dymn.inference.stream import Stream

        return Stream(self, sample_rate, from_dict(TagSettings, {"top_k": top_k, **settings}))

    def _one(self, source: Source, sample_rate: int | None, settings: dict[str, Any]) -> Recording:
        checked = from_dict(TagSettings, settings)
        recording = next(self.tag_files([source], checked, sample_rate=sample_rate))
        if recording.error is not None:
            raise recording.error
        return recording

    def tag_files(
        self,
        sources: Iterable[Source],
        settings: TagSettings | None = None,
        *,
        sample_rate: int | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Recording]:
        """Tag recordings one after the other, their windows in common batches, in memory that does not grow with their length.

        Args:
            sources: as in `tag`.
            settings: what to tag and how.
            sample_rate: of the arrays among the sources.
            batch_size: how many windows go through the network at once; 4 on a CPU and 32 elsewhere if None.
            workers: how many threads decode recordings ahead of the network; 0 is none: everything is done in turn.
            progress: called with a recording's name and how many seconds of it are done.

        Yields:
            one `Recording` a source, in their order. One that cannot be read has an `error`, and the others go on.

        Raises:
            ConfigError: if a setting does not fit the model.
            ResourceError: if a batch does not fit the device's memory.
        """
        settings = settings or TagSettings()
        batch_size = self.backend.batch_size if batch_size is None else batch_size
        found = pieces(
            sources,
            self.sample_rate,
            sample_rate,
            settings.window,
            settings.hop,
            settings.fill,
            prepare=self.backend.features,
            team=Team(workers, batch_size, self.backend.enter_worker, self.backend.entered_workers),
        )
        return self.collect(computed(found, lambda features: self.backend.run(features).probabilities, batch_size), settings, progress)

    def collect(
        self,
        scored: Iterable[tuple[Piece, Scores | None]],
        settings: TagSettings,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Recording]:
        """Return recordings of their windows with probabilities [C], in their order, as `dymn.inference.segments.computed` yields them.

        Raises:
            ConfigError: if a setting does not fit the model.
        """
        return self._recordings(scored, settings, Selection(self.labels, settings), progress)

    def _recordings(
        self,
        scored: Iterable[tuple[Piece, Scores | None]],
        settings: TagSettings,
        selection: Selection,
        progress: Callable[[str, float], None] | None,
    ) -> Iterator[Recording]:
        work = _Work(selection)
        for piece, scores in scored:
            name = piece.recording.name
            if scores is not None:
                work.add(piece.start, piece.end, scores, settings.combine)
                if progress is not None:
                    progress(name, piece.end)
                continue
            done, work = work, _Work(selection)
            if piece.error is not None:
                yield Recording(name, error=piece.error)
                continue
            combined = done.scores()
            seconds = piece.recording.n_samples / self.sample_rate
            best = selection.best(combined)
            yield Recording(name, seconds, selection.tags(best, combined[best], 0.0, seconds), done.timeline, combined)


def _torch_backend(model: MobileNet, device: str | torch.device | None, threads: int | None, precision: str, compile: bool) -> Backend:
    from dymn.runtime.torch_backend import TorchBackend

    return TorchBackend(model, device, threads, precision=precision, compile=compile)
