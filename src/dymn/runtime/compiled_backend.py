"""The network of a tagger in compiled code alone; PyTorch, whose import takes seconds, is not imported.

It needs the packed form of a network, which PyTorch makes once and leaves in the cache, in `compiled` there. The file belongs to one
file of weights, by its digest, and to one version of dymn. One that is damaged or of another version is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dymn import __version__
from dymn.audio.windows import Filled
from dymn.config import ModelCard, ModelConfig, check, from_dict, to_dict
from dymn.errors import DymnError, ResourceError
from dymn.native import LAYOUT, libraries
from dymn.native.log_mel import CompiledLogMel, Constants
from dymn.native.network import CompiledNetwork, Packed, is_known
from dymn.runtime.backend import Backend, Floats, Output
from dymn.runtime.scores import probabilities
from dymn.runtime.sliding import SlidingLogMel
from dymn.system.cpus import default_threads
from dymn.system.files import atomic_write
from dymn.weights.download import LocalFile, cache_folder

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

logger = logging.getLogger(__name__)

FRONT_END = "front_end."


class CompiledBackend(Backend):
    """A network and its front end in compiled code: waveforms to probabilities and to embeddings of the last layer."""

    def __init__(self, card: ModelCard, front_end: CompiledLogMel, network: CompiledNetwork, threads: int | None = None) -> None:
        """Take what `open_packed` found.

        Args:
            card: labels, and the front end's configuration.
            front_end: the front end.
            network: the network.
            threads: how many CPU threads compute the network; None is one for each CPU that may be used.

        Raises:
            ConfigError: if `threads` is below 1.
        """
        self.card = card
        self.embedding_size = network.config.c_last
        self._front_end, self._network = front_end, network
        self._threads = default_threads(threads)

    def features(self, windows: Iterable[Filled], hop: int) -> Iterator[Floats]:
        """Yield log-mel spectrograms [1, F, T], no frame computed twice."""
        sliding = SlidingLogMel(self._front_end, hop)
        return (sliding(window.samples, window.n_samples) for window in windows)

    def run(self, features: Floats) -> Output:
        """Return probabilities [B, C] and embeddings [B, D] of a batch of `features`.

        Raises:
            ResourceError: if the batch does not fit the memory.
        """
        try:
            embedding = self._network.embed(features, self._threads)
        except MemoryError as error:
            raise ResourceError(f"There is no room for {len(features)} windows at once. Give a smaller batch size.") from error
        return self.checked(Output(probabilities(self._network.logits(embedding), self.card.exclusive), embedding))


def packed_path(weights: LocalFile) -> Path:
    """Return where the packed form of a file of weights is, or belongs."""
    return cache_folder() / "compiled" / f"{weights.path.stem[:48]}-{weights.digest[:16]}.safetensors"


def keep_packed(model: MobileNet, weights: LocalFile) -> None:
    """Write the packed form of a network to the cache, if there is compiled code for it; a cache that cannot be written to is none."""
    from dymn.models.frontend import LogMel
    from dymn.runtime.compiled import pack

    constants = LogMel(model.card.front_end).constants()
    if not libraries() or not is_known(model.config) or constants is None or model.card.provenance.get("sha256") != weights.digest:
        return
    from safetensors.numpy import save

    network = pack(model)
    arrays = dict(network.arrays) | {FRONT_END + name: values for name, values in constants._asdict().items()}
    facts = _made_of(weights) | {"config": to_dict(network.config), "card": to_dict(model.card)}
    text = json.dumps(facts)
    try:
        with atomic_write(packed_path(weights)) as file:
            file.write(save(arrays, {"dymn": text, "checksum": _checksum(text, arrays)}))
    except (OSError, RuntimeError, MemoryError) as error:
        logger.debug("The packed form of %s is not kept: %s", weights.path, error)


def open_packed(weights: LocalFile, threads: int | None = None) -> CompiledBackend | None:
    """Return the backend of a file of weights if its packed form is in the cache and sound, and there is compiled code here.

    Raises:
        ConfigError: if `threads` is not allowed.
    """
    n_threads = default_threads(threads)
    if not libraries():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(packed_path(weights), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        text = metadata["dymn"]
        check(metadata["checksum"] == _checksum(text, arrays), "it is damaged.")
        facts = json.loads(text)
        check(_made_of(weights).items() <= facts.items(), "it is of another version, or of other weights.")
        config, card = from_dict(ModelConfig, facts["config"]), from_dict(ModelCard, facts["card"])
        constants = Constants(*(arrays.pop(FRONT_END + name) for name in Constants._fields))
        return CompiledBackend(card, CompiledLogMel(card.front_end, constants), CompiledNetwork(Packed(config, arrays)), n_threads)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, DymnError) as error:
        logger.debug("The packed form of %s is made again: %s", weights.path, error)
    return None


def _made_of(weights: LocalFile) -> dict[str, Any]:
    """Return what a packed form must say of itself."""
    return {"version": __version__, "layout": LAYOUT, "weights": weights.digest}


def _checksum(text: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    checksum = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        checksum.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        checksum.update(np.ascontiguousarray(arrays[name]).data)
    return checksum.hexdigest()
