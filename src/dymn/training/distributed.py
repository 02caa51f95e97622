"""Training by Lightning, in several processes with the results of one: start-up, batch norm over the global batch."""

from __future__ import annotations

import atexit
import datetime
import os
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist

from dymn.errors import ConfigError
from dymn.models.heads import Output
from dymn.models.mobilenet import MobileNet
from dymn.system.devices import resolve_device
from dymn.system.extras import needing
from dymn.training.settings import TRAINING_PRECISIONS, TrainConfig

PATIENCE = datetime.timedelta(hours=12)  # of the processes that wait while one evaluates


class ClipNetwork(nn.Module):
    """A frame-wise network that returns `Output`, since Lightning builds what a network returns anew from its items."""

    def __init__(self, network: MobileNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, log_mel: Tensor) -> Output:
        """Return logits and embedding of log-mel spectrograms [B, 1, F, T]."""
        return Output(*self.network(log_mel))


def launch(config: TrainConfig) -> Any:
    """Return Lightning's Fabric for the device, precision and processes of a run.

    Raises:
        ConfigError: if the device cannot be used, or not in this precision.
        MissingExtraError: if Lightning Fabric is not installed.
    """
    with needing("Training", "train"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    device = resolve_device(config.run.device or None)
    if config.optim.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"optim.precision is fp16, which needs a CUDA device, but the run uses {device.type}. Use bf16 or fp32."
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=device.type,
        devices=local if world > 1 or device.index is None else [device.index],
        num_nodes=world // local,
        strategy=DDPStrategy(timeout=PATIENCE) if world > 1 else "auto",
        precision=cast(Any, TRAINING_PRECISIONS[config.optim.precision]),
    )
    if world > 1 and not dist.is_initialized():
        atexit.register(leave)
    if world > 1:
        fabric.launch()
    return fabric


def leave() -> None:
    """Close the process group. With its threads still running at exit, a process may be aborted (exit code -6)."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is summed likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes' clips together (torch's own is for GPUs only)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, F, T]."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        n_local = values.new_full((1,), values.numel() / values.shape[1])
        parts = _sum(torch.cat([values.sum(dim=(0, 2, 3)), n_local]))
        n = parts[-1]
        mean = parts[:-1] / n
        centred = values - mean[:, None, None]
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / n
        self._follow(mean.detach(), (variance * n / (n - 1).clamp(min=1.0)).detach())
        scale = self.weight / torch.sqrt(variance + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; without a momentum they are the mean over all batches."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def united(values: dict[str, str]) -> dict[str, str]:
    """Return the entries of all processes' mappings."""
    if not dist.is_initialized():
        return values
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, values)
    return {key: value for mapping in everyone for key, value in mapping.items()}


def highest(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the highest of all processes' values [N], place by place."""
    if not dist.is_initialized():
        return values
    tensor = torch.from_numpy(values.copy())
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return np.asarray(tensor.cpu().numpy())


def use_global_norm(module: nn.Module) -> None:
    """Replace every batch norm inside `module`, keeping its values and names."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum).to(child.weight.device)
            norm.load_state_dict(child.state_dict())
            norm.train(child.training)
            setattr(module, name, norm)
        else:
            use_global_norm(child)
