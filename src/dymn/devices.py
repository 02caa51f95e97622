"""Which device a network runs on."""

from __future__ import annotations

import torch

from dymn.errors import ConfigError


def available_devices() -> list[str]:
    """Return the names of the devices of this machine, "cpu" first."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device called `name`: "cpu", "cuda", "cuda:1", "mps"; None is the first CUDA device, or else the CPU.

    Raises:
        ConfigError: if there is no such device here; the message names those that there are.
    """
    available = available_devices()
    if name is None:
        return torch.device("cuda:0" if "cuda:0" in available else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"There is no device {str(name)!r}. Available here: {', '.join(available)}.") from error
    wanted = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if wanted not in available or (device.type != "cuda" and device.index):
        raise ConfigError(f"The device {str(name)!r} is not available. Available here: {', '.join(available)}.")
    return device
