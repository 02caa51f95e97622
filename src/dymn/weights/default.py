"""The model that is used if none is named: the best one that is available."""

from __future__ import annotations

from typing import NamedTuple

from dymn.errors import WeightsError
from dymn.weights.checkpoint import open_checkpoint
from dymn.weights.download import is_local
from dymn.weights.files import DownloadProgress
from dymn.weights.format import Stored
from dymn.weights.registry import REGISTRY

PREFERRED = "dymn10_as"
SHIPPED = "dymn04_open"


class Default(NamedTuple):
    """The model that was chosen, and a sentence that names it and the reason."""

    stored: Stored
    reason: str


def open_default(progress: DownloadProgress | None = None) -> Default:
    """Open `PREFERRED` if it is cached or can be fetched, else `SHIPPED`, which comes with dymn, without PyTorch.

    Raises:
        WeightsError: if neither can be had.
    """
    where = "is in the cache" if is_local(REGISTRY[PREFERRED]) else "was fetched"
    try:
        stored = open_checkpoint(PREFERRED, progress=progress)
    except WeightsError as error:
        if not is_local(REGISTRY[SHIPPED]):
            raise WeightsError(
                f"No model is given, and the default model cannot be loaded. Give another one with --model. {error}"
            ) from error
        reason = (
            f"Using {SHIPPED}, which is included in dymn: {PREFERRED}, which is more accurate, is not in the cache "
            "and cannot be downloaded."
        )
        return Default(open_checkpoint(SHIPPED), reason)
    return Default(stored, f"Using {PREFERRED}, which {where}, because no model was named.")
