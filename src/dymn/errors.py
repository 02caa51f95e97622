"""The errors that dymn raises on purpose.

Every message names the offending value, what is allowed, and the remedy. The command line prints the message without a traceback.
"""


def visible(text: str, keep: str = "") -> str:
    """Return text in which every letter that a terminal could take for a command, but those to `keep`, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


class DymnError(Exception):
    """Base of all errors that dymn raises on purpose.

    A message may hold what a stranger wrote into a file, so it reads as `visible` makes it.
    """

    def __str__(self) -> str:
        return visible(super().__str__(), keep="\n")


class AudioError(DymnError):
    """A recording cannot be opened, decoded or used."""


class ConfigError(DymnError, ValueError):
    """A setting has a value that is not allowed."""


class WeightsError(DymnError):
    """A checkpoint cannot be found, downloaded, verified or fitted to a network."""


class DataError(DymnError):
    """A dataset, a manifest or a table of teacher logits is not what it should be."""


class ResourceError(DymnError):
    """Memory has run out, or the system has ended a process."""


class MissingExtraError(DymnError, ImportError):
    """An optional dependency is needed; the message names the extra and the command that installs it here."""

    def __init__(self, purpose: str, extra: str) -> None:
        need = "PyTorch" if extra == "torch" else "an optional dependency"
        super().__init__(f"{purpose} needs {need}: {install_command(extra)}")
        self.extra = extra


_EXTRAS = {
    "torch": "torch",
    "av": "av",
    "lightning": "train",
    "sklearn": "train",
    "matplotlib": "plot",
    "pyarrow": "parquet",
    "h5py": "hdf5",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "sounddevice": "mic",
}
"""From modules to the extras that install them."""


def missing_extra(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """Return the error that names the extra for a module that is not installed; None if no extra has it."""
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    return MissingExtraError(purpose, extra) if extra else None


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation: that of pip, uv, or for an isolated tool of pipx or uv.

    An installation from a folder, an archive or a repository is named by its address, since an index may not have it. pip needs no
    address, as it takes what is installed.
    """
    import json
    import os
    import sys
    from importlib import metadata

    wanted = f"dymn[{extra}]"
    try:
        url = json.loads(metadata.distribution("dymn").read_text("direct_url.json") or "{}").get("url")
    except (metadata.PackageNotFoundError, ValueError, OSError):
        url = None
    address = f"{wanted} @ {url}" if url else wanted
    if os.path.exists(os.path.join(sys.prefix, "pipx_metadata.json")):
        return f"pipx install --force '{address}'"
    if os.path.exists(os.path.join(sys.prefix, "uv-receipt.toml")):
        return f"uv tool install --force '{address}'"
    try:
        with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as file:
            by_uv = any(line.startswith("uv =") for line in file)
    except (OSError, UnicodeDecodeError):
        by_uv = False
    return f"uv pip install '{address}'" if by_uv else f"pip install '{wanted}'"


_RESOURCES = (
    (
        "DataLoader worker",
        "A process that reads the data has ended, as it does when memory runs out. Give fewer workers, or a smaller batch",
    ),
    ("out of memory", "The device has no room for a batch. Give a smaller batch, or a shorter window"),
    ("can't start new thread", "The system gives no more threads. Give fewer workers"),
    ("can't allocate memory", "Memory has run out. Give a smaller batch, fewer workers, or a shorter window"),
)
"""Of errors of PyTorch, which have no kinds of their own: words in them, and what they mean."""


def resource_error(error: BaseException) -> ResourceError | None:
    """Return what an error of another library says of memory and processes, with the remedy; None if that is not what it is about."""
    if isinstance(error, ResourceError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"{_RESOURCES[-1][1]} ({error}).")
    if isinstance(error, RuntimeError):
        for words, meaning in _RESOURCES:
            if words in str(error):
                return ResourceError(f"{meaning} ({str(error).strip().splitlines()[0].rstrip('.')}).")
    return None
