"""Training: one loop for pre-training, distillation and fine-tuning, driven by data.

Recipes need no PyTorch; `train` is imported when it is used.
"""

from typing import TYPE_CHECKING, Any

from dymn.training.recipe import load_recipe, recipe_names
from dymn.training.settings import TrainConfig

if TYPE_CHECKING:
    from dymn.training.loop import train

__all__ = ["TrainConfig", "load_recipe", "recipe_names", "train"]


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dymn.training.loop import train

    return train
