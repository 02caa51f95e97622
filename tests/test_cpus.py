"""Threads by default: no more than the machine gives, none that spins."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from dymn.errors import ConfigError
from dymn.system.cpus import CALM, available_cpus, calm_openmp, keep_freed_memory, keeping_all_memory
from dymn.system.devices import use_threads


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("nonsense", None)]
)
def test_a_container_s_quota_counts(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    everything = available_cpus(tmp_path / "nowhere")
    assert available_cpus(tmp_path) == min(everything, expected or everything)


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("-1", None)])
def test_an_older_container_s_quota_counts(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    everything = available_cpus(tmp_path / "nowhere")
    assert available_cpus(tmp_path) == min(everything, expected or everything)


def test_waiting_threads_sleep_unless_the_user_says_otherwise():
    empty, chosen = {}, {"GOMP_SPINCOUNT": "5"}
    calm_openmp(empty)
    calm_openmp(chosen)
    assert empty == CALM
    assert chosen == {"GOMP_SPINCOUNT": "5"}


def test_the_command_line_calms_openmp_before_torch_is_imported():
    code = (
        "import os, sys\n"
        "from dymn import cli\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ\n"  # importing does nothing
        "cli.app = lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "cli.main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in (*CALM, "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["passive", "False"]


def test_threads_are_those_asked_for_or_few_enough(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert use_threads(3) == torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert use_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
        monkeypatch.setattr("dymn.system.devices.available_cpus", lambda: 2)
        assert use_threads() == 2
        monkeypatch.setattr("dymn.system.devices.available_cpus", lambda: 64)
        assert use_threads() == 2
        with pytest.raises(ConfigError, match="threads is 0"):
            use_threads(0)
    finally:
        torch.set_num_threads(before)


COMPUTING = ("tag", "train", "evaluate", "teach", "profile", "explain")


@pytest.mark.parametrize("command", COMPUTING)
def test_every_command_that_computes_takes_threads(command):
    import typer.main

    from dymn.cli import app

    options = typer.main.get_command(app).commands[command].params
    assert "threads" in [option.name for option in options]


def test_profile_honours_threads():
    import json

    from typer.testing import CliRunner

    from dymn.cli import app

    before = torch.get_num_threads()
    try:
        done = CliRunner().invoke(
            app, ["profile", "mn01", "--runs", "1", "--input-seconds", "1", "--threads", "3", "--format", "json"]
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["latency"]["threads"] == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_freed_memory_is_kept():
    """Arrays of a clip's size again and again: the system is asked for their memory once."""
    code = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from dymn.system.cpus import keep_freed_memory\n"
        "kept = keep_freed_memory() if sys.argv[1] == 'keep' else None\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def work(): return [np.ones(2**19, np.float32) for _ in range(2)] and None\n"
        "work()\n"
        "before = faults()\n"
        "for _ in range(50): work()\n"
        "print(faults() - before, kept)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        for how in ("keep", "not")
    ]
    (kept, answer), (usual, _) = (run.stdout.split() for run in runs)
    assert answer == "True"
    assert int(kept) < int(usual) / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_all_memory_is_kept_while_a_network_learns_and_given_back_then():
    """Arrays above what `keep_freed_memory` holds; inside the block they cost no page faults, before and after they do.

    The second number is by how much the process is larger than before, in MB.
    """
    code = (
        "import os, resource\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from dymn.system.cpus import keep_freed_memory, keeping_all_memory\n"
        "keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "pages = Path('/proc/self/statm')\n"
        "def size(): return int(pages.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') // 2**20\n"
        "def work(): return [np.ones(10 * 2**20, np.float32) for _ in range(4)] and None\n"
        "def measure():\n"
        "    work()\n"
        "    before = faults()\n"
        "    work()\n"
        "    print(faults() - before, size() - began)\n"
        "work()\n"
        "began = size()\n"
        "measure()\n"
        "with keeping_all_memory() as kept:\n"
        "    measure()\n"
        "measure()\n"
        "with keeping_all_memory(False) as unwanted:\n"
        "    measure()\n"
        "print(kept, unwanted)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, answers = run.stdout.splitlines()
    (before, _), (inside, held), (after, left), (unwanted, _) = (map(int, line.split()) for line in lines)
    assert answers == "True False"
    assert inside < min(before, after, unwanted) / 10
    assert held > 100 > left + 50


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr("dymn.system.cpus.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    with keeping_all_memory() as kept:
        assert not kept
