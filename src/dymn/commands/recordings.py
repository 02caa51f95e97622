"""What commands over recordings need before they compute: a model, an engine, and what is written of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dymn.commands.options import Computes, Precisions, note
from dymn.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from dymn.inference.formats.origin import Origin
    from dymn.inference.tagger import Tagger
    from dymn.ray import Engine


def ray_engine(address: str | None, workers: int | None, threads: int | None, device: str | None, backend: Computes) -> Engine | None:
    """Return what computes on Ray at an address, None without one.

    Raises:
        ConfigError: if the backend cannot run on Ray.
    """
    if address is None:
        return None
    if backend == "onnx":
        raise ConfigError(f"--backend {backend} computes on this machine alone. Give it without --ray.")
    from dymn.ray import Engine

    return Engine(address, workers, threads or 1, device)


def load_tagger(
    model: str | None,
    device: str | None,
    threads: int | None,
    quiet: bool,
    backend: Computes = "torch",
    precision: Precisions = "float32",
    looks_inside: bool = False,
) -> Tagger:
    """Load the model that was named, or the default one, and say which that is.

    With the backend "auto", PyTorch is imported only where compiled code cannot do what is asked for; `looks_inside` says that the
    command needs the network itself.

    Raises:
        ConfigError: if there is no such device or model, or the backend cannot compute the model.
        MissingExtraError: if PyTorch is needed and not installed.
    """
    if backend == "onnx" or (backend == "auto" and model is not None and model.lower().endswith(".onnx")):
        if precision != "float32":
            raise ConfigError(f"--precision is {precision}; a file for --backend onnx has its own. See `dymn export --precision`.")
        return load_onnx(model, device, threads)
    from dymn.commands.progress import download_bar
    from dymn.inference.tagger import Tagger
    from dymn.runtime.opening import open_backend
    from dymn.weights import REGISTRY
    from dymn.weights.default import choose_default

    kind = "torch" if looks_inside else backend
    with download_bar(quiet) as progress:
        named, reason = (model, "") if model is not None else choose_default(progress)
        try:
            found = open_backend(named, backend=kind, device=device, threads=threads, precision=precision, progress=progress)
        except WeightsError as error:
            if named in REGISTRY or "/" in named or Path(named).exists():
                raise
            raise ConfigError(str(error)) from error  # a name that is wrong is a wrong setting
    if reason:
        note(reason, quiet)
    return Tagger(found)


def load_onnx(model: str | None, device: str | None, threads: int | None) -> Tagger:
    """Open an exported model for ONNX Runtime, without PyTorch."""
    from dymn.inference.tagger import Tagger
    from dymn.runtime.onnx_backend import SHIPPED

    if device not in (None, "cpu"):
        raise ConfigError(f"--device is {device!r}; with --backend onnx only cpu is possible.")
    try:
        return Tagger.from_onnx(model or SHIPPED, threads)
    except WeightsError as error:
        raise ConfigError(str(error)) from error


def describe(tagger: Tagger | None, model: str | None, parameters: dict[str, Any], per_window: bool = False) -> Origin:
    """Return what made the results, so that they can be made again; without a tagger, what would have."""
    from dymn import __version__
    from dymn.config import ModelCard
    from dymn.inference.formats.origin import Origin

    card = tagger.card if tagger else ModelCard()
    return Origin(__version__, card.name or model or "", str(card.provenance.get("sha256", "")), parameters, per_window)
