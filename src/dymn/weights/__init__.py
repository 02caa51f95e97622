"""Checkpoints: the registry of published ones, their download, dymn's own format, and the import of EfficientAT's.

Names are looked up on first use, so that the registry can be read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.weights.checkpoint import convert, load_model
    from dymn.weights.efficientat import import_efficientat
    from dymn.weights.labels import audioset_labels
    from dymn.weights.listing import ModelRow, list_models, model_rows
    from dymn.weights.registry import REGISTRY, PublishedModel

_HOMES = {
    "checkpoint": ("convert", "load_model"),
    "efficientat": ("import_efficientat",),
    "labels": ("audioset_labels",),
    "listing": ("ModelRow", "list_models", "model_rows"),
    "registry": ("REGISTRY", "PublishedModel"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "REGISTRY",
    "ModelRow",
    "PublishedModel",
    "audioset_labels",
    "convert",
    "import_efficientat",
    "list_models",
    "load_model",
    "model_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
