"""A fitted head and its network as an ordinary checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.config import ModelConfig, check
from dymn.errors import ConfigError
from dymn.fitting.heads import Linear
from dymn.runtime.fold import HEAD_EPSILON, fold
from dymn.weights.format import Stored

HIDDEN, LAST = "hidden", "last"
LAYERS = (HIDDEN, LAST)


def check_fittable(stored: Stored) -> None:
    """Reject a frame-wise network, whose sequence model no fitted head can take the place of.

    Raises:
        ConfigError: naming what can be fitted.
    """
    check(
        stored.config.sequence is None,
        f"{stored.card.name or 'The model'} is a frame-wise network, which `dymn fit` and `dymn calibrate` cannot use. "
        "Use a DyMN or MN, such as dymn04_open.",
    )


def check_layer(layer: str, config: ModelConfig) -> str:
    """Return the layer that a head can stand on in a checkpoint: as given, or the one of a network, for "".

    Raises:
        ConfigError: if a checkpoint cannot carry a head on it.
    """
    usual = HIDDEN if config.head == "mlp" else LAST
    if layer and layer not in LAYERS:
        raise ConfigError(
            f"layer is {layer!r}; allowed: {', '.join(LAYERS)}. A checkpoint can contain a head on these layers "
            "only; for others, see `dymn probe --layer` and dymn.sklearn."
        )
    check(
        layer != HIDDEN or config.head == "mlp",
        f"layer is hidden, but this network has no hidden layer (its head is {config.head}). Use last.",
    )
    return layer or usual


def head_inputs(stored: Stored, embeddings: npt.NDArray[np.float32], layer: str) -> npt.NDArray[np.float64]:
    """Return what a head on `layer` gets [N, H or D] where the averaged last feature map is [N, D].

    The hidden layer of the head "mlp" is linear with a hard swish (Howard et al., Searching for MobileNetV3, Sec. 5.2).
    """
    last = embeddings.astype(np.float64)
    if layer == LAST:
        return last
    hidden = last @ stored.state["head.hidden.weight"].T.astype(np.float64) + stored.state["head.hidden.bias"]
    return np.asarray(hidden * np.clip(hidden + 3, 0, 6) / 6)


def logits_of(stored: Stored, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the logits [N, C] of a checkpoint where the averaged last feature map is [N, D]."""
    arrays = fold(stored.config, stored.state).arrays
    inputs = head_inputs(stored, embeddings, check_layer("", stored.config))
    return np.asarray(inputs @ arrays["classifier.weight"].T.astype(np.float64) + arrays["classifier.bias"])


def with_head(
    stored: Stored,
    head: Linear,
    labels: Sequence[str],
    layer: str,
    *,
    name: str,
    exclusive: bool,
    metrics: Mapping[str, float],
    provenance: Mapping[str, Any],
) -> Stored:
    """Return a checkpoint of a network whose last layer is `head`.

    On the hidden layer, it takes the place of the classifier; on the last feature map, the whole head becomes one
    linear layer, which is the fully convolutional head with a norm that changes nothing.

    Args:
        stored: the network.
        head: on `layer`, one row a label.
        labels: the classes.
        layer: one of `LAYERS`.
        name: of the model.
        exclusive: whether probabilities are a softmax.
        metrics, provenance: for the card.
    """
    weight, bias = head.weight.astype(np.float32), head.bias.astype(np.float32)
    state = {key: values for key, values in stored.state.items() if not key.startswith("head.")}
    if layer == HIDDEN:
        state |= {key: values for key, values in stored.state.items() if key.startswith("head.hidden.")}
        state |= {"head.classifier.weight": weight, "head.classifier.bias": bias}
    else:
        ones, zeros = np.ones_like(bias), np.zeros_like(bias)
        norm = {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - np.float32(HEAD_EPSILON)}
        state |= {f"head.norm.{key}": values for key, values in norm.items()}
        state["head.classifier.weight"] = weight[:, :, None, None]
    kind = "mlp" if layer == HIDDEN else "fully_convolutional"
    config = dataclasses.replace(stored.config, num_classes=len(labels), head=kind)
    card = dataclasses.replace(
        stored.card,
        name=name,
        labels=tuple(labels),
        metrics=dict(metrics),
        provenance=dict(provenance),
        exclusive=exclusive,
    )
    return Stored(config, card, state)
