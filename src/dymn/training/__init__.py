"""Training: one loop for pre-training, distillation and fine-tuning, driven by data.

Names are imported when they are first used, so that recipes can be read without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.training.loop import train
    from dymn.training.recipe import TrainConfig, load_recipe, recipe_names

__all__ = ["TrainConfig", "load_recipe", "recipe_names", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("dymn.training.loop" if name == "train" else "dymn.training.recipe"), name)
