"""Opening a backend from a name or a path.

By default, a backend uses compiled code if possible, otherwise PyTorch or ONNX Runtime.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dymn.config import check, check_choice
from dymn.errors import ConfigError, WeightsError
from dymn.native import libraries
from dymn.runtime.backend import Backend
from dymn.runtime.compiled_backend import CompiledBackend, can_compile
from dymn.runtime.ensemble import EnsembleBackend
from dymn.runtime.onnx_backend import OnnxBackend, cached_path, find_file
from dymn.system.cpus import check_threads, may_have_gpu
from dymn.system.extras import has_torch, require_torch
from dymn.weights.checkpoint import open_checkpoint
from dymn.weights.download import known_digest
from dymn.weights.ensembles import ENSEMBLES, joint_digest, members
from dymn.weights.files import DownloadProgress
from dymn.weights.format import Stored
from dymn.weights.registry import REGISTRY

if TYPE_CHECKING:
    import torch

CHOICES = ("auto", "compiled", "torch", "onnx")
ONNX = ".onnx"


def open_backend(
    source: str | Path | Stored,
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
    threads: int | None = None,
    precision: str = "float32",
    compile: bool = False,
    progress: DownloadProgress | None = None,
) -> Backend:
    """Open a model for inference.

    Args:
        source: a name, file or folder as in `dymn.weights.open_checkpoint`, an opened checkpoint, or an .onnx file of
            `dymn export`; "A+B+C", or the name of a published ensemble, for the mean of several models' logits.
        backend: "compiled" (CPU, without PyTorch), "torch", "onnx", or "auto": compiled code on a CPU, and PyTorch on a
            GPU, in another precision, or for a network that compiled code does not support.
        device: device on which PyTorch runs the network, such as "cpu" or "cuda:0"; by default, the first CUDA device,
            otherwise the CPU.
        threads: number of CPU threads; by default, one for each CPU that the process may use.
        precision: "float32" or, for GPUs, "bfloat16" or "float16".
        compile: whether the network is compiled with `torch.compile`.
        progress: called during a download with the number of bytes received and the total, which is None if unknown.

    Raises:
        WeightsError: if the model cannot be found, downloaded or read, or its ONNX file in the cache was exported from
            other weights.
        ConfigError: if a setting is not allowed, or the backend cannot compute the model here.
        MissingExtraError: if the backend is not installed.

    Example:
        >>> backend = open_backend("dymn04_open")
        >>> backend.run_waveforms(np.zeros((1, 32_000), np.float32)).probabilities.shape
        (1, 527)
    """
    in_one_file = isinstance(source, str) and backend == "onnx" and cached_path(source).is_file()
    if isinstance(source, str) and len(names := members(source)) > 1 and not in_one_file:
        options = {"backend": backend, "device": device, "threads": threads, "precision": precision, "compile": compile}
        opened = [open_backend(name, **options, progress=progress) for name in names]  # type: ignore[arg-type]
        return EnsembleBackend(opened, source if source in ENSEMBLES else "")
    check_choice("backend", backend, CHOICES)
    check_threads(threads)
    is_onnx = not isinstance(source, Stored) and str(source).lower().endswith(ONNX)
    plain = precision == "float32" and not compile
    if backend == "onnx" or (backend == "auto" and is_onnx):
        check(
            device is None or str(device) == "cpu",
            f"device is {str(device)!r}; this installation of ONNX Runtime supports only the CPU.",
        )
        check(not compile, "torch.compile has no effect on ONNX files. Leave compile out, or use the backend torch.")
        check(
            plain, f"precision is {precision}; the precision of an ONNX file is fixed. See `dymn export --precision`."
        )
        check(
            not isinstance(source, Stored),
            "ONNX Runtime opens files, not checkpoints in memory. Export one with `dymn export`.",
        )
        opened_file = OnnxBackend(find_file(str(source)), threads)
        if not is_onnx:
            _check_export(opened_file, str(source))
        return opened_file
    if backend == "torch":
        require_torch("The backend torch")
    on_cpu = str(device) == "cpu" or (device is None and not (may_have_gpu() and has_torch()))
    compiles = backend == "compiled" or (backend == "auto" and on_cpu and plain)
    if backend == "compiled":
        check(device is None or str(device) == "cpu", f"device is {str(device)!r}; compiled code runs on the CPU only.")
        check(not compile, "torch.compile applies to PyTorch only. Leave compile out, or use the backend torch.")
        check(plain, f"precision is {precision}; compiled code computes in float32. Use the backend torch.")
    if not compiles:
        require_torch("Computing on another device than the CPU, in another precision or with torch.compile")
        from dymn.system.devices import resolve_device

        resolve_device(device)  # before anything is downloaded
    stored = source if isinstance(source, Stored) else open_checkpoint(source, progress=progress)
    if compiles and can_compile(stored):
        return CompiledBackend(stored, threads)
    if backend != "compiled" and has_torch():
        return _in_torch(stored, device, threads, precision, compile)
    exported = _exported(stored, threads) if backend == "auto" else None
    if exported is not None:
        return exported
    lacks = "needs compiled code, and there is none for this CPU"
    if libraries():
        lacks = "has parts that the compiled code does not support"
    raise ConfigError(
        f"The network {stored.card.name or str(source)} {lacks}. Install PyTorch with: pip install 'dymn[torch]'; or "
        "export it to ONNX on a machine with PyTorch, and use the .onnx file here (pip install 'dymn[onnx]')."
    )


def _check_export(backend: OnnxBackend, name: str) -> None:
    """Raise a WeightsError if the cached ONNX file of a name was exported from other weights than its present ones."""
    digest = _known_digest(name)
    if digest and backend.exported_from != digest:
        raise WeightsError(
            f"The ONNX file {cached_path(name)} was exported from other weights than those of {name}. Write it again "
            f"with: dymn export {name}"
        )


def _known_digest(name: str) -> str:
    """Return the digest of a model's checkpoint if it is known without a download, otherwise ""."""
    if len(names := members(name)) > 1:
        digests = [_known_digest(member) for member in names]
        return joint_digest(digests) if all(digests) else ""
    if name in REGISTRY:
        return known_digest(REGISTRY[name]).digest
    if os.path.exists(os.path.expanduser(name)):
        with suppress(WeightsError):  # something else has this name
            return open_checkpoint(name).digest
    return ""


def _exported(stored: Stored, threads: int | None) -> OnnxBackend | None:
    """Return the cached ONNX file that was exported from this checkpoint, not from another one of its name."""
    path = cached_path(stored.card.name)
    if not path.is_file():
        return None
    backend = OnnxBackend(path, threads)
    return backend if stored.digest and backend.exported_from == stored.digest else None


def _in_torch(
    stored: Stored, device: str | torch.device | None, threads: int | None, precision: str, compile: bool
) -> Backend:
    from dymn.models.mobilenet import MobileNet
    from dymn.runtime.torch_backend import TorchBackend
    from dymn.system.devices import use_threads

    use_threads(threads)
    return TorchBackend(MobileNet.from_stored(stored), device, precision=precision, compile=compile)
