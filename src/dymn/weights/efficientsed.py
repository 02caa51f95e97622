"""Import of the state dicts published by EfficientSED (MIT licence, github.com/theMoro/EfficientSED).

A file holds a frame-wise MobileNet, a model of the sequence of its frames, and two heads. Width, classes, and kind and
size of the sequence model follow from names and shapes; strides, kernel sizes and activations are those of
`dymn.architectures.FRAMEWISE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dymn.architectures import FRAMEWISE, HIDDEN_CHANNELS, sequence_heads
from dymn.config import ModelConfig, SequenceConfig, round_channels
from dymn.errors import ConfigError, WeightsError
from dymn.system.arrays import Array
from dymn.weights.efficientat import Imported, Renaming, backbone_entries, block_configs, open_state, taken
from dymn.weights.files import WeightsFile
from dymn.weights.shapes import state_shapes

BACKBONE = "model.fmn."
HEADS = {"frame": "strong_head", "clip": "weak_head"}
LAYERS = re.compile(r"seq_model\.([01])\.layers\.(\d+)\.")
GRU_LAYERS = re.compile(r"seq_model\.0\.gru\.weight_ih_l(\d+)$")
MOST_LAYERS = 64

# dymn's names of a layer's parts, and the published ones
MIXES = {
    "tf": {
        "mixes.{0}.norm": "{0}.0.norm",
        "mixes.{0}.qkv": "{0}.0.to_qkv",
        "mixes.{0}.gates": "{0}.0.to_gates",
        "mixes.{0}.out": "{0}.0.to_out.0",
        "mixes.{0}.frequencies": "{0}.0.pos_encoding.freqs",
        "feeds.{0}.norm": "{0}.1.net.0",
        "feeds.{0}.expand": "{0}.1.net.1",
        "feeds.{0}.contract": "{0}.1.net.4",
    },
    "hybrid": {
        "mixes.{0}.norm": "{0}.0",
        "mixes.{0}.qkv": "{0}.1.to_qkv",
        "mixes.{0}.ahead": "{0}.1.rnn.forward_minGRU.to_hidden_and_gate",
        "mixes.{0}.back": "{0}.1.rnn.backward_minGRU.to_hidden_and_gate",
        "mixes.{0}.recurrent": "{0}.1.rnn.to_out",
        "mixes.{0}.recurrent_norm": "{0}.1.rnn_out_norm",
        "mixes.{0}.attention_norm": "{0}.1.attn_out_norm",
        "mixes.{0}.out": "{0}.1.to_out",
        "feeds.{0}.norm": "{0}.2",
        "feeds.{0}.expand": "{0}.3.0",
        "feeds.{0}.contract": "{0}.3.2",
    },
}


def is_efficientsed(names: Mapping[str, Array]) -> bool:
    """Return whether names of arrays are those of EfficientSED's files."""
    return any(_plain(name).startswith(BACKBONE) for name in names)


def read_efficientsed(
    source: str | Path | WeightsFile | Mapping[str, Array],
    *,
    length: int = 250,
    scores: str | None = None,
    name: str = "The state dict",
) -> Imported:
    """Read a published state dict; return the network that it belongs to, with its weights in float32.

    Args:
        source: a file saved by `torch.save`, its content, or a mapping of published names to arrays.
        length: number of frames, `seq_len` of `dymn.weights.import_efficientsed`, which has the same errors.
        scores: the head that has been trained, "frames" or "clip". None is "frames" where there is such a head. A head
            that is missing is a copy of the other one.
        name: the name of a mapping in messages.
    """
    name, given = open_state(source, name)
    state = {_plain(key): values for key, values in given.items()}
    if len(state) < len(given):
        raise WeightsError(f"{name} does not fit an EfficientSED network: several of its tensors have the same name.")
    SequenceConfig(length=length)  # rejects a length that is not allowed, before any other error
    try:
        heads = _heads(state)
        config = _config(state, heads, length, scores)
        inner = {key.removeprefix(BACKBONE): values for key, values in state.items() if key.startswith(BACKBONE)}
        backbone = [Renaming(f"{BACKBONE}{entry.source}", entry.target) for entry in backbone_entries(inner, config)]
        entries = [*backbone, *_sequence_entries(state, config), *_head_entries(heads)]
    except KeyError as error:
        raise WeightsError(f"{name} does not fit an EfficientSED network: missing {error.args[0]}.") from error
    except (IndexError, ValueError, ZeroDivisionError, ConfigError) as error:
        raise WeightsError(f"{name} does not fit an EfficientSED network: {error}") from error
    return Imported(config, taken(name, "EfficientSED", state, entries, config, exact=True))


def _plain(name: str) -> str:
    """Return a name as in the newest files.

    Older ones have "net." for "model.", the network's name for "fmn", and "model." before everything.
    """
    name = re.sub(r"^net\.", "model.", name)
    name = re.sub(r"^model\.model\.", BACKBONE, name)
    return name if name.startswith(BACKBONE) else name.removeprefix("model.")


