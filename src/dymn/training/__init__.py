"""Training: one loop for pre-training, distillation and fine-tuning, driven by data."""

from dymn.training.loop import train
from dymn.training.recipe import TrainConfig, load_recipe, recipe_names

__all__ = ["TrainConfig", "load_recipe", "recipe_names", "train"]
