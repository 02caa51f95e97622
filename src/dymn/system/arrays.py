"""Types of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
