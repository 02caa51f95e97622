"""Which model is used when none is named: the best one that is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dymn.errors import WeightsError
from dymn.weights.download import Progress, is_local
from dymn.weights.find import fetch_published
from dymn.weights.registry import REGISTRY

if TYPE_CHECKING:
    import torch

    from dymn.models.mobilenet import MobileNet

PREFERRED = "dymn10_as"
SHIPPED = "dymn04_open"


class Choice(NamedTuple):
    """The name of the model that was chosen, and a sentence that says which it is and why."""

    name: str
    reason: str


class Default(NamedTuple):
    """The model that was chosen, and a sentence that says which it is and why."""

    model: MobileNet
    reason: str


def choose_default(progress: Progress | None = None) -> Choice:
    """Choose `PREFERRED` if it is in the cache or can be fetched, else `SHIPPED`, which comes with dymn; PyTorch is not imported.

    Raises:
        WeightsError: if neither can be had.
    """
    where = "is in the cache" if is_local(REGISTRY[PREFERRED]) else "was fetched"
    try:
        fetch_published(REGISTRY[PREFERRED], progress)
    except WeightsError as error:
        if not is_local(REGISTRY[SHIPPED]):
            raise WeightsError(f"No model is named, and the usual one cannot be had. Name another one with --model. {error}") from error
        reason = f"Using {SHIPPED}, which comes with dymn, because {PREFERRED}, which is better, is not in the cache and cannot be fetched."
        return Choice(SHIPPED, reason)
    return Choice(PREFERRED, f"Using {PREFERRED}, which {where}, because no model was named.")


def load_default(*, device: str | torch.device | None = "cpu", progress: Progress | None = None) -> Default:
    """Load the model that `choose_default` names.

    Raises:
        WeightsError: if there is none.
    """
    from dymn.weights.checkpoint import load_model

    name, reason = choose_default(progress)
    return Default(load_model(name, device=device, progress=progress), reason)
