"""Resolution of a network from a name, a file, or an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, Union

from dymn.architectures import ALIASES, MODELS, Variant, model_config
from dymn.config import FrontEndConfig, ModelConfig, check, from_dict
from dymn.errors import ConfigError, UnknownModelError
from dymn.system.files import read_bounded
from dymn.system.toml import loads
from dymn.weights.checkpoint import open_checkpoint
from dymn.weights.format import Stored
from dymn.weights.registry import REGISTRY, unknown_model

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

MAX_CONFIG = 2**22  # bytes
RECIPE_SETTINGS = ("inherit", "settings", "front_end", "prior")  # of a recipe's [model], besides the name
Network = Union[str, Path, Variant, ModelConfig, "MobileNet"]


def resolve(model: Network) -> ModelConfig:
    """Return the configuration of a network, a variant, an architecture or model by its name, or a file.

    Args:
        model: a string is the name of an architecture or of a published model (nothing is downloaded), a checkpoint, or
            a JSON or TOML file: a recipe, `Variant` settings, or a whole `ModelConfig`, the latter two alone or under
            "model".

    Raises:
        ConfigError: if a setting is unknown or not allowed, or a config file cannot be read.
        WeightsError: if there is neither an architecture nor a model nor a checkpoint of this name.
    """
    if isinstance(model, ModelConfig):
        return model
    if isinstance(model, Variant):
        return model.config()
    if not isinstance(model, (str, Path)):
        return model.config
    if str(model).lower().endswith((".json", ".toml")):
        return _config_from_file(Path(model))
    return _config_by_name(model)


def open_network(model: str | Path) -> Stored:
    """Open a checkpoint.

    Raises:
        UnknownModelError: if there is none of this name; the message names architectures too.
        WeightsError: if it cannot be read.
    """
    try:
        return open_checkpoint(model)
    except UnknownModelError as error:
        raise unknown_model(str(model), MODELS) from error


def is_checkpoint(model: Network) -> TypeGuard[str | Path]:
    """Return whether only weights can tell the network's shape: no config, published model or architecture is named."""
    if not isinstance(model, (str, Path)):
        return False
    name = str(model)
    return not (
        name.lower().endswith((".json", ".toml")) or name in REGISTRY or name in MODELS or _alias(name) in ALIASES
    )


def _alias(name: str) -> str:
    return name.lower().replace("-", "_")


def _config_by_name(name: str | Path) -> ModelConfig:
    if is_checkpoint(name):
        return open_network(name).config
    if str(name) in REGISTRY:
        published = REGISTRY[str(name)]
        return model_config(published.architecture, **published.settings)
    return model_config(str(name))


def _config_from_file(path: Path) -> ModelConfig:
    try:
        text = read_bounded(path, MAX_CONFIG).decode("utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a config: {error}.") from error
    check(isinstance(values, dict), f"{path} contains no settings.")
    # of a recipe, or of the folder that save_pretrained writes
    settings = values.get("model", values.get("config", values))
    check(isinstance(settings, dict), f"model in {path} must be settings by name.")
    if "blocks" in settings:
        return from_dict(ModelConfig, settings)
    own = {name: value for name, value in settings.items() if name not in RECIPE_SETTINGS}
    overrides = own | dict(settings.get("settings", {}))
    name = str(overrides.pop("name", "dymn10"))
    return model_config(name, **overrides) if overrides else _config_by_name(name)


def front_end_of(model: Network) -> FrontEndConfig:
    """Return the front end that a network or published model was trained with, or the standard one if unknown."""
    if isinstance(model, (str, Path, Variant, ModelConfig)):
        return REGISTRY[model].front_end if isinstance(model, str) and model in REGISTRY else FrontEndConfig()
    return model.card.front_end
