"""The standard library's TOML reader, or its backport before Python 3.11."""

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def loads(text: str) -> dict[str, Any]:
    """Return the content of TOML text.

    Raises:
        ValueError: if it is not TOML, or more deeply nested than any settings are.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
