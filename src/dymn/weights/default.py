"""Which model is used when none is named: the best one that is at hand."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dymn.errors import WeightsError
from dymn.model import MobileNet
from dymn.weights.checkpoint import load_model
from dymn.weights.download import Progress, is_local
from dymn.weights.registry import REGISTRY

PREFERRED = "dymn10_as"
SHIPPED = "dymn04_open"


class Default(NamedTuple):
    """The model that was chosen, and a sentence that says which it is and why."""

    model: MobileNet
    reason: str


def load_default(*, device: str | torch.device | None = "cpu", progress: Progress | None = None) -> Default:
    """Load `PREFERRED` if it is in the cache or can be fetched, else `SHIPPED`, which comes with dymn.

    Raises:
        WeightsError: if neither can be had.
    """
    where = "is in the cache" if is_local(REGISTRY[PREFERRED]) else "was fetched"
    try:
        model = load_model(PREFERRED, device=device, progress=progress)
    except WeightsError as error:
        if not is_local(REGISTRY[SHIPPED]):
            raise WeightsError(f"No model is named, and the usual one cannot be had. Name another one with --model. {error}") from error
        reason = f"Using {SHIPPED}, which comes with dymn, because {PREFERRED}, which is better, is not in the cache and cannot be fetched."
        return Default(load_model(SHIPPED, device=device), reason)
    return Default(model, f"Using {PREFERRED}, which {where}, because no model was named.")