def _heads(state: Mapping[str, Array]) -> dict[str, str]:
    """Return the published name of each of dymn's heads; that of the other one where one is missing."""
    found = {part: head for part, head in HEADS.items() if any(key.startswith(f"{head}.") for key in state)}
    if not found:
        raise KeyError("strong_head.weight and weak_head.weight, of which there must be one")
    only = next(iter(found.values()))
    return {part: found.get(part, only) for part in HEADS}


def _config(state: Mapping[str, Array], heads: Mapping[str, str], length: int, scores: str | None) -> ModelConfig:
    inner = {key.removeprefix(BACKBONE): values for key, values in state.items() if key.startswith(BACKBONE)}
    c_last = inner[f"features.{len(FRAMEWISE) + 1}.0.weight"].shape[0]
    width = inner[f"features.{len(FRAMEWISE)}.block.1.0.weight"].shape[0] / FRAMEWISE[-1].c_exp
    classes = {part: state[f"{head}.weight"].shape[0] for part, head in heads.items()}
    trained = scores or ("frames" if heads["frame"] == HEADS["frame"] else "clip")
    sequence = SequenceConfig(
        length=length, n_frame_classes=classes["frame"], n_clip_classes=classes["clip"], scores=trained,
        **_sequence(state),
    )  # fmt: skip
    return ModelConfig(
        width=round(width, 3),
        blocks=block_configs(inner, FRAMEWISE, width),
        c_last=c_last,
        c_hidden=round_channels(HIDDEN_CHANNELS * width),
        num_classes=sequence.n_classes,
        head="frames",
        sequence=sequence,
    )


def _sequence(state: Mapping[str, Array]) -> dict[str, Any]:
    """Return the settings of `SequenceConfig` that describe the sequence model of a file."""
    if not any(key.startswith("seq_model.") for key in state):
        return {"kind": "none"}
    gru = [int(found[1]) for key in state if (found := GRU_LAYERS.match(key))]
    if gru:
        size = state["seq_model.0.gru.weight_hh_l0"].shape[1]
        return {"kind": "gru", "size": size, "n_layers": _count(gru), "n_heads": sequence_heads("gru", size)}
    stack = _stack(state)
    n_layers = _count([int(found[2]) for key in state if (found := LAYERS.match(key))])
    size = state[f"{stack}.norm.gamma"].shape[0]
    kind = "tf" if f"{stack}.layers.0.0.to_qkv.weight" in state else "hybrid"
    first = f"{stack}.layers.0"
    if kind == "tf":
        n_heads = state[f"{first}.0.to_gates.weight"].shape[0]
    else:
        n_heads = size // state[f"{first}.1.rnn_out_norm.gamma"].shape[0]
    hidden = state[f"{first}.{'1.net.1' if kind == 'tf' else '3.0'}.weight"].shape[0]
    return {"kind": kind, "size": size, "n_layers": n_layers, "n_heads": n_heads, "expansion": hidden // size}


def _stack(state: Mapping[str, Array]) -> str:
    """Return the name before the layers of a transformer or hybrid, which a linear layer may precede."""
    found = {f"seq_model.{match[1]}" for key in state if (match := LAYERS.match(key))}
    if len(found) != 1:
        known = "tf, gru and hybrid are supported"
        raise ValueError(f"the kind of its seq_model is unknown ({known}).")
    return found.pop()


def _count(layers: list[int]) -> int:
    n_layers = max(layers) + 1
    if n_layers > MOST_LAYERS:
        raise ValueError(f"its sequence model has {n_layers} layers; at most {MOST_LAYERS} are supported.")
    return n_layers


def _sequence_entries(state: Mapping[str, Array], config: ModelConfig) -> Iterator[Renaming]:
    """Yield the tensors of the sequence model, in the order of `state_shapes`."""
    assert config.sequence is not None
    kind = config.sequence.kind
    shapes = [name.removeprefix("head.sequence.") for name in state_shapes(config) if name.startswith("head.sequence.")]
    if kind == "gru":
        yield from (Renaming(f"seq_model.0.{name}", f"head.sequence.{name}") for name in shapes)
        return
    published: dict[str, str] = {}
    if kind in MIXES:
        stack = _stack(state)
        published = {"input": "seq_model.0", "norm": f"{stack}.norm"}
        for layer in range(config.sequence.n_layers):
            published |= {
                part.format(layer): f"{stack}.layers.{source.format(layer)}" for part, source in MIXES[kind].items()
            }
    for name in shapes:
        part, _, value = name.rpartition(".")
        source = published[name] if name in published else f"{published[part]}.{value}"
        yield Renaming(source, f"head.sequence.{name}")


def _head_entries(heads: Mapping[str, str]) -> Iterator[Renaming]:
    for part, head in heads.items():
        yield from (Renaming(f"{head}.{value}", f"head.{part}.{value}") for value in ("weight", "bias"))
