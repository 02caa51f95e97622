"""The names of the layers of an embedding.

Embeddings contain averages of feature maps. The last one is best for tasks close to tagging; middle blocks and the
averages of the mel bands are better for speech and music (F. Schmid, K. Koutini, G. Widmer: Low-complexity audio
embedding extractors, EUSIPCO 2023). Layers are named:

- "last": the averaged last feature map, which is also the input of the classifier of `MobileNet`;
- "block0" to "block14": the averaged output of a block, "blocks" of all blocks, "blocks10-14" of some;
- "mels": the mean of each mel band of the log-mel spectrogram.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dymn.config import check
from dymn.errors import ConfigError

LAST, MELS, BLOCKS = "last", "mels", "blocks"
_ONE = re.compile(r"block([0-9]{1,3})")
_SOME = re.compile(r"blocks([0-9]{1,3})-([0-9]{1,3})")


def is_last(layers: str | Sequence[str]) -> bool:
    """Return whether `layers` names the last layer alone."""
    return (layers if isinstance(layers, str) else ",".join(layers)).strip().lower() == LAST


def parse_layers(layers: str | Sequence[str], n_blocks: int = 15) -> tuple[str, ...]:
    """Return the single layers that `layers` names: "mels,blocks0-2" is mels, block0, block1, block2.

    Args:
        layers: names as above, in a list or with commas between.
        n_blocks: how many blocks the network has.

    Raises:
        ConfigError: if a name is unknown or a layer is named twice.
    """
    names: list[str] = []
    for word in [layers] if isinstance(layers, str) else layers:
        for name in word.split(","):
            names += _expand(name.strip().lower(), n_blocks)
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    check(not twice, f"layers names {', '.join(twice)} twice; name each layer once.")
    check(bool(names), f"layers is empty; name one, such as {LAST}.")
    return tuple(names)


def _expand(name: str, n_blocks: int) -> list[str]:
    if name in (LAST, MELS):
        return [name]
    if name == BLOCKS:
        return [f"block{i}" for i in range(n_blocks)]
    one, some = _ONE.fullmatch(name), _SOME.fullmatch(name)
    first, last = (int(one[1]), int(one[1])) if one else (int(some[1]), int(some[2])) if some else (1, 0)
    if not first <= last < n_blocks:
        raise ConfigError(
            f"There is no layer {name!r}. Allowed: {LAST}, {MELS}, {BLOCKS}, block0 to block{n_blocks - 1}, and ranges "
            f"such as blocks{max(0, n_blocks - 5)}-{n_blocks - 1}."
        )
    return [f"block{i}" for i in range(first, last + 1)]
