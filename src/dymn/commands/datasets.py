"""Checks that commands over datasets share: data and models must exist before anything else is done."""

from __future__ import annotations

import os
from pathlib import Path

from dymn.errors import ConfigError


def check_data(path: Path, where: str) -> None:
    """Raise a ConfigError if there are no data at a path; `where` is how it is given, such as --data."""
    if not os.path.exists(os.path.expanduser(path)):
        raise ConfigError(
            f"There is no dataset at {path}. Give the path of a folder, a table or an archive as {where}."
        )


def check_model(name: str) -> None:
    """Raise a ConfigError if a model is neither an architecture nor known nor a path; it proposes similar names."""
    from dymn.weights.registry import REGISTRY, WEIGHTS_ENDINGS, unknown_model

    if name in REGISTRY or os.path.exists(os.path.expanduser(name)):
        return
    from dymn.architectures import MODELS

    if name in MODELS:
        return
    # else it may be on the Hugging Face Hub
    if "/" not in name or Path(name).suffix in WEIGHTS_ENDINGS:
        raise unknown_model(name, MODELS)
