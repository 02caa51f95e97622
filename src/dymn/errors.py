"""The errors that dymn raises on purpose.

Every message names the offending value, what is allowed, and the remedy. The command line prints the message without a traceback.
"""


class DymnError(Exception):
    """Base of all errors that dymn raises on purpose."""


class AudioError(DymnError):
    """A recording cannot be opened, decoded or used."""


class ConfigError(DymnError, ValueError):
    """A setting has a value that is not allowed."""


class WeightsError(DymnError):
    """A checkpoint cannot be found, downloaded, verified or fitted to a network."""


class DataError(DymnError):
    """A dataset, a manifest or a table of teacher logits is not what it should be."""


class MissingExtraError(DymnError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional dependency. Install it with: pip install 'dymn[{extra}]'")
        self.extra = extra
