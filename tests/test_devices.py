import pytest
import torch

from dymn.errors import ConfigError
from dymn.system.devices import available_devices, resolve_device


def test_cpu_is_always_there():
    assert available_devices()[0] == "cpu"
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


def test_none_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(None) == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"'cuda:2' is not available.*cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device(None) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "tpu", "cpu:1", "xpu", "", "cuda:x"])
def test_what_is_not_there_is_refused_with_what_is(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="Available here: cpu"):
        resolve_device(name)
