"""Checkpoints as data: the registry, downloads, dymn's own format, and the imports of EfficientAT and EfficientSED.

Only `load_model`, `import_efficientat` and `import_efficientsed` need PyTorch; they return networks and are defined in
`dymn.models`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dymn.errors import without_torch

if TYPE_CHECKING:
    from dymn.models.mobilenet import import_efficientat, import_efficientsed, load_model
    from dymn.weights.checkpoint import open_checkpoint
    from dymn.weights.conversion import convert
    from dymn.weights.format import Stored
    from dymn.weights.labels import audioset_labels
    from dymn.weights.listing import ModelRow, list_models, model_rows
    from dymn.weights.registry import REGISTRY, PublishedModel

_HOMES = {
    "dymn.models.mobilenet": ("import_efficientat", "import_efficientsed", "load_model"),
    "dymn.weights.checkpoint": ("open_checkpoint",),
    "dymn.weights.conversion": ("convert",),
    "dymn.weights.format": ("Stored",),
    "dymn.weights.labels": ("audioset_labels",),
    "dymn.weights.listing": ("ModelRow", "list_models", "model_rows"),
    "dymn.weights.registry": ("REGISTRY", "PublishedModel"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "REGISTRY",
    "ModelRow",
    "PublishedModel",
    "Stored",
    "audioset_labels",
    "convert",
    "import_efficientat",
    "import_efficientsed",
    "list_models",
    "load_model",
    "model_rows",
    "open_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    except ImportError as error:
        raise without_torch(error, f"dymn.weights.{name}") or error from error
