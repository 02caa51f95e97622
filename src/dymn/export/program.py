"""Export of a model as a `torch.export` program, which PyTorch runs without dymn."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dymn.config import check
from dymn.export.parity import FileRunner
from dymn.export.plan import METADATA, Exportable, Plan
from dymn.models.frontend import LogMel
from dymn.models.layers import Context, DynamicConv2d


class Program(nn.Module):
    """Front end and network in one: what a plan takes, to probabilities [B, C], logits [B, C] and embedding [B, D]."""

    def __init__(self, model: Exportable, plan: Plan) -> None:
        super().__init__()
        self.front_end = LogMel(model.card.front_end) if plan.input == "waveform" else nn.Identity()
        self.network = copy.deepcopy(model).float().eval().requires_grad_(False)
        if plan.dynamic_batch:
            for parent in list(self.network.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, DynamicConv2d) and child.groups > 1:
                        setattr(parent, name, EveryKernel(child))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [B, N] or [B, 1, n_mels, frames]."""
        output = self.network(self.front_end(x))
        return self.network.probabilities(output.logits), output.logits, output.embedding


class EveryKernel(nn.Module):
    """A dynamic depthwise convolution that mixes the outputs of all K kernels, for any number of clips."""

    def __init__(self, source: DynamicConv2d) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Convolve [B, C, F, T] with one kernel for each clip; return [B, C, F', T']."""
        source = self.source
        kernels = source.weight.transpose(0, 1).flatten(0, 1)  # [C K, 1, k, k]
        every = functional.conv2d(
            x, kernels, stride=source.stride, padding=source.kernel_size // 2, groups=source.groups
        )
        every = every.view(x.shape[0], source.groups, -1, *every.shape[2:])  # [B, C, K, F', T']
        return (every * source.kernel_attention(context)[:, None, :, None, None]).sum(dim=2)


def build(model: Exportable, plan: Plan, calibrate: Sequence[npt.NDArray[np.float32]] = ()) -> bytes:
    """Return a model as the content of a `.pt2` file.

    It takes what `Plan.feed` gives, and returns probabilities, logits and embedding. The extra file "dymn" holds
    `Plan.describe`.

    Raises:
        ConfigError: if PyTorch is too old to leave a dimension open.
    """
    check(
        hasattr(torch.export.Dim, "DYNAMIC"),
        f"Exporting to this format needs PyTorch 2.6 or newer; this is {torch.__version__}.",
    )
    free: Any = torch.export.Dim
    n_clips = 2 if plan.dynamic_batch else 1  # one would be taken for a constant
    example = torch.from_numpy(plan.feed(np.zeros((n_clips, plan.n_samples(model.card)), np.float32), model.card))
    along = {0: plan.dynamic_batch, example.ndim - 1: plan.dynamic_time}
    dimensions = {axis: free.DYNAMIC if is_free else free.STATIC for axis, is_free in along.items()}
    with torch.no_grad():
        exported = torch.export.export(
            Program(model, plan).eval(), (example,), dynamic_shapes=(dimensions,), strict=False
        )
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={METADATA: json.dumps(plan.describe(model))})
    return file.getvalue()


def open_program(content: bytes) -> FileRunner:
    """Return what runs a file."""
    module: Any = torch.export.load(io.BytesIO(content)).module()

    def run(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        with torch.no_grad():
            return tuple(part.numpy() for part in module(torch.from_numpy(values)))

    return run
