"""Ensembles on the command line: `--model A B` is `--model A+B`."""

from __future__ import annotations

import os
import re
from typing import Any


def with_ensembles(words: list[str], is_positional: bool) -> list[str]:
    """Return words in which the models of an ensemble are joined: `--model A+B` for `--model A B`, up to a `--`.

    A word belongs to the model before it if it is the name of a model with weights, and of no file or folder, or ends
    as files of weights do.

    Args:
        words: of the command line.
        is_positional: whether the model is an argument, so that `A B` is `A+B`.
    """
    joined: list[str] = []
    is_open = False
    for number, word in enumerate(words):
        if word == "--":
            return joined + words[number:]
        if is_open and _is_model(word):
            joined[-1] += f"+{word}"
            continue
        before = joined[-1] if joined else ""
        is_value = re.fullmatch(r"--model|-\w*m", before) or re.match(r"--model=.|-m.", word)
        is_open = bool(is_value) or (is_positional and not before.startswith("-") and _is_model(word))
        joined.append(word)
    return joined


def _is_model(word: str) -> bool:
    from dymn.weights.ensembles import ENSEMBLES
    from dymn.weights.registry import REGISTRY, WEIGHTS_ENDINGS

    named = word in REGISTRY or word in ENSEMBLES
    return word.endswith(WEIGHTS_ENDINGS) or (named and not os.path.lexists(word))


def is_argument(param: Any) -> bool:
    """Whether a parameter of a command is an argument, not an option."""
    return bool(param.param_type_name == "argument")
