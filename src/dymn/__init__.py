"""dymn: dynamic convolutional networks as efficient pre-trained audio models.

Names are imported when they are first used, so `import dymn` is fast and needs no optional dependency.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.classifier import pipeline as pipeline
    from dymn.config import FrontEndConfig as FrontEndConfig
    from dymn.config import ModelCard as ModelCard
    from dymn.config import ModelConfig as ModelConfig
    from dymn.inference.embedding import Embedder as Embedder
    from dymn.inference.selection import Tag as Tag
    from dymn.inference.tagger import Tagger as Tagger
    from dymn.models.features import FeatureExtractor as FeatureExtractor
    from dymn.models.frontend import LogMel as LogMel
    from dymn.models.mobilenet import MobileNet as MobileNet
    from dymn.models.mobilenet import Output as Output
    from dymn.models.mobilenet import create_model as create_model
    from dymn.weights import REGISTRY as REGISTRY
    from dymn.weights import audioset_labels as audioset_labels
    from dymn.weights import convert as convert
    from dymn.weights import list_models as list_models
    from dymn.weights import load_model as load_model

__version__ = "0.1.0"

_HOMES = {
    "Embedder": "dymn.inference.embedding",
    "FeatureExtractor": "dymn.models.features",
    "FrontEndConfig": "dymn.config",
    "LogMel": "dymn.models.frontend",
    "MobileNet": "dymn.models.mobilenet",
    "ModelCard": "dymn.config",
    "ModelConfig": "dymn.config",
    "Output": "dymn.models.mobilenet",
    "REGISTRY": "dymn.weights",
    "Tag": "dymn.inference.selection",
    "Tagger": "dymn.inference.tagger",
    "audioset_labels": "dymn.weights",
    "convert": "dymn.weights",
    "create_model": "dymn.models.mobilenet",
    "list_models": "dymn.weights",
    "load_model": "dymn.weights",
    "pipeline": "dymn.classifier",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(_module(_HOMES[name], name), name)
    if not name.startswith("_"):
        try:
            return _module(f"dymn.{name}", name)
        except ModuleNotFoundError as error:
            if error.name != f"dymn.{name}":
                raise
    raise AttributeError(f"module 'dymn' has no attribute {name!r}")


def _module(home: str, name: str) -> Any:
    """Import the module of a name of the library, or raise a `MissingExtraError` if it needs PyTorch."""
    try:
        return importlib.import_module(home)
    except ImportError as error:
        from dymn.errors import without_torch

        raise without_torch(error, f"dymn.{name}") or error from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
