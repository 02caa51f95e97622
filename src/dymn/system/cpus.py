"""The CPUs that the process may use, and threads that do not spin while they wait.

PyTorch's threads spin while they wait for work. On a machine with other load, this takes time from the threads for
which they wait: with as many threads as CPUs, tagging becomes several times slower. See docs/speed.md.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from dymn.errors import ConfigError

CALM = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""Settings of the OpenMP libraries of GNU and Intel/LLVM under which threads that wait sleep."""
MOST_THREADS = 2**16
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SPIN_VARIABLES = (*CALM, "GOMP_SPINCOUNT")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # of malloc.h
_MMAP_MAX = 2**16  # the default of glibc
_UP_TO_128_MB = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**27, _M_TOP_PAD: 2**24}
_CGROUP = Path("/sys/fs/cgroup")


def calm_openmp(environment: MutableMapping[str, str] | None = None) -> None:
    """Let OpenMP threads sleep while they wait, unless the environment sets it; call this before importing PyTorch."""
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in _SPIN_VARIABLES):
        environment.update(CALM)


def keep_freed_memory() -> bool:
    """Let glibc keep up to 128 MB of freed arrays for the next ones; return whether it does.

    Otherwise the memory is returned to the system each time, and new arrays cost an interrupt for each 4 kB. Another C
    library is not affected.
    """
    return _tune(_UP_TO_128_MB)


@contextmanager
def keeping_all_memory(wanted: bool = True) -> Iterator[bool]:
    """Let glibc keep all memory, of arrays of any size, while a block runs, and give it back then.

    For training on a CPU: a step needs the same large tensors as the one before, and `keep_freed_memory` does not hold
    arrays above 32 MB. Yields whether it has an effect: it is wanted, and the C library is glibc.
    """
    kept = wanted and _tune({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**26})
    try:
        yield kept
    finally:
        if kept:
            _tune(_UP_TO_128_MB | {_M_MMAP_MAX: _MMAP_MAX})
            ctypes.CDLL(None).malloc_trim(0)


def _tune(values: Mapping[int, int]) -> bool:
    """Set values of glibc's mallopt; return whether all were accepted. Other C libraries are not affected."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) for name, value in values.items())


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Return how many CPUs this process may use: those of its affinity, but no more than a container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(_quota(cgroup))))


def may_have_gpu() -> bool:
    """Return whether PyTorch may find a CUDA or ROCm device here; quick, and on Windows not known."""
    return sys.platform == "win32" or any(
        Path("/dev", name).exists() for name in ("nvidiactl", "nvhost-gpu", "kfd", "dxg")
    )


def check_threads(threads: int | None) -> None:
    """Raise a ConfigError if a number of threads is out of range."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads is {threads}; it must be at least 1, and at most {MOST_THREADS}.")


def default_threads(threads: int | None = None) -> int:
    """Return how many threads to compute with: `threads`, or the environment's setting, or one per usable CPU.

    Raises:
        ConfigError: if `threads` is not allowed.
    """
    check_threads(threads)
    wanted = (os.environ.get(name, "") for name in THREAD_VARIABLES)
    return threads or next(
        (min(int(text), MOST_THREADS) for text in wanted if text.isdecimal() and int(text)), available_cpus()
    )


def _quota(cgroup: Path) -> float:
    """Return how many CPUs' time a container's control group (version 2 or 1) allows, infinity if there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
        except (OSError, ValueError):
            return float(2**20)
    if not (quota.isdigit() and period.isdigit() and int(period) > 0):  # "max", "-1"
        return float(2**20)
    return int(quota) / int(period)
