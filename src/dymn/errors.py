"""The errors of dymn.

Every message names the offending value, what is allowed, and the remedy. The command line prints the message without a
traceback.
"""

NOT_IMPORTED = "To use your own, import its module first: --import MODULE on the command line, import MODULE in Python."
"""The remedy where a name may be that of something that the user has added."""


def visible(text: str, keep: str = "") -> str:
    """Return text with each character that a terminal could interpret as a command escaped, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


class DymnError(Exception):
    """Base of all errors that dymn raises on purpose; control characters in messages are escaped (see `visible`)."""

    def __str__(self) -> str:
        return visible(super().__str__(), keep="\n")


class AudioError(DymnError):
    """A recording cannot be opened, decoded or used."""


class ConfigError(DymnError, ValueError):
    """A setting has a value that is not allowed."""


class WeightsError(DymnError):
    """A checkpoint cannot be found, downloaded, verified or fitted to a network."""


class UnknownModelError(WeightsError, ConfigError):
    """There is no model of this name, or no file at this path."""


class DataError(DymnError):
    """A dataset, a manifest or a table of teacher logits is not what it should be."""


class ResourceError(DymnError):
    """Memory has run out, or the system has ended a process."""


class MissingExtraError(DymnError, ImportError):
    """An optional dependency is needed; the message names the extra and the command that installs it here."""

    def __init__(self, purpose: str, extra: str) -> None:
        from dymn.system.installation import install_command

        needed = "PyTorch" if "torch" in extra.split(",") else "an optional dependency"
        super().__init__(f"{purpose} needs {needed}: {install_command(extra)}")
        self.extra = extra


def without_torch(error: BaseException, purpose: str, extra: str = "torch") -> MissingExtraError | None:
    """Return the error to show where an import failed because PyTorch is not installed; None for any other error.

    `extra` names the extras that the purpose needs, separated by commas, where PyTorch is not enough.
    """
    missing = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "torch"
    return MissingExtraError(purpose, extra) if missing else None


_RESOURCES = (
    (
        "DataLoader worker",
        "A process that reads data was killed, probably because memory ran out. Use fewer workers or a smaller batch",
    ),
    ("out of memory", "The device does not have enough memory for a batch. Use a smaller batch or a shorter window"),
    ("can't start new thread", "The system cannot start more threads. Use fewer workers"),
    ("can't allocate memory", "Memory has run out. Use a smaller batch, fewer workers or a shorter window"),
)
"""Of errors of PyTorch, which have no kinds of their own: words in them, and what they mean."""


def resource_error(error: BaseException) -> ResourceError | None:
    """Return an error of another library about memory or processes with its remedy; None for any other."""
    if isinstance(error, ResourceError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"{_RESOURCES[-1][1]} ({error}).")
    if isinstance(error, RuntimeError):
        for words, meaning in _RESOURCES:
            if words in str(error):
                return ResourceError(f"{meaning} ({str(error).strip().splitlines()[0].rstrip('.')}).")
    return None
