"""Embeddings: vectors that summarise recordings, as input for small models.

`dymn.runtime.layers` defines the names of the layers that an embedding can contain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dymn.audio.settings import ReadSettings
from dymn.audio.windows import check_windows
from dymn.config import from_dict
from dymn.inference.windows import AudioLike, Piece, Result, one_result, raising, run_windows
from dymn.runtime.backend import Backend
from dymn.runtime.layers import LAST, is_last
from dymn.system.arrays import Floats

if TYPE_CHECKING:
    from torch import Tensor

    from dymn.models.mobilenet import MobileNet
    from dymn.runtime.layer_averages import LayerAverages


@dataclass(frozen=True)
class EmbedSettings(ReadSettings):
    """Windows of embeddings; the defaults are those of `dymn embed`. `ReadSettings` defines how recordings are read.

    Attributes:
        window: length of a window in seconds; the networks were trained on 10 seconds.
        hop: distance between the starts of two windows in seconds; by default, `window`.
        fill: how a recording, or a remainder at its end, that is shorter than the window is filled: "bare" leaves it
            unchanged, "repeat" repeats it, "pad" adds zeros.
    """

    window: float = 10.0
    hop: float | None = None
    fill: str = "bare"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_windows(self.window, self.hop, self.fill)


@dataclass(frozen=True)
class Embedding(Result):
    """The embedding of one recording, or the error that prevented it.

    Attributes:
        name: the path as given; "-" for standard input, "" for sources without a name.
        seconds: length of the recording.
        vector: embedding of the whole recording [D], the mean of its windows over time; empty after an error.
        windows: embedding of each window [W, D].
        spans: start and end of each window in seconds [W, 2].
        error: why there is no embedding, or None.
    """

    vector: Floats = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    windows: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    spans: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)), repr=False)


class Embedder:
    """Computes embeddings of recordings and waveforms with any backend.

    Every backend returns the last layer; other layers need PyTorch.

    Attributes:
        backend: the implementation that runs the network.
        layers: the names of the layers, in the order of their values.
        names: the name of each value, such as "block3_0" or "last_95".
        size: number of values of an embedding, D.

    Example:
        >>> embedder = Embedder(dymn.load_model("dymn04_open"), "mels,blocks")  # doctest: +SKIP
        >>> embedder.embed("street.wav").vector.shape  # doctest: +SKIP
    """

    def __init__(
        self, model: MobileNet | Backend, layers: str | Sequence[str] = LAST, precision: str = "float32"
    ) -> None:
        """Choose the layers.

        Args:
            model: a network, which is copied and stays as it is, or a backend. Later changes of the network's weights
                do not reach the copy; make a new embedder then.
            layers: names of layers as in `dymn.runtime.layers`, in a list or separated by commas.
            precision: the number format in which PyTorch computes a network, one of
                `dymn.system.devices.COMPUTE_PRECISIONS`.

        Raises:
            ConfigError: if there is no such layer, one is named twice, or the backend gives the last layer alone.
        """
        self.backend = model if isinstance(model, Backend) else _copied(model, precision)
        self._averages: LayerAverages | None = None
        if is_last(layers):
            self.layers: tuple[str, ...] = (LAST,)
            self.size = self.backend.embedding_size
            self.names = tuple(f"{LAST}_{i}" for i in range(self.size))
            return
        network = self.backend.network()  # first: its error names what to install if PyTorch is missing
        from dymn.runtime.layer_averages import LayerAverages

        self._averages = LayerAverages(network, layers, self.backend.precision)
        self.layers, self.names, self.size = self._averages.layers, self._averages.names, self._averages.size

    @property
    def sample_rate(self) -> int:
        """The sample rate of waveforms, in Hz."""
        return self.backend.sample_rate

    @property
    def batch_size(self) -> int:
        """The default number of windows to compute at once."""
        return self.backend.batch_size

    def run(self, features: Floats) -> Floats:
        """Return embeddings [B, D] of a batch of the backend's `features`.

        Raises:
            ResourceError: if the batch does not fit the device's memory.
        """
        return self.backend.run(features).embedding if self._averages is None else self._averages.run(features)

    def vectors(self, waveforms: npt.NDArray[np.generic] | Tensor) -> Floats:
        """Return embeddings [B, D] of waveforms [B, N] at `sample_rate`, in float32.

        Raises:
            AudioError: if the waveforms are not [B, N], or a sample is not finite.
            ConfigError: if the backend expects clips of another length.
            ResourceError: if the batch does not fit the device's memory.
        """
        return self.run(self.backend.waveform_features(waveforms))

    def embed(self, source: AudioLike, sample_rate: int | None = None, **settings: Any) -> Embedding:
        """Return the embedding of a recording and of each of its windows.

        Args:
            source: a path, "-" for standard input, an open binary file, or an array or tensor [N] or [channels, N].
            sample_rate: sample rate of an array, in Hz; not needed for files.
            settings: settings of `EmbedSettings` by name, such as `window=1.0`.

        Raises:
            AudioError: if the source cannot be read.
            ConfigError: if a setting is unknown or not allowed, or `sample_rate` is missing.
        """
        checked = from_dict(EmbedSettings, settings)
        one_result(checked)
        return next(raising(self.embed_files([source], checked, sample_rate=sample_rate)))

    def embed_files(
        self,
        sources: Iterable[AudioLike],
        settings: EmbedSettings | None = None,
        *,
        sample_rate: int | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Embedding]:
        """Embed recordings in order, with windows of equal length in a batch.

        Only the embeddings are kept in memory.

        Args:
            sources: as in `embed`.
            settings: windows, and how recordings are read.
            sample_rate: sample rate of arrays, in Hz.
            batch_size: number of windows per batch; the default is 4 on a CPU and 32 on other devices.
            workers: number of threads that decode recordings while the network runs; 0 decodes in the calling thread.
            progress: called with the name of a recording and the number of its seconds that have been processed.

        Yields:
            one `Embedding` per source, in order, or with `channel="each"` one per channel. Recordings that cannot be
            read have an `error`; the others are still embedded.

        Raises:
            ConfigError: if there are fewer than 0 workers.
            ResourceError: if a batch does not fit the device's memory.
        """
        settings = settings or EmbedSettings()
        embedded = run_windows(
            self.backend, sources, settings, self.run, sample_rate=sample_rate, batch_size=batch_size, workers=workers
        )
        return self.collect(embedded, progress)

    def collect(
        self, embedded: Iterable[tuple[Piece, Floats | None]], progress: Callable[[str, float], None] | None = None
    ) -> Iterator[Embedding]:
        """Yield recordings, in order, from windows and vectors [D] that `dymn.inference.windows.computed` yields."""
        rows: list[Floats] = []
        spans: list[tuple[float, float]] = []
        for piece, row in embedded:
            name = piece.recording.name
            if row is not None:
                rows.append(row)
                spans.append((piece.start, piece.end))
                if progress is not None:
                    progress(name, piece.end)
                continue
            if piece.error is not None:
                yield Embedding(name, error=piece.error, channel=piece.recording.channel)
            else:
                windows, places = np.stack(rows), np.array(spans)
                vector = np.average(windows, axis=0, weights=places[:, 1] - places[:, 0]).astype(np.float32)
                seconds = piece.recording.seconds(self.sample_rate)
                yield Embedding(name, seconds, vector, windows, places, **piece.recording.info())
            rows, spans = [], []


def _copied(model: MobileNet, precision: str) -> Backend:
    """Return a backend for a copy of a network, on the device where it is."""
    from dymn.runtime.torch_backend import TorchBackend

    return TorchBackend(copy.deepcopy(model), next(model.parameters()).device, precision=precision)
