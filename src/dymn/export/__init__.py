"""Networks as files that run without dymn, each compared with PyTorch before it is written."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dymn.export.parity import Parity
    from dymn.export.plan import FORMATS, INPUTS, PRECISIONS, Plan
    from dymn.export.write import Exported, build, export_model

_HOMES = {
    "parity": ("Parity",),
    "plan": ("FORMATS", "INPUTS", "PRECISIONS", "Plan"),
    "write": ("Exported", "build", "export_model"),
}
__all__ = ["FORMATS", "INPUTS", "PRECISIONS", "Exported", "Parity", "Plan", "build", "export_model"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
