"""Compiled code for the CPU: the libraries that were built from the C files in this folder (`hatch_build.py`).

There is one build for each set of vector instructions. If no build is available for a CPU, other backends are used.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

BUILDS = ("_native_v4", "_native_v3", "_native")  # the fastest first
SWITCH = "DYMN_NATIVE"  # environment variable; "0" switches compiled code off
MOST_THREADS = 256
LAYOUT = 7  # raised with every change of the structures that C and Python share


def within_bounds(n_threads: int) -> int:
    """Return the number of threads that the compiled code starts for `n_threads`, which it takes as 32 bits."""
    return max(1, min(n_threads, MOST_THREADS))


@functools.cache
def libraries() -> dict[str, ctypes.CDLL]:
    """Return the builds that run on this CPU, by name, the fastest first; none if `SWITCH` is 0."""
    found: dict[str, ctypes.CDLL] = {}
    if os.environ.get(SWITCH) == "0":
        return found
    for name in BUILDS:
        for path in Path(__file__).parent.glob(f"{name}.*"):
            try:
                build = ctypes.CDLL(str(path))
                if build.dymn_layout() != LAYOUT or not build.dymn_supported() or not build.dymn_run:
                    continue
                for counts_floats in (build.dymn_workspace, build.dymn_depthwise_memory, build.dymn_log_mel_memory):
                    counts_floats.restype = ctypes.c_int64
            except (OSError, AttributeError):  # made for another system, or by another version
                continue
            found[name] = build
    return found


def structure(
    pointers: tuple[str, ...], integers: tuple[str, ...], floats: tuple[str, ...] = ()
) -> type[ctypes.Structure]:
    """Return the class of a C structure of pointers, then integers, then numbers in single precision."""
    kinds = ((ctypes.c_void_p, pointers), (ctypes.c_int32, integers), (ctypes.c_float, floats))
    fields = [(name, kind) for kind, names in kinds for name in names]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


def library() -> ctypes.CDLL | None:
    """Return the fastest build, or None."""
    return next(iter(libraries().values()), None)
