"""The origin of a file of results: model, settings and version, with which it can be reproduced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """The version of dymn, the model, the SHA-256 of its file, and the settings.

    Attributes:
        parameters: the settings, as JSON types.
        per_window: whether results are those of windows, in JSON besides those of recordings.
        plain: whether text for people is ASCII.
        more: further facts, as JSON types, such as the layers of embeddings.
    """

    version: str
    model: str
    digest: str
    parameters: dict[str, Any]
    per_window: bool = False
    plain: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the origin as JSON types."""
        parameters = self.parameters | {"per_window": self.per_window}
        return {
            "version": self.version,
            "model": self.model,
            "digest": self.digest,
            "parameters": parameters,
        } | self.more
