"""Tags and an embedding of a recording, which is decoded once, and whose windows are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dymn.audio.windows import Filled
from dymn.inference.embedding import Embedder
from dymn.inference.files import Recording, collect_tags
from dymn.inference.selection import TagSettings
from dymn.inference.windows import AudioLike, Piece, run_windows
from dymn.runtime.backend import Backend, BackendOutput
from dymn.runtime.scores import Scores
from dymn.system.arrays import Floats


class LayeredBackend(Backend):
    """A backend whose embeddings are those of some layers, which PyTorch's network computes in a second pass."""

    def __init__(self, backend: Backend, layers: tuple[str, ...]) -> None:
        """Choose the layers.

        Raises:
            ConfigError: if there is no such layer, or the backend gives the last layer alone.
        """
        self._backend, self._embedder = backend, Embedder(backend, layers)
        self.card, self.is_cpu, self.precision = backend.card, backend.is_cpu, backend.precision
        self.embedding_size = self._embedder.size

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield the input of `run` for each window."""
        return self._backend.features(windows, hop)

    def run(self, features: Floats) -> BackendOutput:
        """Return probabilities [B, C] and the embeddings [B, D] of the layers.

        Raises:
            ResourceError: if the batch does not fit the device's memory.
        """
        return self._backend.run(features)._replace(embedding=self._embedder.run(features))


def tag_and_embed(
    backend: Backend, source: AudioLike, settings: TagSettings, progress: Callable[[str, float], None] | None = None
) -> tuple[Recording, Floats]:
    """Return a recording's tags, and its embedding [D]: the mean of the windows over time, as `dymn embed` computes it.

    A window that is shorter than the others is filled for its tags, and embedded as it is.

    Raises:
        AudioError: if the recording cannot be read.
    """
    shorter: list[Filled] = []
    vectors: list[Floats] = []
    seconds: list[float] = []

    def noted(windows: Iterable[Filled]) -> Iterator[Filled]:
        for window in windows:
            if window.n_samples < len(window.samples):
                shorter.append(window)
            yield window

    def scored() -> Iterator[tuple[Piece, Scores | None]]:
        rows = run_windows(
            backend,
            [source],
            settings,
            lambda features: zip(*backend.run(features), strict=True),
            prepare=lambda windows, hop: backend.features(noted(windows), hop),
        )
        for piece, row in rows:
            if row is not None:
                vectors.append(row[1])
                seconds.append(piece.end - piece.start)
            yield piece, None if row is None else row[0]

    recording = next(collect_tags(scored(), backend, settings, progress))
    if recording.error is not None:
        raise recording.error
    for window in shorter:  # the last one, if any
        vectors[-1] = backend.run_waveforms(window.samples[None, : window.n_samples]).embedding[0]
    return recording, np.average(np.stack(vectors), axis=0, weights=seconds).astype(np.float32)
