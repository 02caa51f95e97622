"""`Tagger`: a network with its front end and labels, and one method for each task."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dymn.config import ModelCard, from_dict
from dymn.errors import ConfigError
from dymn.inference.embedding import Embedder, Embedding
from dymn.inference.events import Event, EventSettings, event_files
from dymn.inference.files import Recording, tag_files
from dymn.inference.frames import Frames, FrameSettings, frames
from dymn.inference.selection import Tag, TagSettings
from dymn.inference.stream import Stream
from dymn.inference.windows import AudioLike, AudioSource, one_result, raising
from dymn.runtime.backend import Backend
from dymn.runtime.scores import Scores

if TYPE_CHECKING:
    import torch

    from dymn.models.mobilenet import MobileNet

logger = logging.getLogger(__name__)


class Tagger:
    """A network with its front end and labels, ready to tag recordings.

    Attributes:
        backend: the implementation that runs the network.

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
            model: a network whose card names front end and labels, or a backend. A network is copied and stays as it
                is: weights that change later, with `load_state_dict` or in training, do not reach the copy. Make a new
                tagger then.
            device: where PyTorch computes a network, such as "cpu" or "cuda:0"; None is the first CUDA device, or else
                the CPU.
            threads: number of CPU threads that PyTorch uses in this process from now on; None does not change it.
            precision: "float32", or for GPUs "bfloat16" or "float16", which change the numbers: autocast computes the
                network.
            compile: whether `torch.compile` makes kernels for the probabilities, with CUDA graphs on a GPU; the first
                batches are slow.

        Raises:
            ConfigError: if there is no such device or precision, `threads` is below 1, or a backend comes with
                precision or compile.
        """
        if isinstance(model, Backend):
            if precision != "float32" or compile:
                raise ConfigError(
                    "The precision of a backend is fixed when it is opened. Pass precision and compile to the "
                    "backend instead of the tagger."
                )
            self.backend = model
        else:
            from dymn.runtime.torch_backend import TorchBackend

            own = copy.deepcopy(model)
            self.backend = TorchBackend(own, device, threads, precision=precision, compile=compile)
        if (dataset := str(self.backend.card.provenance.get("dataset", ""))).startswith("ImageNet"):
            logger.warning(
                "%s was trained on images (%s), so its scores for sounds are meaningless. Fine-tune it on audio first.",
                self.backend.card.name, dataset,
            )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Tagger:
        """Load a model by its name (see `dymn models`), or from a file or folder, and return a tagger for it.

        Args:
            name_or_path: as in `dymn.weights.open_checkpoint`, or an .onnx file.
            device: the device on which PyTorch runs the network, such as "cpu" or "cuda:0". By default, the first CUDA
                device, otherwise the CPU. On a CPU, compiled code runs the networks that it supports, and PyTorch is
                not imported.
            threads: number of CPU threads; by default, one for each CPU that the process may use.
            options: `precision`, `compile` and `backend`, see `dymn.runtime.opening.open_backend`.

        Raises:
            WeightsError: if the model cannot be found, downloaded or read.
            ConfigError: if there is no such device, precision or backend, or `threads` is below 1.
            MissingExtraError: if PyTorch is needed and not installed.
        """
        from dymn.runtime.opening import open_backend

        return cls(open_backend(name_or_path, device=device, threads=threads, **options))

    @classmethod
    def from_onnx(cls, path: str | Path, threads: int | None = None) -> Tagger:
        """Open a file of `dymn export` in ONNX Runtime and return a tagger for it; PyTorch is not imported.

        Args:
            path: an .onnx file with waveforms as its input, or the name of a model that was exported to the cache.
            threads: number of CPU threads; by default, one for each CPU that the process may use.

        Raises:
            WeightsError: if there is no such file, or it was not written by `dymn export`.
            MissingExtraError: if onnxruntime is not installed.
            ConfigError: if `threads` is below 1.
        """
        from dymn.runtime.onnx_backend import OnnxBackend, find_file

        return cls(OnnxBackend(find_file(path), threads))

    @property
    def card(self) -> ModelCard:
        """The metadata of the network: labels, front end, name, licence, digest."""
        return self.backend.card

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.backend.labels

    @property
    def sample_rate(self) -> int:
        """The sample rate of waveforms, in Hz."""
        return self.backend.sample_rate

    @property
    def model(self) -> MobileNet:
        """The tagger's own PyTorch network, in evaluation mode.

        Changing its weights does not change the tagger's results if another implementation runs the network.

        Raises:
            ConfigError: if there is none.
        """
        return self.backend.network()

    @property
    def device(self) -> torch.device:
        """The device on which PyTorch runs the network.

        Raises:
            ConfigError: if there is no PyTorch network.
        """
        return next(self.model.parameters()).device

    def probabilities(self, waveforms: npt.NDArray[np.float32] | torch.Tensor) -> Scores:
        """Return the probabilities [B, C] of waveforms [B, N] at `sample_rate`.

        Raises:
            AudioError: if the waveforms are not [B, N], or a sample is not finite.
            ResourceError: if the batch does not fit the device's memory.
        """
        return self.backend.run_waveforms(waveforms).probabilities

    def tag(self, source: AudioLike, sample_rate: int | None = None, top_k: int = 10, **settings: Any) -> list[Tag]:
        """Return the labels of a whole recording, best first; their start is 0 and their end the recording's length.

        Args:
            source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
            sample_rate: sample rate of an array, in Hz; not needed for files.
            top_k: maximum number of labels to return; 0 returns all.
            settings: further settings of `TagSettings` by name, such as `threshold=0.3`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        return list(self._recording(source, sample_rate, top_k, settings).tags)

    def timeline(
        self, source: AudioLike, sample_rate: int | None = None, top_k: int = 10, **settings: Any
    ) -> list[Tag]:
        """Return the labels of each window in chronological order; arguments and errors are those of `tag`."""
        return [tag for window in self._recording(source, sample_rate, top_k, settings).timeline for tag in window.tags]

    def embed(
        self, source: AudioLike, sample_rate: int | None = None, layers: str | Sequence[str] = "last", **settings: Any
    ) -> Embedding:
        """Return the embedding of a recording, `vector` [D], and of each of its windows, `windows` [W, D].

        Args:
            source: as in `tag`.
            sample_rate: sample rate of an array, in Hz; not needed for files.
            layers: the layers of the embedding, such as "last" or "mels,blocks"; see `dymn.runtime.layers`.
            settings: settings of `dymn.inference.embedding.EmbedSettings` by name, such as `window=1.0, hop=0.5`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, there is no such layer (ONNX files have only "last"),
                or `sample_rate` is missing.
        """
        return self.embedder(layers).embed(source, sample_rate, **settings)

    def embedder(self, layers: str | Sequence[str] = "last") -> Embedder:
        """Return an embedder that uses this tagger's backend; see `embed`.

        Raises:
            ConfigError: if there is no such layer (ONNX files have only "last").
        """
        return Embedder(self.backend, layers)

    def frames(self, source: AudioLike, sample_rate: int | None = None, **settings: Any) -> Frames:
        """Return the probabilities [T, C] of labels over time, in steps of at most a third of a second.

        Args:
            source: as in `tag`.
            sample_rate: sample rate of an array, in Hz; not needed for files.
            settings: settings of `dymn.inference.frames.FrameSettings` by name, such as `labels=["Dog"]` or
                `method="windows"`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        return frames(self.backend, source, sample_rate, from_dict(FrameSettings, settings))

    def events(self, source: AudioLike, sample_rate: int | None = None, **settings: Any) -> list[Event]:
        """Return the events of a recording, each with label, start, end and score, in chronological order.

        Args:
            source: as in `tag`.
            sample_rate: sample rate of an array, in Hz; not needed for files.
            settings: settings of `dymn.inference.events.EventSettings` by name, such as `labels=["Dog"]` or
                `threshold=0.5`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        checked = from_dict(EventSettings, settings)
        one_result(checked)
        return list(next(raising(event_files(self.backend, [source], checked, sample_rate=sample_rate))).events)

    def stream(self, sample_rate: int, top_k: int = 10, **settings: Any) -> Stream:
        """Return a stream, which accepts chunks of any size and returns the tags of each window once it is complete.

        Args:
            sample_rate: sample rate of the chunks, in Hz.
            top_k: maximum number of labels to return; 0 returns all.
            settings: further settings of `TagSettings` by name, such as `window=2.0, hop=0.5`.

        Raises:
            ConfigError: if a setting is unknown or not allowed.
        """
        return Stream(self.backend, sample_rate, from_dict(TagSettings, {"top_k": top_k, **settings}))

    def tag_files(
        self,
        sources: Iterable[AudioSource],
        settings: TagSettings | None = None,
        *,
        sample_rate: int | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Recording]:
        """Tag recordings, with windows of several recordings in a batch; see `dymn.inference.files.tag_files`."""
        return tag_files(
            self.backend,
            sources,
            settings,
            sample_rate=sample_rate,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )

    def _recording(self, source: AudioLike, sample_rate: int | None, top_k: int, settings: dict[str, Any]) -> Recording:
        checked = from_dict(TagSettings, {"top_k": top_k, **settings})
        one_result(checked)
        return next(raising(self.tag_files([source], checked, sample_rate=sample_rate)))
