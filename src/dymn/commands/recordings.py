"""The model, the engine, and the metadata of the output of commands over recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dymn.commands.options import Computes, Precisions, note
from dymn.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from dymn.inference.formats.origin import Origin
    from dymn.inference.tagger import Tagger
    from dymn.ray import Engine
    from dymn.weights.format import Stored


def ray_engine(
    address: str | None, workers: int | None, threads: int | None, device: str | None, backend: Computes
) -> Engine | None:
    """Return the engine of a Ray address, None without one; raise a ConfigError if the backend cannot run on Ray."""
    if address is None:
        return None
    if backend == "onnx":
        raise ConfigError(f"--backend {backend} cannot be combined with --ray. Leave one of them out.")
    from dymn.commands.imports import IMPORTED
    from dymn.ray import Engine

    return Engine(address, workers, threads or 1, device, tuple(IMPORTED))


def load_tagger(
    model: str | None,
    device: str | None,
    threads: int | None,
    quiet: bool,
    backend: Computes = "torch",
    precision: Precisions = "float32",
    looks_inside: bool = False,
) -> Tagger:
    """Open the model that was named, or the default one, which a note then names.

    Args:
        model: a name, a file or a folder; None for the default model.
        device: where to compute, or None.
        threads: number of CPU threads, or None.
        quiet: whether to print no notes.
        backend: as in `dymn.runtime.opening.open_backend`.
        precision: of PyTorch's arithmetic.
        looks_inside: whether the command needs PyTorch's network itself, if the backend is chosen automatically.

    Raises:
        ConfigError: if there is no such device or model, or the backend cannot compute the model.
        MissingExtraError: if the backend is not installed.
    """
    from dymn.commands.progress import download_bar
    from dymn.inference.tagger import Tagger
    from dymn.runtime.opening import ONNX, open_backend
    from dymn.weights import REGISTRY
    from dymn.weights.default import SHIPPED, open_default

    with download_bar(quiet) as progress:
        named, reason = model or SHIPPED, ""
        source: str | Stored = named
        if model is None and backend != "onnx":
            source, reason = open_default(progress)
        is_onnx = backend == "onnx" or (backend == "auto" and named.lower().endswith(ONNX))
        kind = "torch" if looks_inside and backend == "auto" and not is_onnx else backend
        try:
            found = open_backend(
                source, backend=kind, device=device, threads=threads, precision=precision, progress=progress
            )
        except WeightsError as error:
            if not is_onnx and (named in REGISTRY or "/" in named or Path(named).exists()):
                raise
            raise ConfigError(str(error)) from error  # a wrong name is a wrong setting
    if reason:
        note(reason, quiet)
    return Tagger(found)


def describe(tagger: Tagger | None, model: str | None, parameters: dict[str, Any], per_window: bool = False) -> Origin:
    """Return the origin of results, with which they can be computed again; a tagger may be missing."""
    from dymn import __version__
    from dymn.config import ModelCard
    from dymn.inference.formats.origin import Origin

    card = tagger.card if tagger else ModelCard()
    return Origin(__version__, card.name or model or "", str(card.provenance.get("sha256", "")), parameters, per_window)
