"""Online teachers, which receive the student's augmented, mixed input (consistent teaching; Beyer et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dymn.errors import ConfigError
from dymn.models.mobilenet import MobileNet, Output
from dymn.runtime.accelerate import NativeNetwork, accelerate, can_compile
from dymn.weights import load_model


class TeacherOutput(NamedTuple):
    """The outputs of the teachers for a batch."""

    logits: Tensor  # [B, C], of the student's classes, the mean over the ensemble
    embedding: Tensor  # [B, D], of the first teacher
    maps: list[Tensor]  # the outputs of its blocks, if `blocks` is set


class OnlineTeachers:
    """An ensemble of models with the student's front end and at least its classes, which are matched by name.

    `models` are networks, which are set to evaluation mode, or arguments of `load_model`; `student` is trained. On a
    CPU, the ensemble contains copies of the current weights.

    Raises:
        ConfigError: if a model has another front end or lacks a class, or only some have exclusive classes.
    """

    def __init__(
        self, models: Sequence[str | MobileNet], student: MobileNet, device: torch.device, blocks: bool = False
    ) -> None:
        networks = [(load_model(model) if isinstance(model, str) else model).to(device).eval() for model in models]
        for model in networks:
            model.check_clips()
            name = model.card.name or "in memory"
            if model.card.front_end != student.card.front_end:
                raise ConfigError(
                    f"The front end of the teacher {name} differs from the student's; both must receive the same "
                    "log-mel spectrogram."
                )
            missing = [label for label in student.card.labels if label not in model.card.labels]
            if missing:
                raise ConfigError(
                    f"The teacher {name} lacks {len(missing)} of the dataset's {len(student.card.labels)} classes, "
                    f"such as {missing[0]!r}. Use a teacher that has all."
                )
        if len({model.card.exclusive for model in networks}) > 1:
            raise ConfigError(
                "Only some of the teachers have exclusive classes (a softmax); their logits cannot be averaged."
            )
        self._columns = [_columns(model.card.labels, student.card.labels, device) for model in networks]
        shown = 1 if blocks else 0
        self._shown = [_with_blocks(model, device) for model in networks[:shown]]
        self._others = [accelerate(model) if device.type == "cpu" else model for model in networks[shown:]]
        self.embedding_size = networks[0].config.c_last  # D of the first teacher

    @torch.no_grad()
    def teach(self, log_mel: Tensor, dtype: torch.dtype | None = None) -> TeacherOutput:
        """Return the outputs for [B, 1, F, T], with autocast to `dtype`; None is float32."""
        with torch.autocast(log_mel.device.type, dtype, enabled=dtype is not None):
            shown = [network(log_mel) for network in self._shown]
            outputs = [*(output for output, _ in shown), *(network(log_mel) for network in self._others)]
        logits = [output.logits.float()[:, columns] for output, columns in zip(outputs, self._columns, strict=True)]
        return TeacherOutput(torch.stack(logits).mean(dim=0), outputs[0].embedding, shown[0][1] if shown else [])


def _columns(labels: Sequence[str], wanted: Sequence[str], device: torch.device) -> slice | Tensor:
    """Return the place of each of the wanted labels; everything, without a copy, if they are the same."""
    if tuple(labels) == tuple(wanted):
        return slice(None)
    place = {label: i for i, label in enumerate(labels)}
    return torch.tensor([place[label] for label in wanted], device=device)


def _with_blocks(model: MobileNet, device: torch.device) -> Callable[[Tensor], tuple[Output, list[Tensor]]]:
    """Return a function from log-mel spectrograms to the output of a network and those of its blocks."""
    if device.type == "cpu" and model.config.sequence is None and can_compile(model):
        return NativeNetwork(model).with_blocks
    blocks = BlockOutputs(model, training=False)
    return lambda log_mel: (model(log_mel), blocks.taken())


def same_blocks(teacher: MobileNet, student: MobileNet) -> bool:
    """Whether the feature maps after each block have the same size in both networks."""
    one, other = ([(block.c_out, block.strides) for block in model.config.blocks] for model in (teacher, student))
    return one == other


class BlockOutputs:
    """Collects the outputs of a network's blocks, from calls in training mode or from those in evaluation mode."""

    def __init__(self, model: MobileNet, training: bool) -> None:
        self._maps: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if model.training == training:  # not the block's, because frozen blocks stay in evaluation mode
                self._maps.append(output)

        for block in model.blocks:
            block.register_forward_hook(keep)

    def taken(self) -> list[Tensor]:
        """Return and remove the collected outputs."""
        maps, self._maps = self._maps, []
        return maps
