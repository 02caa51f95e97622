"""AudioSet's ontology: the hierarchy of its classes, from the seven at the top to the most specific ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources

from dymn.errors import ConfigError

OntologyPath = tuple[str, ...]
"""From a class at the top of the ontology to one below it, both included."""

DEEPEST = 6
"""Number of classes on the longest path."""
_KNOWN_SHARE = 0.5
"""A model with a smaller share of AudioSet's labels has another label set."""


@functools.cache
def paths() -> dict[str, list[OntologyPath]]:
    """Return all ways down to each class, by its name; a class with several parents has several.

    Example:
        >>> paths()["Bark"]
        [('Animal', 'Domestic animals, pets', 'Dog', 'Bark')]
    """
    text = (resources.files("dymn.weights") / "audioset_ontology.txt").read_text(encoding="utf-8")
    parents: dict[str, list[str]] = {}
    above: OntologyPath = ()
    for line in text.splitlines():
        if not line.startswith("#"):
            name = line.strip()
            above = (*above[: len(line) - len(name)], name)
            parents.setdefault(name, []).extend(above[-2:-1])

    @functools.cache
    def down(name: str) -> list[OntologyPath]:
        return [(*path, name) for parent in parents[name] for path in down(parent)] or [(name,)]

    return {name: down(name) for name in parents}


def ancestors(name: str) -> set[str]:
    """Return all classes that a class is a kind of, at any distance; none for classes that are not AudioSet's.

    Example:
        >>> sorted(ancestors("Dog"))
        ['Animal', 'Domestic animals, pets']
    """
    return {above for path in paths().get(name, ()) for above in path[:-1]}


def at_level(name: str, level: int) -> set[str]:
    """Return the classes at a level that a class belongs to: itself if it is higher, or not AudioSet's.

    Example:
        >>> at_level("Bark", 1), at_level("Animal", 3)
        ({'Animal'}, {'Animal'})
    """
    return {path[:level][-1] for path in paths().get(name, [(name,)])}


def check_audioset(labels: Sequence[str], option: str) -> None:
    """Raise a `ConfigError`, naming `option`, if fewer than half of the labels are AudioSet's."""
    unknown = [label for label in labels if label not in paths()]
    if len(unknown) > (1 - _KNOWN_SHARE) * len(labels):
        raise ConfigError(
            f"{option} follows AudioSet's ontology, and {len(unknown)} of the model's {len(labels)} labels are not "
            f"in it, such as {unknown[0]!r}. Use a model with AudioSet's labels, or --groups with labels of this "
            "model."
        )
