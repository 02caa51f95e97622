"""Networks as files that run without dymn, each compared with PyTorch before it is written."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.export.onnx import INPUTS, PRECISIONS, Exported, Parity, build, export_onnx

__all__ = ["INPUTS", "PRECISIONS", "Exported", "Parity", "build", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.onnx"), name)
