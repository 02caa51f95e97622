"""The device of a network, and its number of threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from dymn.errors import ConfigError, ResourceError, resource_error
from dymn.system.cpus import THREAD_VARIABLES, available_cpus, check_threads

COMPUTE_PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The precisions in which a network is computed, and the type for autocast."""


def available_devices() -> list[str]:
    """Return the names of the devices of this machine, "cpu" first."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device called `name`: "cpu", "cuda", "cuda:1", "mps"; None is the first CUDA device, or else the CPU.

    Raises:
        ConfigError: if there is no such device here; the message names the available ones.
    """
    available = available_devices()
    if name is None:
        return torch.device("cuda:0" if "cuda:0" in available else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"There is no device {str(name)!r}. Available here: {', '.join(available)}.") from error
    wanted = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if wanted not in available or (device.type != "cuda" and device.index):
        raise ConfigError(f"The device {str(name)!r} is not available. Available here: {', '.join(available)}.")
    return device


def use_threads(threads: int | None = None) -> int:
    """Compute with so many CPU threads in this process from now on, and return how many that is.

    None is PyTorch's own number, but no more than the CPUs that this process may use: PyTorch does not see a
    container's quota. The settings of the environment (OMP_NUM_THREADS, MKL_NUM_THREADS) are kept.

    Raises:
        ConfigError: if `threads` is below 1.
    """
    check_threads(threads)
    if threads is None and not any(name in os.environ for name in THREAD_VARIABLES):
        threads = min(torch.get_num_threads(), available_cpus())
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return torch.get_num_threads()


@functools.cache
def compute_alone_after_fork() -> None:
    """Make forked processes compute with one PyTorch thread: GNU's OpenMP waits forever for the parent's threads."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def computing(device: torch.device, n_windows: int, precision: str = "float32") -> Iterator[None]:
    """Compute with one of `COMPUTE_PRECISIONS`, and suggest a remedy where memory runs out.

    float32 is full precision on any device.

    Raises:
        ResourceError: if so many windows at once do not fit the memory.
    """
    try:
        dtype = COMPUTE_PRECISIONS[precision]
        cast = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
        with cast, torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            yield
    except (RuntimeError, MemoryError) as error:
        known = resource_error(error)
        if known is None:
            raise
        raise ResourceError(
            f"{device} does not have enough memory for a batch of {n_windows} windows. Use a smaller batch size "
            f"({known})."
        ) from error
