"""Options on labels: the most specific ones, those of a level of AudioSet's ontology, user-defined groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dymn.commands.options import WHAT, file_option, number_option
from dymn.errors import ConfigError

if TYPE_CHECKING:
    from dymn.inference.tagger import Tagger

Specific = Annotated[
    bool,
    typer.Option(
        "--specific",
        help="Omit labels such as Animal if a more specific label, such as Dog, is found with at least half the "
        "probability.",
        rich_help_panel=WHAT,
    ),
]
Level = Annotated[
    int | None,
    number_option(
        "Report the classes at this level of AudioSet's ontology, from 1 (Human sounds, Animal, Music, ...), "
        "instead of the labels below them.",
        WHAT,
    ),
]
GroupsFile = Annotated[
    Path | None,
    file_option(
        'Report these groups instead of labels: a TOML file with lines such as people = ["Human voice", "Crowd"].', WHAT
    ),
]
Language = Annotated[
    str,
    typer.Option(metavar="CODE", help="The language of the labels; only en is available.", rich_help_panel=WHAT),
]


class Vocabulary(NamedTuple):
    """The labels of results: those of a level, or groups; otherwise those of the model.

    `threshold` is what they are compared with: a number, or the name of thresholds that the model has.
    """

    level: int | None = None
    groups: dict[str, tuple[str, ...]] | None = None
    threshold: float | str = 0.0

    def parameters(self) -> dict[str, Any]:
        """Return the level or the groups as JSON types."""
        return {name: value for name, value in self._asdict().items() if value is not None and name != "threshold"}

    def of(self, tagger: Tagger) -> Tagger:
        """Return a tagger with these labels; raise a ConfigError if the model lacks a label or the thresholds."""
        if self.level is None and self.groups is None:
            return tagger
        from dymn.inference.tagger import Tagger
        from dymn.runtime.vocabulary import relabel

        return Tagger(relabel(tagger.backend, self.level, self.groups, self.threshold))


MODELS_OWN = Vocabulary()
"""The labels of the model."""


def vocabulary(
    level: int | None, groups: Path | None, language: str = "en", threshold: float | str | None = None
) -> Vocabulary:
    """Return the labels that options select; raise a ConfigError if options cannot be combined or the file be read."""
    if language.lower() not in ("en", "en-us", "en-gb"):
        raise ConfigError(
            f"There are no labels in the language {language!r}, only in English (en), because AudioSet has no "
            "others. Define your own names with --groups."
        )
    if level is not None and groups is not None:
        raise ConfigError("Labels are those of a level, or groups. Give either --level or --groups.")
    if level is not None:
        from dymn.weights.ontology import DEEPEST

        if level > DEEPEST:
            raise ConfigError(f"--level is {level}; the deepest level of AudioSet's ontology is {DEEPEST}.")
    if groups is None:
        return Vocabulary(level, threshold=threshold or 0.0)
    from dymn.runtime.vocabulary import read_groups

    return Vocabulary(level, read_groups(groups), threshold or 0.0)
