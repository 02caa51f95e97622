"""Recipes: the settings of a training run, read from TOML and changed by assignments such as `key=value`.

A recipe can contain variants: tables `[variants.NAME]` that override individual settings, such as `audioset_kd:dymn04`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dymn.config import check
from dymn.errors import ConfigError
from dymn.system.files import read_bounded
from dymn.system.toml import loads
from dymn.training.settings import TrainConfig, merged, parse

MAX_RECIPE = 2**20  # bytes


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse "optim.lr=1e-4" as (key, value); a value that is not valid TOML is a string.

    Raises:
        ConfigError: if there is no "=".
    """
    key, equals, value = text.partition("=")
    check(
        bool(equals) and bool(key.strip()),
        f"{text!r} is not an assignment. Write section.setting=value, such as optim.lr=1e-4.",
    )
    try:
        return key.strip(), loads(f"value = {value}")["value"]
    except ValueError:
        return key.strip(), value.strip()


def recipe_names() -> list[str]:
    """Return the names of the recipes included in dymn; variants are "name:variant"."""
    names = []
    for file in sorted(resources.files("dymn.recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            stem = file.name.removesuffix(".toml")
            variants = loads(file.read_text(encoding="utf-8")).get("variants", {})
            names += [f"{stem}:{variant}" for variant in variants] or [stem]
    return names


def unknown_recipe(name: str) -> ConfigError:
    """Return the error for a name that is neither a file nor a recipe; it suggests similar names."""
    names = recipe_names()
    similar = difflib.get_close_matches(name, names, n=3)
    proposal = f"Did you mean {' or '.join(similar)}?" if similar else f"Available: {', '.join(names)}."
    return ConfigError(f"There is no recipe or file {name!r}. {proposal}")


def load_recipe(name_or_path: str | Path, assignments: Sequence[str] = ()) -> TrainConfig:
    """Load a recipe and change individual settings.

    Args:
        name_or_path: an included recipe, such as "fine_tune" or "audioset_kd:dymn04", or a TOML file, optionally
            followed by ":variant".
        assignments: changes such as "optim.lr=1e-4".

    Raises:
        ConfigError: if there is no such recipe or variant, or a setting is not allowed.
    """
    text = str(name_or_path)
    path, variant = Path(text), ""
    if not path.is_file():
        base, _, variant = text.rpartition(":") if ":" in text else (text, "", "")
        path = Path(base)
        if not path.is_file():
            packaged = resources.files("dymn.recipes").joinpath(f"{base}.toml")
            if not packaged.is_file():
                raise unknown_recipe(text)
            return _from_text(packaged.read_text(encoding="utf-8"), text, variant, assignments)
    try:
        return _from_text(read_bounded(path, MAX_RECIPE).decode("utf-8"), text, variant, assignments)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def _from_text(text: str, name: str, variant: str, assignments: Sequence[str]) -> TrainConfig:
    try:
        values = loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}.") from error
    variants = values.pop("variants", {})
    try:
        if variant or variants:
            check(
                variant in variants,
                f"{name} needs a variant, written as RECIPE:VARIANT; it has {', '.join(variants) or 'none'}.",
            )
            values = merged(
                values, {f"{s}.{k}": v for s, settings in variants[variant].items() for k, v in settings.items()}
            )
        values = merged(values, dict(parse_assignment(assignment) for assignment in assignments))
    except (TypeError, ValueError, AttributeError) as error:  # a value where there should be a table
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} must contain settings in tables: {error}.") from error
    return parse(values)
