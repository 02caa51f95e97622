"""Memory that a process has freed, returned to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback


def release_memory(error: BaseException) -> None:
    """Return to the system what an operation held that ran out of memory.

    The frames of the error's traceback hold its arrays, and glibc keeps freed memory in the heap of the thread that
    used it, where other threads cannot allocate.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if trim is not None:
            trim(0)
