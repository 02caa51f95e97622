"""Embeddings as a step of a scikit-learn pipeline."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dymn.audio.samples import to_float32
from dymn.errors import ConfigError, MissingExtraError
from dymn.inference.embedding import Embedder, EmbedSettings
from dymn.inference.windows import raising, source_name
from dymn.runtime.opening import open_backend

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("`dymn.sklearn`", "train") from error

if TYPE_CHECKING:
    from typing_extensions import Self

    from dymn.models.mobilenet import MobileNet

__all__ = ["EmbeddingTransformer"]

_INTEGERS = (np.uint8, np.int8, np.int16, np.int32)
"""The types of integer samples, whose full scale is known."""


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns recordings into embeddings.

    The input is a list of paths or waveforms, or an array [n, N] of waveforms; the output is an array [n, D]. Samples
    are floats with full scale 1, or integers of 8, 16 or 32 bits.

    `fit` only loads the model. A pickle contains the model's name or path, not its weights, unless `model` is a
    network.

    Args:
        model: the name of a published model, a file or folder with one, or a network.
        layers: the layers of the embeddings, see `dymn.runtime.layers`.
        sample_rate: sample rate of waveforms, in Hz; by default, that of the model. Not needed for files.
        window: length of a window in seconds; the embedding of a longer recording is the mean over its windows.
        fill: how a recording that is shorter than the window is filled: "bare" (unchanged), "repeat" or "pad" (with
            zeros).
        batch_size: number of windows per batch; the default is 4 on a CPU and 32 on other devices.
        device: such as "cpu" or "cuda:0"; by default, the first CUDA device, otherwise the CPU.

    Example:
        >>> from sklearn.linear_model import LogisticRegression  # doctest: +SKIP
        >>> from sklearn.pipeline import make_pipeline  # doctest: +SKIP
        >>> make_pipeline(EmbeddingTransformer("mn04_as"), LogisticRegression()).fit(paths, classes)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | MobileNet = "dymn04_open",
        layers: str | Sequence[str] = "last",
        sample_rate: int | None = None,
        window: float = 10.0,
        fill: str = "bare",
        batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.sample_rate = sample_rate
        self.window = window
        self.fill = fill
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model, and check X as `transform` does.

        Raises:
            ConfigError: if a setting is not allowed.
            WeightsError: if the model cannot be found or read.
            ValueError: if X is neither a list of recordings nor an array of finite numbers.
        """
        EmbedSettings(window=self.window, fill=self.fill)
        self._recordings(X, reset=True)
        self._embedder_ = self._load()
        self.feature_names_ = self._embedder_.names
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Return embeddings [n, D] of n recordings.

        Raises:
            AudioError: if a recording cannot be read.
            ValueError: if X is neither a list of recordings nor an array of finite numbers.
        """
        check_is_fitted(self, "feature_names_")
        recordings = self._recordings(X, reset=False)
        embedder = self.__dict__.get("_embedder_")
        if embedder is None:  # after a pickle
            self._embedder_ = embedder = self._load()
        settings = EmbedSettings(window=self.window, fill=self.fill)
        rate = self.sample_rate or embedder.sample_rate
        found = embedder.embed_files(recordings, settings, sample_rate=rate, batch_size=self.batch_size)
        vectors = [one.vector for one in raising(found)]
        return np.stack(vectors) if vectors else np.empty((0, embedder.size), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Return the names of the D values, such as "last_0"."""
        check_is_fitted(self, "feature_names_")
        return np.array(self.feature_names_, dtype=object)

    def _recordings(self, X: Any, reset: bool) -> list[Any]:
        """Return the recordings in X, each a path or a waveform."""
        if isinstance(X, (str, Path)):
            raise ConfigError(f"X is the single path {source_name(X)!r}; it must be a list of paths.")
        if hasattr(X, "to_numpy") and np.ndim(X) == 1:  # a Series of pandas or polars
            X = list(X)
        listed = isinstance(X, (list, tuple)) or getattr(X, "dtype", None) == np.dtype(object) or _is_text(X)
        items = list(X) if listed else []
        paths = [item for item in items if isinstance(item, (str, Path))]
        if paths and len(paths) == len(items):
            return paths
        lengths = {len(item) for item in items if not isinstance(item, (str, Path)) and np.ndim(item) == 1}
        if len(lengths) > 1 or (paths and lengths):  # nothing that scikit-learn calls an array
            return [item if isinstance(item, (str, Path)) else np.asarray(item) for item in items]
        if lengths:  # each with the scale of its own type
            X = [to_float32(row) if row.dtype.type in _INTEGERS else row for row in map(np.asarray, items)]
        samples = validate_data(self, X, dtype=[np.float32, *_INTEGERS], reset=reset)  # of others, float32 is made
        return list(to_float32(samples))

    def _load(self) -> Embedder:
        if isinstance(self.model, (str, Path)):
            return Embedder(open_backend(self.model, device=self.device), self.layers)
        from dymn.runtime.torch_backend import TorchBackend

        # scikit-learn leaves parameters as they are
        return Embedder(TorchBackend(copy.deepcopy(self.model), self.device), self.layers)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_embedder_"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _is_text(X: Any) -> bool:
    return getattr(getattr(X, "dtype", None), "kind", "") == "U"
