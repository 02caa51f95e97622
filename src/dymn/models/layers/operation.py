"""Layer operations that faster code with the same results can replace, such as compiled code for CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Fits = Callable[..., bool]
Implementation = Callable[..., Tensor]


class Operation:
    """An equation on tensors, computed by the first installed form that fits its arguments, or as it is written.

    Attributes:
        equation: the operation in PyTorch.
    """

    def __init__(self, equation: Implementation) -> None:
        self.equation = equation
        self._forms: list[tuple[Fits, Implementation]] = []
        self.__doc__ = equation.__doc__

    def install(self, fits: Fits, form: Implementation) -> None:
        """Use `form` from now on for arguments that it `fits`."""
        self._forms.append((fits, form))

    def form(self, *arguments: Any) -> Implementation | None:
        """Return the installed form that fits these arguments, or None."""
        for fits, form in self._forms:
            if fits(*arguments):
                return form
        return None

    def __call__(self, *arguments: Any) -> Tensor:
        """Return the result of the operation."""
        return (self.form(*arguments) or self.equation)(*arguments)
