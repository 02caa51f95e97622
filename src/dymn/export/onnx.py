"""Export of a model as an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dymn.config import check
from dymn.export.parity import FileRunner
from dymn.export.plan import METADATA, Exportable, Plan, networks, sequence_of
from dymn.models.frontend import LogMel
from dymn.runtime.fused import fuse
from dymn.runtime.onnx_files import MAX_FILE
from dymn.system.extras import needing

WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of a weight by precision."""


def build(model: Exportable, plan: Plan, calibrate: Sequence[npt.NDArray[np.float32]] = ()) -> bytes:
    """Return a model as ONNX (opset 17).

    Its input is `waveform` [B, N] or `log_mel` [B, 1, n_mels, frames]; its outputs are `probabilities` [B, C], `logits`
    [B, C] and `embedding` [B, D]. Labels, front end, licence and temperature are JSON in its metadata, under "dymn".

    Raises:
        ConfigError: if the network has a part that cannot be exported, or is too large for a file.
        MissingExtraError: if the package onnx is missing.
    """
    with needing("Exporting to ONNX", "onnx"):
        import onnx
    from dymn.export import graph, precision
    from dymn.export.nodes import OPSET, Nodes

    card = model.card
    size = WIDTHS[plan.precision] * sum(p.numel() for network in networks(model) for p in network.parameters())
    check(
        size < MAX_FILE,
        f"{card.name or 'The model'} would be a file of {size / 1e9:.2f} GB, but ONNX files are limited to 2 GB. Use "
        "--precision fp16 or int8, or export its members.",
    )
    n_samples = plan.n_samples(card)
    frames = LogMel(card.front_end).n_frames(n_samples)
    nodes = Nodes()
    batch: Any = "batch" if plan.dynamic_batch else 1
    if plan.input == "waveform":
        inputs = {"waveform": [batch, "samples" if plan.dynamic_time else n_samples]}
        log_mel = graph.front_end(nodes, "waveform", card.front_end)
    else:
        inputs = {"log_mel": [batch, 1, card.front_end.n_mels, "frames" if plan.dynamic_time else frames]}
        log_mel = "log_mel"
    with torch.no_grad():
        each = [
            graph.network(nodes, log_mel, fuse(network.float()), card.front_end.n_mels, frames, plan.dynamic_batch)
            for network in networks(model)
        ]
    found = each[0]
    if len(each) > 1:
        found = {
            "logits": nodes.op("Mean", *(output["logits"] for output in each)),
            "embedding": nodes.op("Concat", *(output["embedding"] for output in each), axis=1),
        }

    def probabilities(logits: str) -> str:
        return str(nodes.op("Softmax", logits, axis=-1) if card.exclusive else nodes.op("Sigmoid", logits))

    outputs: dict[str, tuple[str, list[Any]]] = {
        "probabilities": (probabilities(found["logits"]), [batch, len(card.labels)]),
        "logits": (found["logits"], [batch, len(card.labels)]),
        "embedding": (found["embedding"], [batch, sum(network.config.c_last for network in networks(model))]),
    }
    if sequence := sequence_of(model):
        sizes = [batch, sequence.length, len(card.labels)]
        outputs["frames"] = probabilities(found["frame_logits"]), sizes
    doc = f"{card.name or 'a network of dymn'}: {plan.input} to the probabilities of {len(card.labels)} sounds."
    built = nodes.model(inputs, outputs, doc)
    if plan.precision == "int8" and calibrate:
        clips = [plan.feed(plan.clip(waveform, card), card) for waveform in calibrate]
        built = precision.compute_in_integers(built, nodes.on_maps, clips)
    if plan.precision != "fp32":
        precision.narrow(built, plan.precision)
    built.metadata_props.add(key=METADATA, value=json.dumps(plan.describe(model) | {"opset": OPSET}))
    onnx.checker.check_model(built, full_check=True)
    return bytes(built.SerializeToString())


def open_onnx(content: bytes) -> FileRunner:
    """Return what runs a file, or raise a `MissingExtraError` if onnxruntime is missing."""
    from dymn.runtime.onnx_backend import OnnxBackend

    return OnnxBackend(content).outputs
