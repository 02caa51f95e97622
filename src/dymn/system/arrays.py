"""Types of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEAST_IN_8_BITS = 4096
"""Weights of fewer values are stored in half precision instead of 8 bits, in checkpoints and in ONNX files: they need
little memory, and those of the first blocks would cause most of the error.
"""
