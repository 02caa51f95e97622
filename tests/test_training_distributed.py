"""Two processes compute what one does: batch norm over the joined batch, and a whole run through torchrun."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dymn.training import distributed
from dymn.training.distributed import GlobalBatchNorm2d, use_global_norm
from dymn.weights import format as weights_format
from tiny_runs import NETWORK, run, settings, write_clips


@pytest.fixture
def alone(monkeypatch):
    """One process, whose sum over all processes is its own."""
    monkeypatch.setattr(distributed, "_sum", lambda values: values)


@pytest.mark.usefixtures("alone")
def test_in_one_process_it_is_the_usual_norm():
    usual, ours = nn.BatchNorm2d(3, eps=1e-3, momentum=0.1), GlobalBatchNorm2d(3, eps=1e-3, momentum=0.1)
    compare(usual, ours, batches=3)
    assert ours.num_batches_tracked == usual.num_batches_tracked == 3


@pytest.mark.usefixtures("alone")
def test_without_momentum_it_averages_over_batches():
    compare(nn.BatchNorm2d(3, momentum=None), GlobalBatchNorm2d(3, momentum=None), batches=3)


def compare(usual, ours, batches):
    with torch.no_grad():
        for parameter in usual.parameters():
            parameter.copy_(torch.randn(3))
    ours.load_state_dict(usual.state_dict())
    for seed in range(batches):
        x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        one, two = (x.clone().requires_grad_() for _ in range(2))
        weights = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(9))
        for norm, values in ((usual, one), (ours, two)):
            (norm(values) * weights).sum().backward()
        torch.testing.assert_close(two.grad, one.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        [p.grad for p in ours.parameters()], [p.grad for p in usual.parameters()], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(dict(ours.named_buffers()), dict(usual.named_buffers()))
    torch.testing.assert_close(ours.eval()(x), usual.eval()(x))


def test_replaces_every_norm_and_keeps_values():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=1e-3, momentum=0.01)), nn.BatchNorm2d(2).eval()
    )
    nn.init.uniform_(model[0][1].running_mean)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_global_norm(model)
    assert all(isinstance(norm, GlobalBatchNorm2d) for norm in (model[0][1], model[1]))
    assert (model[0][1].eps, model[0][1].momentum, model[0][1].training, model[1].training) == (1e-3, 0.01, True, False)
    torch.testing.assert_close(dict(model.state_dict()), before)


PROGRAM = """
import json, sys
import torch
import torch.distributed as dist
from pathlib import Path
from torch import nn
from dymn.training import train
from dymn.training.distributed import GlobalBatchNorm2d, united
from dymn.training.settings import parse

torch.set_num_threads(1)
train(parse(json.loads(Path(sys.argv[1]).read_text())))

# The process group of the run is still there: the norm of the joined batch, the gradients of its mean loss.
rank, world = dist.get_rank(), dist.get_world_size()
x = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0)) + torch.arange(6.0).view(6, 1, 1, 1)
weights = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(1))
norm = GlobalBatchNorm2d(3)
mine = x[rank::world].clone().requires_grad_()
out = norm(mine)
(out * weights[rank::world]).sum().backward()
gradients = [parameter.grad for parameter in norm.parameters()]
for gradient in gradients:
    dist.all_reduce(gradient)
bad = united({f"clip {rank}": "broken"})
found = {"bad": bad, "out": out.detach(), "dx": mine.grad, "gradients": gradients, "state": norm.state_dict()}
torch.save(found, f"{sys.argv[2]}.{rank}")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A run of two processes through torchrun, and what its batch norm gives."""
    folder = tmp_path_factory.mktemp("two")
    write_clips(folder / "data", 20)
    values = settings(folder / "data", folder / "two", **SAME)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    program = [str(folder / name) for name in ("program.py", "config.json", "norm")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, *program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


# What is drawn by clip is the same for one process and two. Partners of a mixup are not (each process mixes its own
# clips), nor is dropout.
SAME = {
    "model": {"settings": NETWORK | {"dropout": 0.0}},
    "augment": {"roll_ms": 20, "gain_db": 6, "jitter": True, "frequency_mask": 4, "time_mask": 6},
}


def test_a_run_of_two_processes_gives_the_result_of_one(two_processes):
    """Up to rounding: the sums over a batch are added in another order (float32), and Adam divides by small numbers."""
    from dymn.training import train

    train(run(two_processes / "data", two_processes / "one", **SAME))
    one, two = (weights_format.read(two_processes / name / "last.safetensors").state for name in ("one", "two"))
    logs = [
        [json.loads(line) for line in (two_processes / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-3, rtol=2e-2, err_msg=name)
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4) and b["lr"] == a["lr"]


def test_norm_of_the_joined_batch_and_bad_clips_of_both(two_processes):
    parts = [torch.load(two_processes / f"norm.{rank}", weights_only=True) for rank in range(2)]
    x = (
        torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0)) + torch.arange(6.0).view(6, 1, 1, 1)
    ).requires_grad_()
    weights = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    norm = nn.BatchNorm2d(3)
    out = norm(x)
    (out * weights).sum().backward()
    assert all(part["bad"] == {"clip 0": "broken", "clip 1": "broken"} for part in parts)
    for rank, part in enumerate(parts):
        torch.testing.assert_close(part["out"], out[rank::2].detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(part["dx"], x.grad[rank::2], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(part["gradients"], [p.grad for p in norm.parameters()], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dict(part["state"]), dict(norm.state_dict()), atol=1e-5, rtol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused():
    from dymn.data.samplers import Batches, PlainSampler
    from dymn.errors import ConfigError

    with pytest.raises(ConfigError, match="multiple of world"):
        Batches(PlainSampler(10), 5, rank=0, world=2)
    whole = [
        clip
        for rank in range(2)
        for batch in Batches(PlainSampler(10), 4, rank=rank, world=2).shares(0)
        for clip in batch
    ]
    assert sorted(draw.clip for draw in whole) == list(range(10)) and np.all(
        np.diff([draw.epoch for draw in whole]) == 0
    )
