"""dymn: dynamic convolutional networks as efficient pre-trained audio models.

Names are imported when they are first used, so that `import dymn` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.config import FrontEndConfig as FrontEndConfig
    from dymn.config import ModelConfig as ModelConfig
    from dymn.frontend import LogMel as LogMel
    from dymn.model import MobileNet as MobileNet
    from dymn.model import Output as Output
    from dymn.model import create_model as create_model
    from dymn.tagger import Tag as Tag
    from dymn.tagger import Tagger as Tagger

__version__ = "0.1.0"

_HOMES = {
    "FrontEndConfig": "dymn.config",
    "LogMel": "dymn.frontend",
    "MobileNet": "dymn.model",
    "ModelConfig": "dymn.config",
    "Output": "dymn.model",
    "Tag": "dymn.tagger",
    "Tagger": "dymn.tagger",
    "create_model": "dymn.model",
}
_MODULES = ("audio", "config", "errors", "frontend", "layers", "model", "profiling", "tagger", "weights")

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"dymn.{name}")
    raise AttributeError(f"module 'dymn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
