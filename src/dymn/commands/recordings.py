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
    from dymn.weights.download import Progress


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

    With the backend "auto", PyTorch is not imported where compiled code does all that is asked for: not on other devices or in another
    precision, not if the command looks inside the network (`looks_inside`), and not the first time that a model is used.
    """
    if backend == "onnx" or (backend == "auto" and model is not None and model.lower().endswith(".onnx")):
        if precision != "float32":
            raise ConfigError(f"--precision is {precision}; a file for --backend onnx has its own. See `dymn export --precision`.")
        return load_onnx(model, device, threads)
    from dymn.commands.progress import download_bar
    from dymn.inference.tagger import Tagger
    from dymn.runtime.compiled_backend import keep_packed, open_packed
    from dymn.system.cpus import may_have_gpu
    from dymn.weights.default import choose_default
    from dymn.weights.find import find_weights

    on_cpu = device == "cpu" or (device is None and not may_have_gpu())
    packs = backend == "auto" and on_cpu and precision == "float32" and not looks_inside
    with download_bar(quiet) as progress:
        named, reason = (model, "") if model is not None else choose_default(progress)
        weights = find_weights(named, progress) if packs else None
        packed = None if weights is None else open_packed(weights, threads)
        tagger = Tagger(packed) if packed is not None else load_in_torch(named, device, threads, precision, progress)
    if reason:
        note(reason, quiet)
    if weights is not None and packed is None:
        keep_packed(tagger.model, weights)
    return tagger


def load_in_torch(model: str, device: str | None, threads: int | None, precision: Precisions, progress: Progress | None) -> Tagger:
    """Load a model in PyTorch, to be computed on a device.

    Raises:
        ConfigError: if there is no such device, or the name is no model's.
    """
    from dymn.inference.tagger import Tagger
    from dymn.system.devices import resolve_device, use_threads
    from dymn.weights import REGISTRY, load_model

    resolve_device(device)
    use_threads(threads)
    if model in REGISTRY or "/" in model or Path(model).exists():
        return Tagger(load_model(model, progress=progress), device, precision=precision)
    try:
        return Tagger(load_model(model, progress=progress), device, precision=precision)
    except WeightsError as error:
        raise ConfigError(str(error)) from error


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
