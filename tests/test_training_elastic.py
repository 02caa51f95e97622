"""Two machines train together, one of them dies in the middle of an epoch and comes back.

Nothing of the result changes.

Both are launchers (torchrun) on this machine, once on loopback, and once (as root) each in a network namespace of its
own, where the cable is pulled before the machine dies, so that nobody tells the other. It takes a minute: `make nodes`
runs it, not `make test`.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dymn.data import PackSettings, open_source, pack
from dymn.training.state import load_state
from tiny_runs import NETWORK, settings, write_clips

pytestmark = pytest.mark.skipif(
    not os.environ.get("DYMN_TEST_NODES") or sys.platform != "linux", reason="runs with `make nodes`, on Linux"
)
PATIENCE = 240  # seconds
TIMES = {"seconds", "clips_per_second"}

PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from dymn.training import train
from dymn.training.settings import parse
from dymn.training.report import Reporter

torch.set_num_threads(1)
here, go = Path(sys.argv[1]).with_name("here"), Path(sys.argv[1]).with_name("go")

class Waiting(Reporter):  # with the first process, in the second epoch, after its second step and before that is saved
    left = 5
    def batch(self, loss):
        self.left -= 1
        if self.left == 0 and not go.exists():
            here.touch()
            while not go.exists():
                time.sleep(0.02)

train(parse(json.loads(Path(sys.argv[1]).read_text())), Waiting())
"""


class Network:
    """Where machines are: all on loopback."""

    addresses = ("127.0.0.1", "127.0.0.1")

    def enter(self, machine: int) -> list[str]:
        return []

    def environment(self, machine: int) -> dict[str, str]:
        return {}

    def cut(self, is_cut: bool) -> None:
        pass

    def close(self) -> None:
        pass


class Namespaces(Network):
    """Each machine in a namespace of its own, with a cable between them and nothing else."""

    addresses = ("10.203.77.1", "10.203.77.2")

    def __init__(self) -> None:
        self.names = [f"dymn{os.getpid()}n{machine}" for machine in range(2)]
        for name in self.names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "cable0",
            "netns",
            self.names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable1",
            "netns",
            self.names[1],
        )
        for machine, name in enumerate(self.names):
            ip("-n", name, "addr", "add", f"{self.addresses[machine]}/24", "dev", f"cable{machine}")
            for link in ("lo", f"cable{machine}"):
                ip("-n", name, "link", "set", link, "up")

    def enter(self, machine: int) -> list[str]:
        return ["ip", "netns", "exec", self.names[machine]]

    def environment(self, machine: int) -> dict[str, str]:
        return {"GLOO_SOCKET_IFNAME": f"cable{machine}"}

    def cut(self, is_cut: bool) -> None:
        ip("-n", self.names[1], "link", "set", "cable1", "down" if is_cut else "up")

    def close(self) -> None:
        for name in self.names:
            ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machines:
    """Launchers of one run, each with a process that trains."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self, machine: int) -> None:
        here = self.network.addresses[machine]
        command = [
            *self.network.enter(machine), sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
            "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.2", "--rdzv-backend=c10d", "--rdzv-id=run",
            f"--local-addr={here}", f"--rdzv-endpoint={self.network.addresses[0]}:{self.port}",
            f"--rdzv-conf=is_host={1 - machine},keep_alive_interval=1", str(self.folder / "program.py"),
            str(self.folder / "config.json"),
        ]  # fmt: skip
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        environment = os.environ | alone | self.network.environment(machine)
        with (self.folder / f"machine{machine}.log").open("ab") as log:
            self.running[machine] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self, machine: int) -> None:
        """Kill a machine's processes at once, none of which can say farewell."""
        process = self.running.pop(machine)
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def wait_for(self, path: Path) -> None:
        until = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < until and all(process.poll() is None for process in self.running.values()), (
                self.logs()
            )
            time.sleep(0.02)

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        for process in self.running.values():
            assert process.wait(until - time.monotonic()) == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("machine*.log")))


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, and they."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def prepare(folder: Path, shards: Path) -> Path:
    folder.mkdir()
    sections = {
        "model": {"settings": NETWORK},
        "schedule": {"epochs": 3},
        "run": {"save_steps": 1},
        "data": {"kind": "packed"},
    }
    (folder / "config.json").write_text(json.dumps(settings(shards, folder / "run", **sections)))
    (folder / "program.py").write_text(PROGRAM)
    return folder


def outcome(folder: Path) -> tuple[list[dict[str, object]], dict[str, torch.Tensor]]:
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in log], load_state(
        folder / "run" / "state.pt"
    ).model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of two processes that nothing happens to."""
    folder = tmp_path_factory.mktemp("machines")
    write_clips(folder / "clips", 20)
    pack(open_source("folder", folder / "clips"), folder / "shards", PackSettings(clips=5))
    whole = prepare(folder / "whole", folder / "shards")
    (whole / "go").touch()
    machines = Machines(Network(), whole)
    machines.start(0)
    machines.start(1)
    machines.wait()
    return folder


@pytest.mark.parametrize("network", [Network, Namespaces])
def test_a_machine_dies_and_comes_back(network, uninterrupted):
    if network is Namespaces and not (os.geteuid() == 0 and shutil.which("ip")):
        pytest.skip("namespaces need root and the program ip")
    folder = prepare(uninterrupted / network.__name__, uninterrupted / "shards")
    with contextlib.closing(network()) as place:
        machines = Machines(place, folder)
        machines.start(0)
        machines.start(1)
        try:
            machines.wait_for(folder / "here")
            place.cut(True)
            machines.kill(1)
            state = load_state(folder / "run" / "state.pt")
            assert state.epoch == 1 and state.part["steps"] == 1, (
                "one step of the second epoch is saved, the second is lost"
            )
            (folder / "go").touch()
            place.cut(False)
            machines.start(1)
            machines.wait()
        finally:
            for machine in list(machines.running):
                machines.kill(machine)
    (log, weights), (expected_log, expected_weights) = outcome(folder), outcome(uninterrupted / "whole")
    assert log == expected_log
    assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())
