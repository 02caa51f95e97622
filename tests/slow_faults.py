"""Faults that take minutes to provoke: signals in the midst of every command. `make faults` runs them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dymn import create_model
from dymn.config import ModelCard
from dymn.models import pretrained

RATE = 32_000
LABELS = ("low", "high")
TRAIN = [
    "-s",
    "data.least_draws=0",
    "-s",
    "optim.batch_size=4",
    "-s",
    "data.seconds=1",
    "-s",
    "data.workers=2",
    "--device",
    "cpu",
]
COMMANDS = {
    "tag": ["tag", "CLIPS", "-m", "dymn04_open", "-o", "OUT/tags.csv"],
    "events": ["events", "CLIPS", "-m", "dymn04_open", "-o", "OUT/events.csv"],
    "embed": ["embed", "CLIPS", "-m", "dymn04_open", "--workers", "2", "-o", "OUT/vectors.npy"],
    "listen": ["listen", "-", "--rate", "32000", "-m", "dymn04_open"],
    "train": ["train", "--data", "CLIPS", "-m", "mn01", "-o", "OUT/run", "--epochs", "500", *TRAIN],
    "evaluate": ["evaluate", "MODEL", "--data", "CLIPS", "--workers", "2", "--per-class", "OUT/figures.csv"],
    "probe": ["probe", "CLIPS", "-m", "dymn04_open", "--workers", "2", "--plot", "OUT/confusion.png"],
    "teach": ["teach", "CLIPS", "--models", "dymn04_open", "--workers", "2", "-o", "OUT/table.safetensors"],
    "export": ["export", "dymn04_open", "-o", "OUT/model.onnx"],
    "explain": ["explain", "CLIPS/low/0.wav", "-m", "dymn04_open", "-o", "OUT/page.html"],
    "serve": ["serve", "-m", "dymn04_open", "--port", "0"],
}
ENDED = {signal.SIGINT: {130}, signal.SIGTERM: {143}}
SERVED = {0}
"""A server has nothing left to do when it is told to end."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A model, and enough clips for a command to be in their midst."""
    folder = tmp_path_factory.mktemp("desk")
    network = create_model("mn01", len(LABELS), generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=LABELS, exclusive=True)
    pretrained.save(network, folder / "tiny.safetensors")
    noise = np.random.default_rng(0).normal(0, 0.1, 300 + RATE).astype(np.float32)
    for i in range(300):
        path = folder / "clips" / LABELS[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise[i : i + RATE], RATE)
    return folder


def of_session(session):
    """Return the processes of a session that are still there."""
    listed = subprocess.run(["ps", "-eo", "pid=,sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=3) for line in listed.splitlines()]
    return [row for row in rows if row[1] == str(session) and not row[2].startswith("Z")]


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals and looks for processes as Linux has them")
@pytest.mark.parametrize("after", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_ends_a_command_quickly_without_a_traceback_or_half_a_file(command, number, after, desk, tmp_path):
    """`after` is in seconds of the command's own work, so that a busy machine does not move the moment."""
    names = {"CLIPS": desk / "clips", "MODEL": desk / "tiny.safetensors", "OUT": tmp_path}
    words = COMMANDS[command]
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "dymn", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        while running.poll() is None and worked(running.pid) < after:
            time.sleep(0.01)
            if command in ("listen", "serve") and worked(running.pid) > min(0.5 * after, 0.3):
                time.sleep(after)  # these wait for somebody
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, number)  # as a terminal does, to all of its processes
        _, errors = running.communicate(timeout=60)
    finally:
        left = of_session(running.pid)
        running.kill()
    text = errors.decode()
    early = {-number} if after < 0.5 else set()  # Python itself is not there yet
    late = (
        {-number}
        if running.returncode == -number and not list(tmp_path.glob("*.journal")) and any(tmp_path.iterdir())
        else set()
    )
    assert running.returncode in ENDED[number] | early | late | SERVED, text
    assert "Traceback" not in text and "should not have happened" not in text, text
    assert left == []
    assert running.returncode != 0 or command == "serve" or any(tmp_path.iterdir()) or command == "listen"
    if running.returncode in ENDED[number]:
        assert not [
            path
            for path in tmp_path.rglob("*")
            if path.suffix in (".csv", ".npy", ".png", ".onnx", ".html") and path.is_file()
        ]
    assert not list(tmp_path.rglob(".*.part"))


def worked(pid):
    """Return how many seconds a process has computed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
