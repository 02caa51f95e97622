"""Messages about options that are not allowed, in place of typer's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dymn.errors import ConfigError

WORDS = (
    (r"Input should be greater than or equal to (.+)", r"at least \1"),
    (r"Input should be less than or equal to (.+)", r"at most \1"),
    (r"Input should be greater than (.+)", r"above \1"),
    (r"Input should be less than (.+)", r"below \1"),
    (r"Input should be a valid integer.*", "a whole number"),
    (r"Input should be a valid number.*", "a number"),
)


def reject_unused(given: dict[str, object], reason: str) -> None:
    """Raise a ConfigError if one of these options is given, whose values are None if they are not."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{name} {reason}. Leave it out.")


def plainly(message: str, options: Sequence[str], words: Sequence[str]) -> str:
    """Return a message of typer with what was given and what is allowed; one that is plain already stays.

    Args:
        message: of typer.
        options: the spellings of the option; none for an argument.
        words: of the command line.

    Example:
        >>> plainly("Input should be greater than or equal to 0.05", ["--window"], ["--window", "0"])
        '0 is not allowed; it must be at least 0.05.'
    """
    for pattern, allowed in WORDS:
        match = re.fullmatch(pattern, message.removesuffix("."))
        if match:
            given = next((value for value in _values(options, words) if value), "")
            return f"{given} is not allowed; it must be {match.expand(allowed)}." if given else match.expand(allowed)
    return message


def _values(options: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    """Yield the values that options have on a command line, the last one first."""
    for word, following in reversed([*pairwise([*words, ""])]):
        name, has_value, value = word.partition("=")
        if name in options:
            yield value if has_value else following
        elif any(len(one) == 2 and word.startswith(one) for one in options):
            yield word[2:]
