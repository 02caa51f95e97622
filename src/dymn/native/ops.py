"""PyTorch operations in compiled code for CPUs (`dymn/native`), and the conditions under which they apply."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dymn.native import library


def is_plain() -> bool:
    """Return whether operations are computed as they come, with nothing that traces, transforms or counts them."""
    return (
        not torch.compiler.is_compiling()  # first: a compiler that looks further would find what it cannot trace
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def is_compiled(*tensors: Tensor) -> bool:
    """Return whether there is compiled code for these tensors here: float32, on the CPU, outside of autocast."""
    return (
        is_plain()
        and library() is not None
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def call(
    function: str, kind: type[ctypes.Structure], values: Mapping[str, Tensor | float | None], memory: str = ""
) -> None:
    """Call a function of the compiled code with a structure of tensors (None for unused ones) and numbers.

    `memory` names the function that returns how many floats of memory the call needs, if it needs any.
    """
    build: Any = library()
    fields = {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in values.items()}
    arguments = kind(**fields)
    n_threads = torch.get_num_threads()
    if memory:
        room = torch.empty(
            getattr(build, memory)(ctypes.byref(arguments), n_threads), dtype=torch.float32, device="cpu"
        )
        arguments.memory = room.data_ptr()
    getattr(build, function)(ctypes.byref(arguments), n_threads)
